"""The contract of utilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float64
from torch import Tensor


class Utility(ABC):
    """How good a hypothesis is if a reference is right. The larger, the better.

    Attributes:
        ids: True: it reads lists of token ids, those that end a text included. False: it reads texts.
            None: texts where the results have them, else ids.
    """

    ids: bool | None = False

    @abstractmethod
    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        """The utility of every hypothesis by every reference.

        Args:
            hypotheses: Texts or lists of ids, of one prompt, no two the same.
            references: Likewise.

        Returns:
            Finite numbers, in double precision.
        """


class AggregableUtility(Utility):
    """A utility that can be asked for the mean reference instead of the mean over references.

    The cost is linear in the number of texts instead of quadratic.
    """

    @abstractmethod
    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        """The utility of every hypothesis by the references' mean.

        Args:
            hypotheses: Texts or lists of ids, of one prompt, no two the same.
            references: Likewise.
            weights: What each reference counts in the mean; they sum to 1.
        """
