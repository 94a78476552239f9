"""First tokens that are given."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import plain, read_ids
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor

NONE = -1  # past the end of a prefix


@final
@dataclass(frozen=True)
class ForcedPrefix(LogitsProcessor):
    """Allows one token only at each of the first new tokens: every text begins with the prefix.

    The token gets the score 0 and so adds nothing to a beam, even if it was banned before; what the model
    thinks of it is still in `Decoded.token_log_probs`. After the prefix nothing is changed.

    Args:
        prefixes: The ids of the prefix, or those of one for each prompt, of any lengths; an empty one
            changes nothing. Of one that is longer than `max_new_tokens` the beginning is said.

    Raises:
        ValueError: If an id is not an integer of at least 0.
        DecodekitError: When applied, if an id is outside the vocabulary, or there are not as many prefixes
            as prompts.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.6, 0.4]])
        >>> prefix = ForcedPrefix([[1, 1], [1]])
        >>> dk.decode(model, [[0], [0]], dk.Greedy(), prefix, max_new_tokens=3).hypotheses()
        [[[1, 1, 0]], [[1, 0, 0]]]

    Hugging Face:
        None. `decoder_input_ids` do it for encoder-decoders and prompts whose prefixes are equally long.
    """

    prefixes: Iterable[int] | Iterable[Iterable[int]]

    batch_independent = True

    def __post_init__(self) -> None:
        given = plain(self.prefixes)
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | bytearray):
            raise ValueError(  # noqa: TRY004 - a bad argument, like the others
                f"ForcedPrefix: prefixes must be ids, or ids for each prompt, got {given!r:.80}."
            )
        given = [plain(one) for one in given]
        is_each = any(isinstance(one, Iterable) for one in given)
        each = (
            [read_ids("ForcedPrefix", one) for one in given] if is_each else read_ids("ForcedPrefix", given)
        )
        object.__setattr__(self, "prefixes", tuple(each))  # a frozen field

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The prompt's length in columns."""
        prefixes = self._prefixes()
        if self._is_each and len(prefixes) != history.batch:
            raise DecodekitError(
                f"ForcedPrefix: prefixes must be one, or one for each prompt, got {len(prefixes)} for "
                f"{history.batch} prompts."
            )
        return history.position.clone()

    def apply(
        self,
        history: History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores; while there is prefix, 0 for its next token and minus infinity elsewhere."""
        prefixes, vocab = self._prefixes(), scores.shape[-1]
        most = max((token for prefix in prefixes for token in prefix), default=NONE)
        if most == NONE:
            return scores, memory
        if most >= vocab:
            raise DecodekitError(
                f"ForcedPrefix: token ids must be below the vocabulary size {vocab}, got {most}."
            )
        table = _on_device(prefixes, scores.device)
        # The last column is past the end of every prefix.
        step = (history.position - memory).clamp(max=table.shape[1] - 1)
        tokens = table.index_select(1, step.view(1)).expand(history.batch, -1)
        tokens = history.spread(tokens)  # [rows 1]
        is_forced, place = tokens != NONE, tokens.clamp(min=0)
        forced = scores.gather(1, place).masked_fill(is_forced, 0.0)
        return scores.masked_fill(is_forced, -torch.inf).scatter(1, place, forced), memory

    @property
    def _is_each(self) -> bool:
        return any(isinstance(one, tuple) for one in self.prefixes)

    def _prefixes(self) -> tuple[tuple[int, ...], ...]:
        """The prefix of all prompts, or of each."""
        return tuple(self.prefixes) if self._is_each else (read_ids("ForcedPrefix", self.prefixes),)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _on_device(
    prefixes: tuple[tuple[int, ...], ...], device: torch.device
) -> Int64[Tensor, "prefixes longest"]:
    """The prefixes, filled up with `NONE`, made once: a copy a step would stall the device's stream."""
    longest = 1 + max(map(len, prefixes))
    with torch.inference_mode(mode=False):  # it is kept, and may be used where gradients are taken
        return torch.tensor(
            [[*prefix, *[NONE] * (longest - len(prefix))] for prefix in prefixes], device=device
        )
