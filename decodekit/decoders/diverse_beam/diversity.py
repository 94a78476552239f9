"""What keeps a group of beams from saying what the groups before it say."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.validation import is_count, is_finite


class EmittedTokens(NamedTuple):
    """The new tokens of a prompt's hypotheses.

    Attributes:
        tokens: Token ids; what stands past the length is junk.
        lengths: How many each has, if it goes on or has finished; else 0.
        live: Beams that have just said a token which did not end them, unless by the limit of the run.
    """

    tokens: Int64[Tensor, "batch hyps new"]
    lengths: Int64[Tensor, "batch hyps"]
    live: Bool[Tensor, "batch hyps"]


class Diversity(ABC):
    """Decides what a group's next tokens cost, from what earlier groups have said.

    Example:
        Everything that an earlier group has ever begun with costs 1:

        >>> class OtherBeginning(dk.Diversity):
        ...     def penalties(self, group, earlier, step, vocab):
        ...         first = torch.zeros(len(earlier.tokens), vocab).scatter(1, earlier.tokens[..., 0], 1.0)
        ...         return (first * (step == 0))[:, None].expand(-1, group.tokens.shape[1], -1)
    """

    batch_independent: bool = False
    """True where every prompt is treated alone: see `Decoder.batch_independent`."""

    @abstractmethod
    def penalties(
        self, group: EmittedTokens, earlier: EmittedTokens, step: Int64[Tensor, ""], vocab: int
    ) -> Float32[Tensor, "batch beams vocab"]:
        """What is taken from each token's log-probability; pure, and reads nothing from the device.

        Args:
            group: The beams whose next token is to be chosen.
            earlier: The hypotheses of the groups before, which have said their token of this step already.
            step: How many tokens the beams have.
            vocab: Tokens to choose from.
        """


@final
@dataclass(frozen=True)
class Hamming(Diversity):
    r"""Takes from a token a penalty for every beam of an earlier group that says it in the same step.

    $\log P(v) - \lambda \cdot |\{b : b \text{ in an earlier group says } v \text{ now and goes on}\}|$.

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
        _check_strength(self, self.strength)

    def penalties(
        self, group: EmittedTokens, earlier: EmittedTokens, step: Int64[Tensor, ""], vocab: int
    ) -> Float32[Tensor, "batch beams vocab"]:
        """The strength times how many beams that go on have just said each token."""
        newest = earlier.tokens.index_select(2, step.clamp(max=earlier.tokens.shape[2] - 1).view(1))[..., 0]
        counts = torch.zeros(len(newest), vocab, dtype=torch.float32, device=newest.device)
        counts = counts.scatter_add(1, newest, earlier.live.float())
        return (self.strength * counts)[:, None].expand(-1, group.tokens.shape[1], -1)


@final
@dataclass(frozen=True)
class NGramDiversity(Diversity):
    r"""Takes from a token a penalty for every time an earlier group has said the n-gram that it completes.

    $\log P(v) - \lambda \cdot c(y_{t-n+1} \dots y_{t-1} v)$ with $c$ the number of times that the n-gram
    stands, anywhere, among the new tokens of the hypotheses of earlier groups, finished ones too.

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
        if not is_count(self.n, 1):
            raise ValueError(f"NGramDiversity: n must be an integer of at least 1, got {self.n!r}.")
        _check_strength(self, self.strength)

    def penalties(
        self, group: EmittedTokens, earlier: EmittedTokens, step: Int64[Tensor, ""], vocab: int
    ) -> Float32[Tensor, "batch beams vocab"]:
        """The strength times how often each n-gram was said."""
        (batch, beams, new), device = group.tokens.shape, group.tokens.device
        counts = torch.zeros(batch, beams, vocab, dtype=torch.float32, device=device)
        if self.n > new:
            return counts
        windows = earlier.tokens.unfold(2, self.n, 1)  # [batch earlier places n]
        ends = torch.arange(self.n, new + 1, device=device)
        said = ends <= earlier.lengths[..., None]  # [batch earlier places]
        # What each beam would complete: [batch beams n-1]
        before = step - torch.arange(self.n - 1, 0, -1, device=device)
        context = group.tokens.index_select(2, before.clamp(min=0, max=new - 1))
        same = (windows[:, None, ..., :-1] == context[:, :, None, None]).all(-1) & said[:, None]
        same = same & (step >= self.n - 1)
        tokens = windows[:, None, ..., -1].expand_as(same).masked_fill(~same, 0)  # junk past the end is no id
        counts = counts.scatter_add(2, tokens.flatten(2), same.flatten(2).float())
        return self.strength * counts


def _check_strength(who: Diversity, strength: object) -> None:
    if not is_finite(strength) or strength < 0:
        raise ValueError(
            f"{type(who).__name__}: strength must be a finite number of at least 0, got {strength!r}."
        )
