"""Which continuations a step of beam search looks at."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.validation import is_count, is_finite


class ExpansionResult(NamedTuple):
    """The continuations to look at, in the order in which they may finish.

    Attributes:
        flat: Which they are: `beam * vocab + token`.
        priority: Those that do not end go on in the order of this, greatest first.
    """

    flat: Int64[Tensor, "batch candidates"]
    priority: Float32[Tensor, "batch candidates"]


class Expansion(ABC):
    """Decides which of a prompt's continuations a step of beam search looks at.

    Example:
        Only those with even ids:

        >>> class Even(dk.Expansion):
        ...     def pick(self, log_probs, number):
        ...         odd = torch.arange(log_probs.shape[-1]) % 2 == 1
        ...         return dk.BestExpansion().pick(log_probs.masked_fill(odd, -torch.inf), number)
    """

    batch_independent: bool = False
    """True where every prompt is treated alone: see `Decoder.batch_independent`."""

    @abstractmethod
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """The continuations to look at; pure but for random draws, and reads nothing from the device.

        Args:
            log_probs: Sums of every continuation; minus infinity for those that do not exist.
            number: How many are enough for the beams to be full whatever ends; there may be fewer.
        """


@final
@dataclass(frozen=True)
class BestExpansion(Expansion):
    """Looks at the best continuations of all beams together: ordinary beam search.

    Example:
        >>> BestExpansion().pick(torch.tensor([[[-1.0, -3.0], [-2.0, -4.0]]]), 2).flat
        tensor([[0, 2]])

    Hugging Face:
        `generate(num_beams=beams, do_sample=False)`.
    """

    batch_independent = True

    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """The greatest sums."""
        best = log_probs.flatten(1).topk(number)
        return ExpansionResult(best.indices, best.values)


@final
@dataclass(frozen=True)
class SampledExpansion(Expansion):
    """Draws the continuations to look at without replacement, by their share of the sums: beam sampling.

    By the exponential race (or Gumbel top-k), so that beams times vocabulary may be any number. It is a
    search with noise, not a way to sample texts: for samples without replacement see `StochasticBeamSearch`.

    Args:
        generator: The stream of the draws; None is torch's global one.

    Raises:
        ValueError: If `generator` is not a `torch.Generator`.

    Example:
        >>> SampledExpansion().pick(torch.tensor([[[0.0, -torch.inf]]]), 1).flat
        tensor([[0]])

    Hugging Face:
        `generate(num_beams=beams, do_sample=True)`: after the same seed the same texts, where
        `torch.multinomial` takes that many (2**24). Before 5.24 the first drawn could finish, not the
        best drawn.
    """

    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.generator, torch.Generator | None):
            raise ValueError(  # noqa: TRY004 - as every argument out of range
                f"SampledExpansion: generator must be a torch.Generator, got {self.generator!r:.80}."
            )

    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """Different ones, the greatest sum first."""
        sums = log_probs.flatten(1)
        drawn = rng.draw_several(sums.softmax(-1), number, self.generator)
        chosen, order = sums.gather(1, drawn).sort(descending=True, stable=True)
        return ExpansionResult(drawn.gather(1, order), chosen)


@final
@dataclass(frozen=True)
class PerNodeExpansion(Expansion):
    """Looks at no more than some continuations of each beam, so that one beam cannot take all places.

    A beam that is alone, as at the first step, may take them all.

    Args:
        children: Continuations of each beam, at least 1.

    Raises:
        ValueError: If `children` is not an integer of at least 1.

    Example:
        >>> PerNodeExpansion(1).pick(torch.tensor([[[-1.0, -1.5], [-2.0, -4.0]]]), 2).flat
        tensor([[0, 2]])

    Source:
        Freitag & Al-Onaizan, 2017, https://arxiv.org/abs/1702.01806, "maximum candidates per node".

    Hugging Face:
        None.
    """

    children: int

    batch_independent = True

    def __post_init__(self) -> None:
        if not is_count(self.children, 1):
            raise ValueError(
                f"PerNodeExpansion: children must be an integer of at least 1, got {self.children!r}."
            )

    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """The greatest sums among each beam's best."""
        vocab = log_probs.shape[-1]
        siblings = log_probs.topk(min(number, vocab))
        is_alone = (siblings.values[:, 1:, 0] == -torch.inf).all(-1)[:, None, None]
        too_many = torch.arange(siblings.values.shape[-1], device=log_probs.device) >= self.children
        worth = siblings.values.masked_fill(too_many & ~is_alone, -torch.inf).flatten(1)
        best = worth.topk(min(number, worth.shape[1]))
        return ExpansionResult(_flat(siblings.indices, vocab).gather(1, best.indices), best.values)


@final
@dataclass(frozen=True)
class DiverseSiblings(Expansion):
    r"""Takes from every continuation a penalty for each sibling that is better, so that beams differ.

    Continuations are compared by $\log P(y_{\le t}) - \gamma k$, where $k = 0, 1, \dots$ is the rank among
    the continuations of the same beam. The sums themselves stay without the penalty.

    Args:
        penalty: What each rank costs, in nats, at least 0. Usual values: 0.1-1.

    Raises:
        ValueError: If `penalty` is not a finite number of at least 0.

    Example:
        >>> DiverseSiblings(2.0).pick(torch.tensor([[[-1.0, -1.5], [-2.0, -4.0]]]), 2).flat
        tensor([[0, 2]])

    Source:
        Li, Monroe & Jurafsky, 2016, https://arxiv.org/abs/1611.08562, section 3.

    Hugging Face:
        None.
    """

    penalty: float

    batch_independent = True

    def __post_init__(self) -> None:
        if not is_finite(self.penalty) or self.penalty < 0:
            raise ValueError(
                f"DiverseSiblings: penalty must be a finite number of at least 0, got {self.penalty!r}."
            )

    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """The greatest sums less the penalties."""
        vocab = log_probs.shape[-1]
        # More than `number` siblings of one beam cannot be among the best `number`.
        siblings = log_probs.topk(min(number, vocab))
        ranks = torch.arange(siblings.values.shape[-1], device=log_probs.device)
        worth = (siblings.values - self.penalty * ranks).flatten(1)
        best = worth.topk(min(number, worth.shape[1]))
        return ExpansionResult(_flat(siblings.indices, vocab).gather(1, best.indices), best.values)


def _flat(tokens: Int64[Tensor, "batch beams children"], vocab: int) -> Int64[Tensor, "batch beams*children"]:
    """Tokens of each beam as continuations of the prompt."""
    beams = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
    return (beams * vocab + tokens).flatten(1)
