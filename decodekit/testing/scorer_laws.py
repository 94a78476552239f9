"""What must hold for every scorer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from decodekit.scorers.base import Scorer
from decodekit.testing.checking import check, repeatable


def check_scorer(scorer: Scorer, *, max_examples: int = 200) -> None:
    """Raises unless a scorer is elementwise, and its bound holds for every continuation.

    Args:
        scorer: What to check.
        max_examples: Random cases.

    Raises:
        AssertionError: If a law does not hold; hypothesis says for which case.

    Example:
        >>> check_scorer(dk.LengthPenalty(0.7))
    """
    log_prob = st.floats(-1e3, 0, width=32)

    @repeatable(max_examples)
    @given(st.lists(st.tuples(log_prob, st.integers(1, 50)), min_size=1), log_prob, st.integers(0, 20))
    def laws(hypotheses: list[tuple[float, int]], added: float, longer: int) -> None:
        log_probs = torch.tensor([log_prob for log_prob, _ in hypotheses])
        lengths = torch.tensor([length for _, length in hypotheses])
        scores = scorer(log_probs, lengths)
        one_by_one = [scorer(log_probs[i : i + 1], lengths[i : i + 1]) for i in range(len(lengths))]
        check(torch.equal(scores, torch.cat(one_by_one)), f"{scorer!r} must be elementwise")
        for most in (60, 80):
            bound = scorer.bound(log_probs, lengths, most)
            apart = [
                scorer.bound(*pair, most) for pair in zip(log_probs[:, None], lengths[:, None], strict=True)
            ]
            check(torch.equal(bound, torch.cat(apart)), f"{scorer!r} must be elementwise in its bound")
            greater = scorer.bound(log_probs / 2, lengths, most)
            check(
                ((greater >= bound - 1e-5 * bound.abs()) | (greater == bound)).all(),
                f"{scorer!r}: the greater sum must not have the lower bound, got {greater} for {bound}",
            )
            for continued in (
                scorer(log_probs + added, (lengths + longer).clamp(max=most)),
                scorer(log_probs, lengths),
                scorer(log_probs, torch.full_like(lengths, most)),
            ):
                slack = 1e-5 * continued.abs()  # rounding of the power and of the sum
                check(
                    (continued <= bound + slack).all(),
                    f"{scorer!r}: bound {bound} must not be below the score {continued} of a continuation",
                )

    laws()
