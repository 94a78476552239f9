"""The laws of scorers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from decodekit.scorers.base import Scorer
from decodekit.testing.checking import check, name_of, repeatable


def check_scorer(scorer: Scorer, *, max_examples: int = 200) -> None:
    """Check that a scorer is elementwise, and that its bound holds for every continuation.

    Args:
        scorer: The scorer.
        max_examples: Number of random cases.

    Raises:
        AssertionError: If a law does not hold; the message has the law and the case.

    Example:
        >>> check_scorer(dk.LengthPenalty(0.7))
    """
    who, log_prob = f"check_scorer: {name_of(scorer)}", st.floats(-1e3, 0, width=32)

    @repeatable(max_examples)
    @given(st.lists(st.tuples(log_prob, st.integers(1, 50)), min_size=1), log_prob, st.integers(0, 20))
    def laws(hypotheses: list[tuple[float, int]], added: float, longer: int) -> None:
        log_probs = torch.tensor([log_prob for log_prob, _ in hypotheses])
        lengths = torch.tensor([length for _, length in hypotheses])
        pairs = list(zip(log_probs[:, None], lengths[:, None], strict=True))
        scores, alone = scorer(log_probs, lengths), torch.cat([scorer(*pair) for pair in pairs])
        check(torch.equal(scores, alone), f"{who} must be elementwise", together=scores, alone=alone)
        for max_length in (60, 80):
            bound = scorer.bound(log_probs, lengths, max_length)
            alone = torch.cat([scorer.bound(*pair, max_length) for pair in pairs])
            law = f"{who} must be elementwise in its bound"
            check(torch.equal(bound, alone), law, together=bound, alone=alone)
            higher = scorer.bound(log_probs / 2, lengths, max_length)
            law = f"{who} must have a bound that does not fall as the sum rises"
            rises = (higher >= bound - 1e-5 * bound.abs()) | (higher == bound)
            check(rises.all(), law, bound=bound, bound_of_half_the_sum=higher)
            for continued in (
                scorer(log_probs + added, (lengths + longer).clamp(max=max_length)),
                scorer(log_probs, lengths),
                scorer(log_probs, torch.full_like(lengths, max_length)),
            ):
                holds = bound >= continued - 1e-5 * continued.abs()  # rounding of the power and of the sum
                law = f"{who}: its bound must not be below the score of a continuation"
                check(holds.all(), law, bound=bound, score=continued)

    laws()
