"""Inclusion probabilities of a sample without replacement, and estimates of expectations."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Inclusion:
    r"""Inclusion probabilities of the hypotheses in a sample, and importance-weighted estimates.

    A sample without replacement contains likely hypotheses too rarely, so its average is not an expectation.
    Weighting each hypothesis by its probability over its inclusion probability corrects this:

    $$\mathbb{E}\,f(y) \approx \sum_{y \in S} \frac{p(y)}{q(y)} f(y).$$

    `Decoded.report` of sampling without replacement; $p$ is the sampled distribution.

    Attributes:
        log_probs: $\log p$ of each hypothesis, after the processors, every step normalized. Nats; minus
            infinity if not valid.
        log_inclusion: $\log q$ of each hypothesis, at most 0; minus infinity if not valid.
        threshold: The perturbed log-probability that a hypothesis had to exceed, per prompt; minus infinity
            where every hypothesis was drawn. None where the algorithm has none.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.StochasticBeamSearch(3, seeds=[1]), max_new_tokens=5)
        >>> out.report.estimate(out.lengths).shape
        torch.Size([1])
    """

    log_probs: Float64[Tensor, "batch hyps"]
    log_inclusion: Float64[Tensor, "batch hyps"]
    threshold: Float64[Tensor, " batch"] | None = None

    @property
    def probabilities(self) -> Float64[Tensor, "batch hyps"]:
        """The inclusion probabilities; 0 if not valid."""
        return self.log_inclusion.exp()

    @property
    def log_weights(self) -> Float64[Tensor, "batch hyps"]:
        """Logarithms of the importance weights $p/q$; minus infinity if not valid."""
        weights = self.log_probs - self.log_inclusion
        return weights.masked_fill(self.log_probs == -torch.inf, -torch.inf)

    def estimate(
        self, values: Float[Tensor, "batch hyps"] | Tensor, *, normalize: bool = False
    ) -> Float64[Tensor, " batch"]:
        """The estimated expectation of a value over all hypotheses.

        Args:
            values: The value of each hypothesis; values of hypotheses that are not valid are ignored.
            normalize: True divides by the sum of the weights. This adds a bias, which vanishes as the sample
                grows, and often reduces the variance: the estimate is a weighted mean of the values.

        Raises:
            ValueError: If the number of values differs from the number of hypotheses.
        """
        if values.shape != self.log_probs.shape:
            raise ValueError(
                f"Inclusion: there must be one value for each hypothesis, {tuple(self.log_probs.shape)}, "
                f"got {tuple(values.shape)}."
            )
        weights = self.log_weights.exp()
        total = torch.where(weights > 0, weights * values, 0.0).sum(-1)
        return total / weights.sum(-1) if normalize else total
