"""What `generate` returns, compared field for field."""

from typing import Any

import torch
from torch import Tensor


def differences(expected: Any, actual: Any) -> list[str]:  # noqa: ANN401 - ids, or an output class of transformers
    """The names of what differs; none where all is the same."""
    if isinstance(expected, Tensor):
        return [] if isinstance(actual, Tensor) and torch.equal(expected, actual) else ["sequences"]
    if type(expected) is not type(actual):
        return ["type"]
    if list(expected.keys()) != list(actual.keys()):
        return ["fields"]
    rows = expected.get("beam_indices")
    return [name for name in expected if not _same(name, expected[name], actual[name], rows)]


def _same(name: str, expected: Any, actual: Any, rows: Tensor | None) -> bool:  # noqa: ANN401
    """Whether a field is the same; scores and logits of beams where the returned hypotheses went through.

    Of the other rows some are no beam: where there are fewer strings than beams, theirs fills them with
    copies and worse, and goes on with them when no beam is left; nothing of that is ever chosen.
    """
    searched = rows is not None
    if name in {"cache", "past_key_values"}:
        lengths = expected.get_seq_length(), actual.get_seq_length()
        return type(actual) is type(expected) and (
            lengths[0] == lengths[1] or (searched and lengths[0] > lengths[1])
        )
    if isinstance(expected, tuple):
        if len(expected) < len(actual) or (not searched and len(expected) > len(actual)):
            return False
        if rows is not None:
            chosen = [column[column >= 0] for column in rows.T]
            expected, actual = (
                [step[column] for step, column in zip(steps, chosen, strict=False)]
                for steps in (expected, actual)
            )
        return all(map(_close, expected, actual))
    return _close(expected, actual)


def _close(expected: Tensor | None, actual: Tensor | None) -> bool:
    """Ids exactly; scores as float32 has them, where the model's float64 logits differ in their last bits."""
    if expected is None or actual is None:
        return expected is actual
    if not expected.is_floating_point():
        return torch.equal(expected, actual)
    expected, actual = expected.float(), actual.float()  # theirs are the model's double after guidance
    same_bans = torch.equal(expected == -torch.inf, actual == -torch.inf)
    finite = expected > -torch.inf
    return same_bans and torch.allclose(expected[finite], actual[finite], rtol=1e-4, atol=1e-4)
