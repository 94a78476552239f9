"""Fewer calls of a utility: hypotheses that are unlikely to win are not looked at further."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from decodekit.core.validation import is_count, is_number, plain
from decodekit.errors import DecodekitError


class Survival(NamedTuple):
    """What is left after pruning.

    Attributes:
        expected: Every hypothesis's mean utility by the references it was compared with.
        rounds: How many rounds each survived; the larger, the better.
    """

    expected: Float64[Tensor, " hyps"]
    rounds: Int64[Tensor, " hyps"]


@final
@dataclass(frozen=True)
class Pruning:
    r"""Drops hypotheses that are unlikely to win, after a few references already.

    After each round, the references seen so far are drawn again, as many, with replacement, `draws` times. A
    hypothesis stays if the share of draws in which it is at least as good as the best one of the round is
    above $1 - \alpha$. When one is left, no more is asked.

    Args:
        confidence: $\alpha$, in [0, 1); the closer to 1, the fewer are dropped. Usual value: 0.99.
        schedule: References seen in each round, of all: increasing integers of at least 1. What is left of
            the references after the last is not used. Usual values: 8, 16, 32, ..., 256.
        draws: Bootstrap draws a round, at least 1. Usual value: 500.
        seeds: What the draws are made from: an integer for every prompt, or one for all. A prompt's draws
            do not depend on the batch.

    Raises:
        ValueError: If an argument is not such a number.
        DecodekitError: In a run, if there are not as many seeds as prompts.

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
        if not is_number(self.confidence) or not 0 <= self.confidence < 1:
            raise ValueError(f"Pruning: confidence must be in [0, 1), got {self.confidence!r}.")
        schedule, seeds = _listed(self.schedule), _listed(self.seeds)
        counts = isinstance(schedule, tuple) and all(is_count(number, 1) for number in schedule)
        if not counts or not schedule or list(schedule) != sorted(set(schedule)):
            raise ValueError(
                f"Pruning: schedule must be increasing integers of at least 1, got {self.schedule!r}."
            )
        if not is_count(self.draws, 1):
            raise ValueError(f"Pruning: draws must be an integer of at least 1, got {self.draws!r}.")
        for seed in seeds if isinstance(seeds, tuple) else (seeds,):
            if type(seed) is not int or not -(2**63) <= seed < 2**63:
                raise ValueError(f"Pruning: seeds must be 64-bit integers, got {seed!r}.")
        object.__setattr__(self, "schedule", schedule)  # frozen fields
        object.__setattr__(self, "seeds", seeds)

    def seeds_of(self, batch: int) -> tuple[int, ...]:
        """One seed a prompt."""
        seeds = (self.seeds,) * batch if isinstance(self.seeds, int) else tuple(self.seeds)
        if len(seeds) != batch:
            raise DecodekitError(
                f"Pruning: there must be one seed, or one a prompt, got {len(seeds)} seeds for "
                f"{batch} prompts."
            )
        return seeds

    def prune(
        self,
        utilities: Callable[[list[int], list[int]], Float64[Tensor, "some refs"]],
        hypotheses: int,
        references: int,
        seed: int,
    ) -> Survival:
        """Compares hypotheses with more and more references, and drops some after every round.

        Args:
            utilities: Of some hypotheses by some references.
            hypotheses: How many there are.
            references: Likewise.
            seed: Of the bootstrap.
        """
        generator = torch.Generator().manual_seed(seed)
        left = list(range(hypotheses))
        expected = torch.zeros(hypotheses, dtype=torch.float64)
        rounds = torch.zeros(hypotheses, dtype=torch.long)
        seen = 0
        table = torch.zeros(hypotheses, 0, dtype=torch.float64)
        for planned in self.schedule:
            until = min(planned, references)
            if until == seen or (seen and len(left) == 1):
                break
            table = torch.cat([table, utilities(left, list(range(seen, until)))], 1)
            seen = until
            expected[left] = table.mean(-1)
            stays = self._stays(table, generator)
            left = [number for number, stay in zip(left, stays, strict=True) if stay]
            rounds[left] += 1
            table = table[torch.tensor(stays)]
        return Survival(expected, rounds)

    def _stays(self, table: Float64[Tensor, "left seen"], generator: torch.Generator) -> list[bool]:
        """Which hypotheses may still win."""
        seen = table.shape[1]
        drawn = torch.randint(seen, (self.draws, seen), generator=generator)
        # How often each reference was drawn: [draws seen]
        counts = torch.zeros(self.draws, seen, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(counts))
        totals = table @ counts.T
        best = table.mean(-1).argmax()
        wins = (totals >= totals[best]).double().mean(-1)
        kept: list[bool] = (wins > 1 - self.confidence).tolist()  # the best one among them
        return kept


def _listed(given: object) -> Any:  # noqa: ANN401 - whatever it was; the caller looks
    """Several numbers as a tuple, and anything else as it is."""
    value = plain(given)
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value
