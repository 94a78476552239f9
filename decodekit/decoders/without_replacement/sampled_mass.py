"""What samples that were drawn without replacement say about the whole distribution."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledMass:
    r"""What samples without replacement cover: `UniqueSample` leaves it in `Decoded.report`.

    Probabilities are those of what was sampled from, the model after the processors. From them follow
    averages over *all* texts: a text of probability $p_i$ counts $p_i / (1 - e^{-p_i \tau})$ times, where
    $\tau$ is when the next text would have come in a race that ends in the order of the samples,
    $\tau = \sum_{j=1}^{k+1} E_j / m_j$ with the masses $m_j$ that were left and standard exponential $E_j$.
    Texts that cannot end take part in the race. Where one was met, who comes next after the last sample may
    be another; there $\tau$ is when the last sample came, which itself does not count.

    Attributes:
        log_probs: The log-probability of each sample, in nats; minus infinity where it is missing.
        left: The probability that was left when each sample was drawn: 1 for the first, 0 where it is
            missing.
        remaining: What is left now.
        dead_ends: For every prompt what was left whenever a text was drawn that the processors did not let
            end. Such texts are set aside.

    Example:
        >>> coin = dk.testing.MarkovModel([[0.25, 0.75], [0.25, 0.75]])
        >>> out = dk.decode(coin, [[0]], dk.UniqueSample(9, seeds=[1]), max_new_tokens=1)
        >>> out.hypotheses(), out.report.left[0, :3], out.report.exhausted
        ([[[1], [0]]], tensor([1.0000, 0.2500, 0.0000], dtype=torch.float64), tensor([True]))

    Source:
        Shi, Bieber & Sutton, 2020, https://arxiv.org/abs/2002.09067: hindsight Gumbel estimation. With
        $G = -\log \tau$ it is said in Gumbel numbers there.
    """

    log_probs: Float64[Tensor, "batch hyps"]
    left: Float64[Tensor, "batch hyps"]
    remaining: Float64[Tensor, " batch"]
    dead_ends: list[list[float]]

    @property
    def exhausted(self) -> Bool[Tensor, " batch"]:
        """Whether no text is left that has not been drawn."""
        return self.remaining == 0

    def weights(
        self, *, repetitions: int = 10, normalize: bool = False, generator: torch.Generator | None = None
    ) -> Float64[Tensor, "batch hyps"]:
        """How often each sample counts in an average over all texts; 0 where it is missing.

        Args:
            repetitions: Races over which the weights are averaged, at least 1; more are less noisy.
            normalize: Whether the weights of a prompt sum to 1 in every race, and all samples count: less
                noisy, and no longer unbiased.
            generator: The stream of the races; None is torch's global one.

        Raises:
            ValueError: If `repetitions` is not an integer of at least 1.
        """
        if type(repetitions) is not int or repetitions < 1:
            raise ValueError(
                f"SampledMass: repetitions must be an integer of at least 1, got {repetitions!r}."
            )
        present = self.log_probs > -torch.inf
        met_dead_end = torch.tensor([len(masses) > 0 and not normalize for masses in self.dead_ends])
        marks_time = met_dead_end & ~self.exhausted  # the last sample does
        is_last = torch.arange(present.shape[1]) == present.sum(-1, keepdim=True) - 1
        counts = present & ~(marks_time[:, None] & is_last)
        # [batch draws]: what was left at every draw, dead ends and the one to come included.
        longest = max(map(len, self.dead_ends), default=0)
        dead = [[*masses, *[torch.inf] * (longest - len(masses))] for masses in self.dead_ends]
        pruned_bound = torch.tensor(dead, dtype=torch.float64).view(len(dead), longest)
        to_come = self.remaining.masked_fill(marks_time, torch.inf)[:, None]
        masses = torch.cat([self.left.masked_fill(~present, torch.inf), pruned_bound, to_come], dim=1)
        waits = torch.empty(repetitions, *masses.shape, dtype=torch.float64)
        waits.exponential_(1, generator=generator)
        times = (waits / masses).sum(-1)[..., None]  # [repetitions batch 1]; infinite where nothing is left
        probs = self.log_probs.exp()
        # For texts too unlikely for a number of their own, the limit of the same.
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
        """The expectation of a function of the text, estimated from the samples.

        Exact where nothing is left.

        Args:
            values: The function's value for each sample; those of missing ones do not count.
            repetitions: As in `weights`.
            normalize: As in `weights`.
            generator: As in `weights`.

        Example:
            >>> coin = dk.testing.MarkovModel([[0.25, 0.75], [0.25, 0.75]])
            >>> out = dk.decode(coin, [[0]], dk.UniqueSample(2, seeds=[1]), max_new_tokens=1)
            >>> out.report.expectation(out.tokens[..., 0].double())
            tensor([0.7500], dtype=torch.float64)
        """
        weights = self.weights(repetitions=repetitions, normalize=normalize, generator=generator)
        counted = torch.where(weights > 0, values.to(weights), 0.0)
        return (weights * counted).sum(-1)
