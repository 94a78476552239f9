"""An end that grows likelier."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, is_number, read_ids
from decodekit.processors._shared.parameters import (
    PerPrompt,
    PromptValues,
    check_per_prompt,
    for_rows,
    per_prompt,
)
from decodekit.processors.base import LogitsProcessor, in_vocab

_MOST = torch.finfo(torch.float32).max


@final
@dataclass(frozen=True)
class ExponentialLengthDecay(LogitsProcessor):
    r"""Makes the end ids likelier with every new token, exponentially, from some length on.

    $s'(e) = s(e) + |s(e)| \, (f^n - 1)$ for every end id $e$, with $n$ the new tokens past `start`; up to
    `start` nothing changes. Scores stay finite however large $f^n$ gets.

    Args:
        start: New tokens after which it sets in, at least 0; one number, or one for each prompt.
        factor: f, above 0; above 1 ends texts sooner, below 1 makes them go on; one number, or one for
            each prompt. Usual values: 1.01-1.5.
        end_ids: The ids to push up, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `start` is not an integer of at least 0, `factor` is not a finite number above 0,
            or an id is not one; when applied, if an id is outside the vocabulary.

    Example:
        >>> model = dk.testing.MarkovModel([[0.5, 0.5], [0.2, 0.8]], end_ids=(0,))
        >>> decay = ExponentialLengthDecay(1, 1.5, end_ids=0)
        >>> dk.decode(model, [1], dk.Greedy(), decay, max_new_tokens=9).hypotheses()
        [[[1, 1, 1, 0]]]

    Hugging Face:
        `ExponentialDecayLengthPenalty((start, factor), end_ids, prompt_length)`, bit for bit; ours
        remembers where the prompt ends by itself. Where the score overflows theirs is infinite, and
        where `factor ** n` does it raises OverflowError; ours stays at the largest number there is.
    """

    start: PerPrompt
    factor: PerPrompt
    end_ids: int | Iterable[int]

    batch_independent = True

    def __post_init__(self) -> None:
        who = "ExponentialLengthDecay"
        start = per_prompt(
            who, "start", self.start, lambda value: is_count(value, 0), "an integer of at least 0"
        )
        factor = per_prompt(
            who,
            "factor",
            self.factor,
            lambda value: is_number(value) and 0 < value < math.inf,
            "a finite number above 0",
        )
        object.__setattr__(self, "start", start)  # frozen fields
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "end_ids", read_ids(who, self.end_ids))

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The prompt's length in columns."""
        check_per_prompt(self, history)
        return history.position.clone()

    def apply(
        self,
        history: History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, with those of end ids pushed up."""
        ids = in_vocab("ExponentialLengthDecay", scores, read_ids("ExponentialLengthDecay", self.end_ids))
        ends = scores.index_select(1, ids)
        pushed = (ends + ends.abs() * self._growth(history, memory)).clamp(max=_MOST)
        return scores.index_copy(1, ids, torch.where(ends.isfinite(), pushed, ends)), memory

    def _growth(self, history: History, prompt_length: Int64[Tensor, ""]) -> Float32[Tensor, "rows 1"]:
        """What a score grows by for every row, as a part of itself."""
        rows, capacity = history.tokens.shape
        past = history.position - prompt_length - for_rows(self.start, history, history.tokens)
        if isinstance(self.factor, PromptValues):
            table = history.spread(_growth_table(self.factor, capacity, history.tokens.device))
        else:
            one = PromptValues((self.factor,))  # type: ignore[arg-type]
            table = _growth_table(one, capacity, history.tokens.device).expand(rows, -1)
        return table.gather(1, past.clamp(0, capacity).expand(rows, 1))


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # it is kept, and may be used where gradients are taken
def _growth_table(
    factors: PromptValues, steps: int, device: torch.device
) -> Float32[Tensor, "factors steps_and_one"]:
    # Made once, on the host: a device's own powers are rounded otherwise than Python's.
    table = [[_growth_after(n, factor) for n in range(steps + 1)] for factor in factors]
    return torch.tensor(table, dtype=torch.float32, device=device)


def _growth_after(n: int, factor: float) -> float:
    # Python raises where a power overflows: compared before it is taken, with a little to spare.
    overflows = n * math.log(factor) > math.log(_MOST) + 1
    return _MOST if overflows else min(factor**n - 1, _MOST)
