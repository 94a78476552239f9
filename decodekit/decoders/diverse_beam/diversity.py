"""Penalties that keep a group of beams from repeating earlier groups."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.validation import NON_NEGATIVE, CheckedOptions, at_least, check_fields


class GroupHypotheses(NamedTuple):
    """Hypotheses of one or several groups of beams, for each prompt.

    Attributes:
        tokens: New token ids; columns past the length may hold anything.
        lengths: Number of new tokens of each live or finished hypothesis; 0 for unused beams and slots.
        live: Beams that emitted a token in this step and go on, or end only by the limit of the run.
    """

    tokens: Int64[Tensor, "batch hyps new"]
    lengths: Int64[Tensor, "batch hyps"]
    live: Bool[Tensor, "batch hyps"]

    def concat(self, *others: "GroupHypotheses") -> "GroupHypotheses":
        """These hypotheses, followed by those of other groups."""
        return GroupHypotheses(*(torch.cat(fields, 1) for fields in zip(self, *others, strict=True)))


class Diversity(CheckedOptions, ABC):
    """Penalizes the next tokens of a group of beams by the hypotheses of earlier groups.

    Example:
        A penalty of 1 for every first token of an earlier group:

        >>> class OtherBeginning(dk.Diversity):
        ...     def penalties(self, group, earlier, step, vocab):
        ...         first = torch.zeros(len(earlier.tokens), vocab).scatter(1, earlier.tokens[..., 0], 1.0)
        ...         return (first * (step == 0))[:, None].expand(-1, group.tokens.shape[1], -1)
    """

    batch_independent: bool = False
    """True if every prompt is treated on its own: see `Decoder.batch_independent`."""

    @abstractmethod
    def penalties(
        self, group: GroupHypotheses, earlier: GroupHypotheses, step: Int64[Tensor, ""], vocab: int
    ) -> Float32[Tensor, "batch beams vocab"]:
        """The penalty subtracted from each token's log-probability. Pure; does not read the device.

        Args:
            group: The beams that emit next.
            earlier: Hypotheses of earlier groups, which have already emitted their token of this step.
            step: Number of new tokens of the beams.
            vocab: Vocabulary size.
        """


@final
@dataclass(frozen=True)
class Hamming(Diversity):
    r"""Subtracts a penalty from a token for every beam of an earlier group that emits it in the same step.

    $\log P(v) - \lambda \cdot |\{b : b \text{ in an earlier group emits } v \text{ now and goes on}\}|$.

    Args:
        strength: $\lambda$, in nats, at least 0. Usual values: 0.2-1.

    Raises:
        ValueError: If `strength` is not a finite number of at least 0.

    Example:
        >>> dk.DiverseBeamSearch(4, 2, diversity=Hamming(0.5)).diversity
        Hamming(strength=0.5)

    Source:
        Vijayakumar et al., 2016, https://arxiv.org/abs/1610.02424.

    Hugging Face:
        `diversity_penalty=strength`.
    """

    strength: float

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, strength=NON_NEGATIVE)

    @override
    def penalties(
        self, group: GroupHypotheses, earlier: GroupHypotheses, step: Int64[Tensor, ""], vocab: int
    ) -> Float32[Tensor, "batch beams vocab"]:
        newest = earlier.tokens.index_select(2, step.clamp(max=earlier.tokens.shape[2] - 1).view(1))[..., 0]
        counts = torch.zeros(len(newest), vocab, dtype=torch.float32, device=newest.device)
        counts = counts.scatter_add(1, newest, earlier.live.float())
        return (self.strength * counts)[:, None].expand(-1, group.tokens.shape[1], -1)


@final
@dataclass(frozen=True)
class NGramDiversity(Diversity):
    r"""Subtracts a penalty from a token for every time an earlier group has emitted the n-gram it completes.

    $\log P(v) - \lambda \cdot c(y_{t-n+1} \dots y_{t-1} v)$, where $c$ counts the n-gram at all positions of
    the new tokens of earlier groups, finished hypotheses included.

    Args:
        n: Length of the n-grams in tokens, at least 1. Usual values: 1-4.
        strength: $\lambda$, in nats, at least 0. Usual values: 0.2-1.

    Raises:
        ValueError: If `n` is not an integer of at least 1, or `strength` not a finite number of at least 0.

    Example:
        >>> dk.DiverseBeamSearch(4, 2, diversity=NGramDiversity(2, 0.5)).diversity
        NGramDiversity(n=2, strength=0.5)

    Source:
        Vijayakumar et al., 2016, https://arxiv.org/abs/1610.02424, "n-gram diversity".

    Hugging Face:
        None.
    """

    n: int
    strength: float

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, n=at_least(1), strength=NON_NEGATIVE)

    @override
    def penalties(
        self, group: GroupHypotheses, earlier: GroupHypotheses, step: Int64[Tensor, ""], vocab: int
    ) -> Float32[Tensor, "batch beams vocab"]:
        (batch, beams, new), device = group.tokens.shape, group.tokens.device
        counts = torch.zeros(batch, beams, vocab, dtype=torch.float32, device=device)
        if self.n > new:
            return counts
        windows = earlier.tokens.unfold(2, self.n, 1)  # [batch earlier windows n]
        ends = torch.arange(self.n, new + 1, device=device)
        emitted = ends <= earlier.lengths[..., None]  # [batch earlier windows]
        # The last n-1 tokens of each beam: [batch beams n-1]
        columns = step - torch.arange(self.n - 1, 0, -1, device=device)
        context = group.tokens.index_select(2, columns.clamp(min=0, max=new - 1))
        same = (windows[:, None, ..., :-1] == context[:, :, None, None]).all(-1) & emitted[:, None]
        same = same & (step >= self.n - 1)
        tokens = windows[:, None, ..., -1].expand_as(same).masked_fill(~same, 0)  # junk is not an id
        counts = counts.scatter_add(2, tokens.flatten(2), same.flatten(2).float())
        return self.strength * counts
