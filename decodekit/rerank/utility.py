"""Utilities: the contract, and any function of two texts as one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from decodekit.core.validation import CheckedOptions, shown
from decodekit.errors import DecodekitError


class Utility(CheckedOptions, ABC):
    """A measure of a hypothesis under the assumption that a reference is right; larger is better.

    Attributes:
        ids: True: the utility reads lists of token ids, end ids included. False: texts. None: texts if the
            results have them, else ids.
    """

    ids: bool | None = False

    @abstractmethod
    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        """Return the utility of every hypothesis under every reference.

        The arguments are distinct texts or lists of ids of one prompt. The result is finite and float64.
        """


class AggregableUtility(Utility):
    """A utility of the mean reference, in place of the mean utility over references.

    The cost is linear in the number of texts instead of quadratic.
    """

    @abstractmethod
    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        """Return the utility of every hypothesis under the mean of the references.

        The weights of the references sum to 1; the other arguments are those of `pairwise`.
        """


@final
@dataclass(frozen=True)
class UtilityFunction(Utility):
    """Prefers hypotheses by a function of a hypothesis and a reference.

    Args:
        function: Pure function from a hypothesis and a reference to a finite number, larger is better. Called
            once for every pair of distinct texts.
        ids: True: the function takes lists of token ids, end ids included. False: texts. None: texts if the
            results have them, else ids.

    Raises:
        TypeError: If `function` cannot be called.
        DecodekitError: In a run, if the function does not return a finite number.

    Example:
        >>> same_length = UtilityFunction(lambda hypothesis, reference: len(hypothesis) == len(reference))
        >>> same_length.pairwise(["a", "bc"], ["de"])
        tensor([[0.],
                [1.]], dtype=torch.float64)

    Hugging Face:
        None.
    """

    function: Callable[[Any, Any], float]
    ids: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"UtilityFunction: function must be callable, got {shown(self.function)}.")

    @override
    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        rows = [[self._call(hypothesis, reference) for reference in references] for hypothesis in hypotheses]
        return torch.tensor(rows, dtype=torch.float64).view(len(hypotheses), len(references))

    def _call(self, hypothesis: object, reference: object) -> float:
        given = self.function(hypothesis, reference)
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DecodekitError(
                f"UtilityFunction: the function must return a finite number, got {shown(given)} for "
                f"{shown(hypothesis)} and {shown(reference)}."
            )
        return value
