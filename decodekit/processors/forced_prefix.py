"""Forced first tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import plain, read_ids, set_fields, shown
from decodekit.errors import DecodekitError
from decodekit.processors.base import Column, LogitsProcessor, Scores, check_largest

NONE = -1  # past the end of a prefix


@final
@dataclass(frozen=True)
class ForcedPrefix(LogitsProcessor):
    """Allows only the tokens of a prefix at the first positions: every output begins with the prefix.

    The token gets the score 0 and so adds nothing to a beam, even if it was banned before;
    `Decoded.token_log_probs` has the model's own log-probability of it. After the prefix nothing changes.

    Args:
        prefixes: The ids of one prefix for all prompts, or of one per prompt, of any lengths; an empty one
            changes nothing. A prefix longer than `max_new_tokens` is cut off.

    Raises:
        ValueError: If an id is not an integer of at least 0.
        DecodekitError: When applied, if an id is outside the vocabulary, or the number of prefixes is neither
            1 nor the batch size.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.6, 0.4]])
        >>> prefix = ForcedPrefix([[1, 1], [1]])
        >>> dk.decode(model, [[0], [0]], dk.Greedy(), prefix, max_new_tokens=3).hypotheses()
        [[[1, 1, 0]], [[1, 0, 0]]]

    Hugging Face:
        None. In an encoder-decoder, `decoder_input_ids` have the same effect if all prefixes have one length.
    """

    prefixes: Iterable[int] | Iterable[Iterable[int]]
    _prefixes: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _per_prompt: bool = field(init=False, repr=False, compare=False)

    batch_independent = True

    def __post_init__(self) -> None:
        given = plain(self.prefixes)
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | bytearray):
            raise ValueError(  # noqa: TRY004 - a bad argument, like the others
                f"ForcedPrefix: prefixes must be ids, or ids for each prompt, got {shown(given)}."
            )
        given = [plain(prefix) for prefix in given]
        per_prompt = any(isinstance(prefix, Iterable) for prefix in given)
        prefixes = tuple(read_ids("ForcedPrefix", prefix) for prefix in (given if per_prompt else [given]))
        given = prefixes if per_prompt else prefixes[0]
        set_fields(self, prefixes=given, _prefixes=prefixes, _per_prompt=per_prompt)

    @override
    def init(self, history: History) -> Column:
        if self._per_prompt and len(self._prefixes) != history.batch:
            raise DecodekitError(
                f"ForcedPrefix: there must be one prefix, or one for each prompt, got {len(self._prefixes)} "
                f"for {history.batch} prompts."
            )
        return history.position.clone()  # the prompt's length in columns

    @override
    def apply(self, history: History, scores: Scores, memory: Column) -> tuple[Scores, Column]:
        largest = max(chain.from_iterable(self._prefixes), default=NONE)
        if largest == NONE:
            return scores, memory
        check_largest("ForcedPrefix", largest, scores.shape[-1])
        table = _on_device(self._prefixes, scores.device)
        # The last column is past the end of every prefix.
        step = (history.position - memory).clamp(max=table.shape[1] - 1)
        tokens = history.to_rows(table.index_select(1, step.view(1)).expand(history.batch, -1))  # [rows 1]
        is_forced, place = tokens != NONE, tokens.clamp(min=0)
        forced = scores.gather(1, place).masked_fill(is_forced, 0.0)
        return scores.masked_fill(is_forced, -torch.inf).scatter(1, place, forced), memory


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the copy may later be used where gradients are computed
def _on_device(
    prefixes: tuple[tuple[int, ...], ...], device: torch.device
) -> Int64[Tensor, "prefixes longest"]:
    """Return the padded prefixes, cached: a copy at every step would stall the device's stream."""
    ended = [torch.tensor([*prefix, NONE], device=device) for prefix in prefixes]
    return pad_sequence(ended, batch_first=True, padding_value=NONE)
