"""Forced first tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import plain, read_ids, set_fields
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor

NONE = -1  # past the end of a prefix


@final
@dataclass(frozen=True)
class ForcedPrefix(LogitsProcessor):
    """Allows one token only at each of the first new tokens: every output begins with the prefix.

    The token gets the score 0 and so adds nothing to a beam, even if it was banned before;
    `Decoded.token_log_probs` has the model's own log-probability of it. After the prefix nothing changes.

    Args:
        prefixes: The ids of one prefix for all prompts, or of one per prompt, of any lengths; an empty one
            changes nothing. A prefix longer than `max_new_tokens` is cut off.

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
        given = [plain(prefix) for prefix in given]
        is_nested = any(isinstance(prefix, Iterable) for prefix in given)
        prefixes: Iterable[object] = (
            (read_ids("ForcedPrefix", prefix) for prefix in given)
            if is_nested
            else read_ids("ForcedPrefix", given)
        )
        set_fields(self, prefixes=tuple(prefixes))

    @override
    def init(self, history: History) -> Int64[Tensor, ""]:
        prefixes = self._prefixes()
        if self._is_per_prompt and len(prefixes) != history.batch:
            raise DecodekitError(
                f"ForcedPrefix: prefixes must be one, or one for each prompt, got {len(prefixes)} for "
                f"{history.batch} prompts."
            )
        return history.position.clone()  # the prompt's length in columns

    @override
    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Int64[Tensor, ""]
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        prefixes, vocab = self._prefixes(), scores.shape[-1]
        largest = max((token for prefix in prefixes for token in prefix), default=NONE)
        if largest == NONE:
            return scores, memory
        if largest >= vocab:
            raise DecodekitError(
                f"ForcedPrefix: token ids must be below the vocabulary size {vocab}, got {largest}."
            )
        table = _on_device(prefixes, scores.device)
        # The last column is past the end of every prefix.
        step = (history.position - memory).clamp(max=table.shape[1] - 1)
        tokens = history.spread(table.index_select(1, step.view(1)).expand(history.batch, -1))  # [rows 1]
        is_forced, place = tokens != NONE, tokens.clamp(min=0)
        forced = scores.gather(1, place).masked_fill(is_forced, 0.0)
        return scores.masked_fill(is_forced, -torch.inf).scatter(1, place, forced), memory

    @property
    def _is_per_prompt(self) -> bool:
        return any(isinstance(prefix, tuple) for prefix in self.prefixes)

    def _prefixes(self) -> tuple[tuple[int, ...], ...]:
        """Return the prefix of all prompts, or one per prompt."""
        if self._is_per_prompt:
            return tuple(self.prefixes)  # type: ignore[arg-type]
        return (read_ids("ForcedPrefix", self.prefixes),)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the copy may later be used where gradients are computed
def _on_device(
    prefixes: tuple[tuple[int, ...], ...], device: torch.device
) -> Int64[Tensor, "prefixes longest"]:
    """Return the padded prefixes, cached: a copy at every step would stall the device's stream."""
    longest = 1 + max(map(len, prefixes))
    padded = [[*prefix, *[NONE] * (longest - len(prefix))] for prefix in prefixes]
    return torch.tensor(padded, device=device)
