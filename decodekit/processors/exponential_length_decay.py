"""An end that becomes likelier with every token."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import Requirement, at_least, is_number, read_ids, set_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Column, NewTokenProcessor, PromptValues, Scores, check_ids

_MAX = torch.finfo(torch.float32).max
_FACTOR = Requirement(lambda value: is_number(value) and 0 < value < math.inf, "a finite number above 0")


@final
@dataclass(frozen=True)
class ExponentialLengthDecay(NewTokenProcessor):
    r"""Makes the end ids likelier with every new token, exponentially, after some length.

    $s'(e) = s(e) + |s(e)| \, (f^n - 1)$ for every end id $e$, with $n$ the new tokens past `start`; up to
    `start` nothing changes. Scores stay finite for any $f^n$.

    Args:
        start: New tokens before the first change, at least 0; one number, or one per prompt.
        factor: f, above 0; above 1 ends the output sooner, below 1 later; one number, or one per prompt.
            Usual values: 1.01-1.5.
        end_ids: The ids to make likelier, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `start` is not an integer of at least 0, `factor` is not a finite number above 0,
            or an id is not an integer of at least 0; when applied, if an id is outside the vocabulary.

    Example:
        >>> model = dk.testing.MarkovModel([[0.5, 0.5], [0.2, 0.8]], end_ids=(0,))
        >>> decay = ExponentialLengthDecay(1, 1.5, end_ids=0)
        >>> dk.decode(model, [1], dk.Greedy(), decay, max_new_tokens=9).hypotheses()
        [[[1, 1, 1, 0]]]

    Hugging Face:
        `ExponentialDecayLengthPenalty((start, factor), end_ids, prompt_length)`, bit for bit; decodekit reads
        the prompt's length from the run. If the score overflows, Hugging Face returns infinity, and if
        `factor ** n` overflows, it raises OverflowError. decodekit returns the largest float32 number.
    """

    start: PerPrompt
    factor: PerPrompt
    end_ids: int | Iterable[int]

    def __post_init__(self) -> None:
        set_per_prompt(self, start=at_least(0), factor=_FACTOR)
        set_fields(self, end_ids=read_ids("ExponentialLengthDecay", self.end_ids))

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        ids = check_ids("ExponentialLengthDecay", scores, read_ids("ExponentialLengthDecay", self.end_ids))
        ends = scores.index_select(1, ids)
        raised = (ends + ends.abs() * self._growth(history, first_new)).clamp(max=_MAX)
        return scores.index_copy(1, ids, torch.where(ends.isfinite(), raised, ends))

    def _growth(self, history: History, first_new: Column) -> Float32[Tensor, "rows 1"]:
        """Return the growth of a score per row, as a multiple of its absolute value."""
        rows, capacity = history.tokens.shape
        factors = self.factor if isinstance(self.factor, PromptValues) else PromptValues([self.factor])  # type: ignore[list-item]
        past = history.position - first_new - for_rows(self.start, history, history.tokens)
        table = _growth_table(factors, capacity, history.tokens.device)
        factor = history.owners.prompts % len(factors)  # the place of each row's
        return table[factor[:, None], past.clamp(0, capacity).expand(rows, 1)]


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # the table may later be used where gradients are computed
def _growth_table(
    factors: PromptValues, steps: int, device: torch.device
) -> Float32[Tensor, "factors powers"]:
    # Computed once, on the host: a device rounds powers differently from Python.
    table = [[_growth_after(n, factor) for n in range(steps + 1)] for factor in factors]
    return torch.tensor(table, dtype=torch.float32, device=device)


def _growth_after(n: int, factor: float) -> float:
    # Python raises if a power overflows, so its logarithm is compared first, with a margin.
    overflows = n * math.log(factor) > math.log(_MAX) + 1
    return _MAX if overflows else min(factor**n - 1, _MAX)
