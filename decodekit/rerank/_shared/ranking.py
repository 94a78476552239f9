"""The same hypotheses in another order."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from decodekit.core.result import Decoded


def rank(out: Decoded, worth: Sequence[Sequence[tuple[float, ...]]]) -> list[list[int]]:
    """Every prompt's valid hypotheses, best first.

    Among equals those stand first that the model finds more likely, then those whose ids are smaller, so that
    the order in which hypotheses are given does not decide.

    Args:
        out: The hypotheses.
        worth: What each valid one is worth; of several numbers the first that differs decides.
    """
    log_probs, ids = out.log_prob.tolist(), out.hypotheses()
    places = [_places(valid) for valid in out.valid.tolist()]
    order = []
    for row, own in enumerate(worth):
        keys = [
            ([-number for number in own[number_of]], -log_probs[row][place], ids[row][number_of])
            for number_of, place in enumerate(places[row])
        ]
        order.append(sorted(range(len(keys)), key=keys.__getitem__))
    return order


def rank_alone(out: Decoded) -> list[list[int]]:
    """Every prompt's valid hypotheses, the likeliest first."""
    return rank(out, [[()] * sum(valid) for valid in out.valid.tolist()])


def reorder(
    out: Decoded, order: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], report: object
) -> Decoded:
    """The result with its hypotheses in another order, those that are not valid last.

    Args:
        out: The result.
        order: For every prompt which of its valid hypotheses stands at each place.
        scores: What each valid hypothesis is worth, in the old order.
        report: What was found out.
    """
    batch, hyps = out.valid.shape
    index = torch.zeros(batch, hyps, dtype=torch.long)
    score = torch.full((batch, hyps), -torch.inf)
    for row, valid in enumerate(out.valid.tolist()):
        places = _places(valid)
        missing = [place for place in range(hyps) if not valid[place]]
        index[row] = torch.tensor([*(places[number] for number in order[row]), *missing], dtype=torch.long)
        score[row, : len(places)] = torch.tensor([scores[row][number] for number in order[row]])
    ordered = out.in_order(index.to(out.tokens.device))
    return replace(ordered, score=score.to(out.score.device)).with_report(report)


def valid_numbers(out: Decoded, numbers: Shaped[Tensor, "batch hyps"]) -> list[list[float]]:
    """The numbers of every prompt's valid hypotheses."""
    rows = zip(numbers.tolist(), out.valid.tolist(), strict=True)
    return [[number for number, is_valid in zip(*row, strict=True) if is_valid] for row in rows]


def _places(valid: Sequence[bool]) -> list[int]:
    return [place for place, is_valid in enumerate(valid) if is_valid]
