"""What a sample without replacement says about all the hypotheses there are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Inclusion:
    r"""How likely each hypothesis was to be in the sample, and what follows for expectations.

    A sample without replacement holds likely hypotheses and not often enough: an average over it is not an
    expectation. Weighting each by its probability over that of being drawn makes up for it,

    $$\mathbb{E}\,f(y) \approx \sum_{y \in S} \frac{p(y)}{q(y)} f(y).$$

    What sampling without replacement reports (`Decoded.report`); $p$ is the distribution that was drawn from.

    Attributes:
        log_probs: $\log p$ of each hypothesis: the model's after the processors, every step made to sum to 1.
            Nats; minus infinity if not valid.
        log_inclusion: $\log q$ of each, at most 0; minus infinity if not valid.
        threshold: What a hypothesis's perturbed log-probability had to exceed, of each prompt; minus infinity
            where every one there is was drawn. None where the algorithm has none.

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
        """The expectation of something over all hypotheses, estimated from those drawn.

        Args:
            values: What each hypothesis has of it; what is not valid does not count.
            normalize: Divides by the sum of the weights. That has a bias, which vanishes as the sample
                grows, and often less variance: the estimate is a mean of the values and stays among them.

        Raises:
            ValueError: If there is not one value for each hypothesis.
        """
        if values.shape != self.log_probs.shape:
            raise ValueError(
                f"Inclusion: there must be one value for each hypothesis, {tuple(self.log_probs.shape)}, "
                f"got {tuple(values.shape)}."
            )
        weights = self.log_weights.exp()
        total = torch.where(weights > 0, weights * values, 0.0).sum(-1)
        return total / weights.sum(-1) if normalize else total
