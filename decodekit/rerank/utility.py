"""The contract of utilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float64
from torch import Tensor


class Utility(ABC):
    """A measure of a hypothesis under the assumption that a reference is right; larger is better.

    Attributes:
        ids: True: it reads lists of token ids, end ids included. False: it reads texts. None: texts if the
            results have them, else ids.
    """

    ids: bool | None = False

    @abstractmethod
    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        """Return the utility of every hypothesis under every reference.

        Args:
            hypotheses: Texts or lists of ids, of one prompt, no two the same.
            references: Likewise.

        Returns:
            Finite numbers, in double precision.
        """


class AggregableUtility(Utility):
    """A utility of the mean reference, in place of the mean over references.

    The cost is linear in the number of texts in place of quadratic.
    """

    @abstractmethod
    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        """Return the utility of every hypothesis under the mean of the references.

        Args:
            hypotheses: Texts or lists of ids, of one prompt, no two the same.
            references: Likewise.
            weights: Of each reference in the mean; they sum to 1.
        """
