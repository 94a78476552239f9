"""Confidence-based pruning of minimum Bayes risk."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.validation import (
    CheckedOptions,
    Requirement,
    at_least,
    check_fields,
    is_count,
    is_number,
    plain,
    set_fields,
)
from decodekit.errors import DecodekitError


class PruningResult(NamedTuple):
    """Mean utility of every hypothesis under its references, and the number of rounds that it survived."""

    expected: Float64[Tensor, " hyps"]
    rounds: Int64[Tensor, " hyps"]


def _is_increasing(value: Any) -> bool:  # noqa: ANN401 - not checked yet
    is_counts = isinstance(value, tuple) and bool(value) and all(is_count(number, 1) for number in value)
    return is_counts and list(value) == sorted(set(value))


_CONFIDENCE = Requirement(lambda value: is_number(value) and 0 <= value < 1, "in [0, 1)")
_SCHEDULE = Requirement(_is_increasing, "increasing integers of at least 1")
_SEED = Requirement(lambda value: type(value) is int and -(2**63) <= value < 2**63, "64-bit integers")


@final
@dataclass(frozen=True)
class Pruning(CheckedOptions):
    r"""Drops hypotheses that are unlikely to win, after a part of the references.

    After each round, `draws` bootstrap samples are drawn from the references so far. A hypothesis stays if
    the fraction of samples in which it is at least as good as the best one of the round is above
    $1 - \alpha$. Pruning ends when one hypothesis remains.

    Args:
        confidence: $\alpha$, in [0, 1); the closer to 1, the fewer are dropped. Usual value: 0.99.
        schedule: Number of references after each round: increasing integers of at least 1. References beyond
            the last are not used. Usual values: 8, 16, 32, ..., 256.
        draws: Bootstrap samples per round, at least 1. Usual value: 500.
        seeds: Seeds of the bootstrap: one integer per prompt, or one for all; independent of the batch.

    Raises:
        ValueError: If an argument is out of range.
        DecodekitError: In a run, if the number of seeds is not that of the prompts.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.Sample(32, seeds=[0]), max_new_tokens=4)
        >>> best = dk.mbr(out, dk.ChrF(), pruning=Pruning(confidence=0.9, schedule=(4, 8, 16, 32)))
        >>> bool(best.report.saved > 0)
        True

    Source:
        Cheng & Vlachos, 2023, https://arxiv.org/abs/2311.14919, algorithm 1.

    Hugging Face:
        None.
    """

    _: KW_ONLY
    confidence: float = 0.99
    schedule: Sequence[int] = (8, 16, 32, 64, 128, 256)
    draws: int = 500
    seeds: int | Sequence[int] | Int64[Tensor, " batch"] = 0

    def __post_init__(self) -> None:
        set_fields(self, schedule=_as_tuple(self.schedule), seeds=_as_tuple(self.seeds))
        check_fields(self, confidence=_CONFIDENCE, schedule=_SCHEDULE, draws=at_least(1))
        for seed in self.seeds if isinstance(self.seeds, tuple) else (self.seeds,):
            _SEED.check("Pruning", "seeds", seed)

    def seeds_of(self, batch: int) -> tuple[int, ...]:
        """Return one seed per prompt."""
        seeds = (self.seeds,) * batch if isinstance(self.seeds, int) else tuple(self.seeds)
        if len(seeds) != batch:
            raise DecodekitError(
                f"Pruning: there must be one seed, or one per prompt, got {len(seeds)} seeds for "
                f"{batch} prompts."
            )
        return seeds

    def prune(
        self,
        utilities: Callable[[list[int], list[int]], Float64[Tensor, "remaining drawn"]],
        hypotheses: int,
        references: int,
        seed: int,
    ) -> PruningResult:
        """Compare hypotheses with more and more references, and drop some after every round.

        Args:
            utilities: Function from indices of hypotheses and references to their utilities.
            hypotheses: Number of hypotheses.
            references: Number of references.
            seed: Seed of the bootstrap samples.
        """
        generator = torch.Generator().manual_seed(seed)
        remaining = torch.arange(hypotheses)
        expected = torch.zeros(hypotheses, dtype=torch.float64)
        rounds = torch.zeros(hypotheses, dtype=torch.long)
        table = torch.zeros(hypotheses, 0, dtype=torch.float64)
        for planned in self.schedule:
            used, until = table.shape[1], min(planned, references)
            if until == used or (used and len(remaining) == 1):
                break
            table = torch.cat([table, utilities(remaining.tolist(), list(range(used, until)))], 1)
            expected[remaining] = table.mean(-1)
            survives = self._survivors(table, generator)
            remaining, table = remaining[survives], table[survives]
            rounds[remaining] += 1
        return PruningResult(expected, rounds)

    def _survivors(
        self, table: Float64[Tensor, "remaining used"], generator: torch.Generator
    ) -> Bool[Tensor, " remaining"]:
        """Return a mask of the hypotheses that may still win, the best one among them."""
        used = table.shape[1]
        drawn = torch.randint(used, (self.draws, used), generator=generator)
        # Occurrences of each reference in each sample: [draws used]
        counts = torch.zeros(self.draws, used, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))
        totals = table @ counts.T
        best = table.mean(-1).argmax()
        return (totals >= totals[best]).double().mean(-1) > 1 - self.confidence


def _as_tuple(given: object) -> Any:  # noqa: ANN401 - not checked yet
    """Return several values as a tuple, and any other value as it is."""
    value = plain(given)
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value
