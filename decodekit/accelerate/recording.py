"""A function of tensors that is run once, recorded, and from then on replayed on the same memory.

What Python decides on the way (which branch, which length) is decided once. A replay reads and writes the
very tensors that the recorded run did, so whoever wants other values in them writes them there before.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from decodekit.errors import DecodekitError

Result = TypeVar("Result")


class CannotRecordError(DecodekitError):
    """Something reads the device, or has a shape that depends on what it computes."""


class Recording(ABC, Generic[Result]):
    """A function without arguments, which is called instead of it.

    Args:
        function: Computes tensors from tensors that it holds, and may write to them. It must do the same
            whatever is in them.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function

    @abstractmethod
    def __call__(self) -> Result:
        """What the function returns, in inference mode; a replay, once it was recorded.

        Raises:
            CannotRecordError: If it cannot be recorded.
        """
