"""Choice of the continuations that a beam search step considers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit import rng
from decodekit.core.validation import NON_NEGATIVE, CheckedOptions, at_least, check_fields
from decodekit.decoders.prompt_seeds import check_generator


class ExpansionResult(NamedTuple):
    """Continuations that become candidates, best first; only the first `beams` of them may finish.

    Attributes:
        indices: `beam * vocab + token` of each.
        priority: Ranks continuations that do not end, greatest first; minus infinity excludes one.
    """

    indices: Int64[Tensor, "batch candidates"]
    priority: Float32[Tensor, "batch candidates"]


class Expansion(CheckedOptions, ABC):
    """Picks the continuations that a beam search step considers.

    Example:
        Continuations with even ids only:

        >>> class Even(dk.Expansion):
        ...     def pick(self, log_probs, number):
        ...         odd = torch.arange(log_probs.shape[-1]) % 2 == 1
        ...         return dk.BestExpansion().pick(log_probs.masked_fill(odd, -torch.inf), number)
    """

    batch_independent: bool = False
    """True if every prompt is treated on its own: see `Decoder.batch_independent`."""

    @abstractmethod
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """The continuations to consider. Pure except for random draws; does not read the device.

        Args:
            log_probs: Sums of all continuations; minus infinity for those that do not exist.
            number: Number of continuations that is sure to fill the beams, whichever of them end. The
                expansion may pick fewer: the number of beams, or a multiple of it.
        """


@final
@dataclass(frozen=True)
class BestExpansion(Expansion):
    """Picks the best continuations of all beams together: ordinary beam search.

    Example:
        >>> BestExpansion().pick(torch.tensor([[[-1.0, -3.0], [-2.0, -4.0]]]), 2).indices
        tensor([[0, 2]])

    Hugging Face:
        `generate(num_beams=beams, do_sample=False)`.
    """

    batch_independent = True

    @override
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        best = log_probs.flatten(1).topk(number)
        return ExpansionResult(best.indices, best.values)


@final
@dataclass(frozen=True)
class SampledExpansion(Expansion):
    """Draws continuations without replacement, in proportion to their probability: beam sampling.

    The draws are an exponential race (equal to Gumbel top-k), so beams times vocabulary has no limit. Beam
    sampling is a search with noise and does not sample from the model: for samples without replacement use
    `StochasticBeamSearch`.

    Args:
        generator: Random stream of the draws; None is torch's global one.

    Raises:
        ValueError: If `generator` is not a `torch.Generator`.

    Example:
        >>> SampledExpansion().pick(torch.tensor([[[0.0, -torch.inf]]]), 1).indices
        tensor([[0]])

    Hugging Face:
        `generate(num_beams=beams, do_sample=True)`: the same tokens after the same seed, up to the 2**24
        continuations that `torch.multinomial` supports. Before 5.24 the first continuations drawn could
        finish, instead of the best ones.
    """

    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_generator("SampledExpansion", self.generator)

    @override
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        sums = log_probs.flatten(1)
        drawn = rng.draw_several(sums.softmax(-1), number, self.generator)
        priority, order = sums.gather(1, drawn).sort(descending=True, stable=True)
        return ExpansionResult(drawn.gather(1, order), priority)


@final
@dataclass(frozen=True)
class PerNodeExpansion(Expansion):
    """Picks at most `children` continuations of each beam, so that one beam cannot supply all new beams.

    A single live beam, as at the first step, has no such limit.

    Args:
        children: Continuations of each beam, at least 1.

    Raises:
        ValueError: If `children` is not an integer of at least 1.

    Example:
        >>> PerNodeExpansion(1).pick(torch.tensor([[[-1.0, -1.5], [-2.0, -4.0]]]), 2).indices
        tensor([[0, 2]])

    Source:
        Freitag & Al-Onaizan, 2017, https://arxiv.org/abs/1702.01806, "maximum candidates per node".

    Hugging Face:
        None.
    """

    children: int

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, children=at_least(1))

    @override
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        siblings = log_probs.topk(min(number, log_probs.shape[-1]))
        is_alone = (siblings.values[:, 1:, 0] == -torch.inf).all(-1)[:, None, None]
        is_beyond = torch.arange(siblings.values.shape[-1], device=log_probs.device) >= self.children
        priority = siblings.values.masked_fill(is_beyond & ~is_alone, -torch.inf)
        return _best_siblings(siblings.indices, priority, number, log_probs.shape[-1])


@final
@dataclass(frozen=True)
class DiverseSiblings(Expansion):
    r"""Penalizes every continuation for each better one of the same beam, so that beams differ.

    Continuations are ranked by $\log P(y_{\le t}) - \gamma k$, where $k = 0, 1, \dots$ is the rank among
    the continuations of the same beam. The sums themselves do not include the penalty.

    Args:
        penalty: $\gamma$, in nats per rank, at least 0. Usual values: 0.1-1.

    Raises:
        ValueError: If `penalty` is not a finite number of at least 0.

    Example:
        >>> DiverseSiblings(2.0).pick(torch.tensor([[[-1.0, -1.5], [-2.0, -4.0]]]), 2).indices
        tensor([[0, 2]])

    Source:
        Li, Monroe & Jurafsky, 2016, https://arxiv.org/abs/1611.08562, section 3.

    Hugging Face:
        None.
    """

    penalty: float

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, penalty=NON_NEGATIVE)

    @override
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        # More than `number` siblings of one beam cannot be among the best `number`.
        siblings = log_probs.topk(min(number, log_probs.shape[-1]))
        ranks = torch.arange(siblings.values.shape[-1], device=log_probs.device)
        priority = siblings.values - self.penalty * ranks
        return _best_siblings(siblings.indices, priority, number, log_probs.shape[-1])


def _best_siblings(
    tokens: Int64[Tensor, "batch beams children"],
    priority: Float32[Tensor, "batch beams children"],
    number: int,
    vocab: int,
) -> ExpansionResult:
    """The continuations of greatest priority among some children of each beam."""
    first = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * vocab
    priority = priority.flatten(1)
    best = priority.topk(min(number, priority.shape[1]))
    return ExpansionResult((first + tokens).flatten(1).gather(1, best.indices), best.values)
