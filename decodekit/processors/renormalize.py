"""Scores as log-probabilities."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.processors._shared.log_probs import normalized
from decodekit.processors.base import StatelessProcessor


@final
@dataclass(frozen=True)
class Renormalize(StatelessProcessor):
    r"""Makes the scores log-probabilities again, after processors that banned or changed some.

    $s'(v) = s(v) - \log \sum_u \exp s(u)$. Sampling does not change. A beam search does: without it, a
    beam that was denied its likely tokens pays for that.

    Example:
        >>> Renormalize()(torch.tensor([[0]]), torch.tensor([[1.0, 1.0, -torch.inf]])).exp()
        tensor([[0.5000, 0.5000, 0.0000]])

    Hugging Face:
        `LogitNormalization()`, bit for bit. Where everything is banned theirs makes NaN; ours leaves it
        banned.
    """

    batch_independent = True

    # Not argmax_invariant: rounding can make scores equal that were not quite.

    def process(
        self,
        history: History,  # noqa: ARG002 - the contract's signature
        scores: Float32[Tensor, "rows vocab"],
    ) -> Float32[Tensor, "rows vocab"]:
        """The logarithm of the scores' softmax."""
        return normalized(scores)
