"""Whether prompts can be taken apart: what of a run treats every one of them by itself."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch.utils._pytree import tree_flatten

from decodekit.core.pytrees import Memory, PromptSelectable


@runtime_checkable
class Splittable(Protocol):
    """A decoder, a processor, a criterion, or what one of them is made of."""

    batch_independent: bool


def whole_part(*parts: object) -> object | None:
    """The first of some parts of a run, or of the parts these are made of, that needs all prompts at once.

    None: there is none, prompts can be taken apart. What is not a `Splittable` does not count.
    """
    for part in parts:
        if isinstance(part, Splittable):
            if not part.batch_independent:
                return part
            inner = whole_part(*_values(part))
            if inner is not None:
                return inner
        elif isinstance(part, Sequence) and part and isinstance(part[0], Splittable):
            inner = whole_part(*part)
            if inner is not None:
                return inner
    return None


def parts_of(*parts: object) -> list[object]:
    """Some parts of a run, and all that these are made of, each before its own parts."""
    found: list[object] = []
    for part in parts:
        if isinstance(part, Splittable):
            found += [part, *parts_of(*_values(part))]
        elif isinstance(part, Sequence) and not isinstance(part, str):
            found += parts_of(*part) if part and isinstance(part[0], Splittable) else []
        elif hasattr(part, "capturable") or isinstance(part, torch.Generator):
            found.append(part)
    return found


def can_be_split(memory: Memory) -> bool:
    """Whether some prompts can go on with a memory without the others."""
    leaves = tree_flatten(memory, is_leaf=lambda node: isinstance(node, PromptSelectable))[0]
    return all(leaf.batch_independent for leaf in leaves if isinstance(leaf, Splittable))


def _values(part: object) -> list[object]:
    return list(vars(part).values()) if hasattr(part, "__dict__") else []
