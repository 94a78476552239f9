"""Estimates of expectations from samples of `UniqueSample`."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from decodekit.core.validation import at_least


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledMass:
    r"""The probability that unique samples cover, and importance weights: `Decoded.report` of `UniqueSample`.

    Probabilities belong to the sampled distribution, after the processors. A sample of probability $p_i$ has
    the weight $p_i / (1 - e^{-p_i \tau})$ in an expectation over *all* hypotheses. Here $\tau$ is the arrival
    time of the next hypothesis in an exponential race, in the order of the samples: $\tau = \sum_{j=1}^{k+1}
    E_j / m_j$, with unsampled probabilities $m_j$ and standard exponential $E_j$. Dead ends take part in the
    race. For a prompt with a dead end, the next arrival after the last sample is unknown. Then $\tau$ is the
    arrival time of the last sample, which gets no weight.

    Attributes:
        log_probs: Log-probability of each sample, in nats; minus infinity where it is missing.
        unsampled: The unsampled probability before each sample was drawn: 1 for the first; 0 where it is
            missing.
        remaining: The unsampled probability at the end, per prompt.
        dead_ends: For every prompt, the unsampled probability before each dead end: a hypothesis with every
            next token banned. A dead end is never drawn again.

    Example:
        >>> coin = dk.testing.MarkovModel([[0.25, 0.75], [0.25, 0.75]])
        >>> out = dk.decode(coin, [[0]], dk.UniqueSample(9, seeds=[1]), max_new_tokens=1)
        >>> out.hypotheses(), out.report.unsampled[0, :3], out.report.exhausted
        ([[[1], [0]]], tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64), tensor([True]))

    Source:
        Shi, Bieber & Sutton, 2020, https://arxiv.org/abs/2002.09067: hindsight Gumbel estimation, there in
        terms of $G = -\log \tau$.
    """

    log_probs: Float64[Tensor, "batch hyps"]
    unsampled: Float64[Tensor, "batch hyps"]
    remaining: Float64[Tensor, " batch"]
    dead_ends: list[list[float]]

    @property
    def exhausted(self) -> Bool[Tensor, " batch"]:
        """True if every hypothesis was drawn."""
        return self.remaining == 0

    def weights(
        self, *, repetitions: int = 10, normalize: bool = False, generator: torch.Generator | None = None
    ) -> Float64[Tensor, "batch hyps"]:
        """The importance weight of each sample; 0 where it is missing.

        Args:
            repetitions: Number of races that the weights are averaged over, at least 1; more reduce noise.
            normalize: True makes the weights of a prompt sum to 1 in every race, and all samples count: less
                variance, and a bias.
            generator: The stream of the races; None is torch's global one.

        Raises:
            ValueError: If `repetitions` is not an integer of at least 1.
        """
        at_least(1).check("SampledMass", "repetitions", repetitions)
        present = self.log_probs > -torch.inf
        met_dead_end = torch.tensor([len(masses) > 0 and not normalize for masses in self.dead_ends])
        ends_race = met_dead_end & ~self.exhausted  # the last sample ends it
        is_last = torch.arange(present.shape[1]) == present.sum(-1, keepdim=True) - 1
        counts = present & ~(ends_race[:, None] & is_last)
        # [batch draws]: the unsampled probability at every draw, with dead ends and the next draw.
        longest = max(map(len, self.dead_ends), default=0)
        dead = [[*masses, *[torch.inf] * (longest - len(masses))] for masses in self.dead_ends]
        dead_ends = torch.tensor(dead, dtype=torch.float64).view(len(dead), longest)
        next_draw = self.remaining.masked_fill(ends_race, torch.inf)[:, None]
        masses = torch.cat([self.unsampled.masked_fill(~present, torch.inf), dead_ends, next_draw], dim=1)
        waits = torch.empty(repetitions, *masses.shape, dtype=torch.float64)
        waits.exponential_(1, generator=generator)
        times = (waits / masses).sum(-1)[..., None]  # [repetitions batch 1]; infinite where nothing remains
        probs = self.log_probs.exp()
        # The limit for a probability too small to represent.
        scaled = probs * torch.where(times.isinf() & (probs == 0), 0.0, times)
        weights = torch.where(scaled < 1e-300, 1 / times, probs / -torch.expm1(-scaled))  # noqa: PLR2004
        weights = weights.masked_fill(~counts, 0.0)
        if normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.mean(0)

    def expectation(
        self,
        values: Float[Tensor, "batch hyps"],
        *,
        repetitions: int = 10,
        normalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> Float64[Tensor, " batch"]:
        """The estimated expectation of a function of the hypothesis. Exact where nothing remains.

        Args:
            values: The function's value for each sample; values of missing samples are ignored.
            repetitions: Number of races, at least 1.
            normalize: True makes the weights of a prompt sum to 1.
            generator: The stream of the races; None is torch's global one.

        Example:
            >>> coin = dk.testing.MarkovModel([[0.25, 0.75], [0.25, 0.75]])
            >>> out = dk.decode(coin, [[0]], dk.UniqueSample(2, seeds=[1]), max_new_tokens=1)
            >>> out.report.expectation(out.tokens[..., 0].double())
            tensor([0.7500], dtype=torch.float64)
        """
        weights = self.weights(repetitions=repetitions, normalize=normalize, generator=generator)
        values = torch.where(weights > 0, values.to(weights), 0.0)
        return (weights * values).sum(-1)
