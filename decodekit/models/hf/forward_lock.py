"""One forward pass of a model at a time, because parts of it may be changed for the length of one."""

from threading import Lock, RLock
from weakref import WeakKeyDictionary

from torch import nn

_all = Lock()
_locks: "WeakKeyDictionary[nn.Module, RLock]" = WeakKeyDictionary()


def lock_of(model: nn.Module) -> "RLock":
    """What a thread holds while it runs a model: always the same for the same model."""
    with _all:
        return _locks.setdefault(model, RLock())
