"""Valid hypotheses of a result: reading them, ranking them, and returning them in another order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.core.validation import check_type
from decodekit.errors import DecodekitError

Report = TypeVar("Report")
Value = TypeVar("Value")


def check_decoded(who: str, name: str, out: object) -> None:
    """Raise a `TypeError` unless an argument is a `Decoded`."""
    check_type(who, name, out, Decoded, "what decode returns")


def read_hypotheses(who: str, out: Decoded, *, ids: bool | None) -> list[list[Any]]:
    """Return every prompt's valid hypotheses, as texts or as ids; `ids=None`: as texts if there are any."""
    if ids or (ids is None and out.texts is None):
        return out.hypotheses()
    if out.texts is None:
        raise DecodekitError(
            f"{who}: texts need a tokenizer, and the model had none. Use HFModel(model, tokenizer), or "
            "read ids: ids=True or texts=False."
        )
    return [list(texts) for texts in out.texts]


def hashable(hypothesis: str | Sequence[int]) -> str | tuple[int, ...]:
    """Return a text, or a list of ids as a tuple."""
    return hypothesis if isinstance(hypothesis, str) else tuple(hypothesis)


def valid_values(out: Decoded, values: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """Return the values of every prompt's valid hypotheses, given a value for each hypothesis."""
    rows = zip(values, out.valid.tolist(), strict=True)
    return [[value for value, is_valid in zip(*row, strict=True) if is_valid] for row in rows]


def rank(out: Decoded, keys: Sequence[Sequence[tuple[float, ...]]]) -> list[list[int]]:
    """Return the order of every prompt's valid hypotheses by their keys, greatest first.

    Ties go to the likelier hypothesis, then to smaller ids, so the order of the input has no influence.
    """
    log_probs, ids = valid_values(out, out.log_prob.tolist()), out.hypotheses()
    order = []
    for row in zip(keys, log_probs, ids, strict=True):
        hyps = zip(*row, strict=True)
        sort_keys = [([-number for number in key], -log_prob, tokens) for key, log_prob, tokens in hyps]
        order.append(sorted(range(len(sort_keys)), key=sort_keys.__getitem__))
    return order


def reorder(
    out: Decoded, order: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], report: Report
) -> Decoded[Report]:
    """Return the result with its valid hypotheses in a new order, and new scores, given in the old order."""
    index = out.valid.cpu().long().argsort(dim=1, descending=True, stable=True)  # invalid ones stand last
    for row, numbers in enumerate(order):
        index[row, : len(numbers)] = index[row, torch.tensor(numbers, dtype=torch.long)]
    ordered = out.in_order(index.to(out.tokens.device))
    return replace(ordered, score=in_order(out, order, scores)).with_report(report)


def in_order(out: Decoded, order: Sequence[Sequence[int]], numbers: Sequence[Sequence[float]]) -> Tensor:
    """Return numbers of the valid hypotheses in a new order; minus infinity for invalid ones."""
    ordered = torch.full(out.valid.shape, -torch.inf)
    for row, places in enumerate(order):
        ordered[row, : len(places)] = torch.tensor([numbers[row][number] for number in places])
    return ordered.to(out.score.device)
