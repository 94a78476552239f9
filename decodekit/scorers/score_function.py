"""Any function of log-probability and length as a scorer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from decodekit.core.validation import shown
from decodekit.errors import DecodekitError
from decodekit.scorers.base import AnyLengths, AnyValues, Scorer


@final
@dataclass(frozen=True)
class ScoreFunction(Scorer):
    """Ranks hypotheses by a function of their log-probability and length.

    Args:
        function: Elementwise, from sums in nats and lengths, tensors of one shape, to scores.
        upper: Function from sums, lengths and `max_length` to an upper bound, as in `Scorer.bound`. None: no
            bound, so stopping is never proved.

    Raises:
        TypeError: If one of them cannot be called.
        DecodekitError: In a run, if one does not return a tensor of the given shape.

    Example:
        >>> square = ScoreFunction(lambda log_probs, lengths: -log_probs**2 / lengths)
        >>> square(torch.tensor([-3.0]), torch.tensor([2]))
        tensor([-4.5000])

    Hugging Face:
        None.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    upper: Callable[[Tensor, Tensor, int], Tensor] | None = None

    batch_independent = True

    def __post_init__(self) -> None:
        if not callable(self.function) or not (self.upper is None or callable(self.upper)):
            raise TypeError(
                f"ScoreFunction: function and upper must be callable, got {shown(self.function)} and "
                f"{shown(self.upper)}."
            )

    @override
    def __call__(self, log_probs: AnyValues, lengths: AnyLengths) -> AnyValues:
        return _checked("function", self.function(log_probs, lengths), log_probs)

    @override
    def bound(self, log_probs: AnyValues, lengths: AnyLengths, max_length: int) -> AnyValues:
        if self.upper is None:
            return torch.full_like(log_probs, torch.inf)
        return _checked("upper", self.upper(log_probs, lengths, max_length), log_probs)


def _checked(name: str, result: object, log_probs: AnyValues) -> AnyValues:
    if not isinstance(result, Tensor) or result.shape != log_probs.shape:
        given = tuple(result.shape) if isinstance(result, Tensor) else result
        raise DecodekitError(
            f"ScoreFunction: {name} must return a tensor of the shape {tuple(log_probs.shape)} of its "
            f"argument, got {shown(given)}."
        )
    return result.to(log_probs.dtype)
