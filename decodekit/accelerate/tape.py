"""Operations of torch, written down and done again."""

from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any, Generic, cast, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from decodekit.accelerate.recording import CannotRecordError, Recording, Result
from decodekit.core.device import is_recorded

Call = Any  # a function or an operation of torch

# Calls before a tape is recorded: recording costs some steps' worth, which a short run would not earn back.
CALLS_BEFORE_TAPE = 3
# They copy to the host, past all that counts operations.
_COPIES_TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu, Tensor.__repr__)
# So they do with tensors inside of what they are given.
_MAKE_TENSORS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


@final
class Tape(Recording[Result]):
    """A recording of torch's operations, for any device: a replay does nothing else, so no Python of a model.

    The same operations on the same memory in the same order: a replay gives the very bits of a run. What it
    returns is new at every call.

    Example:
        >>> number, tape = torch.tensor(1), Tape(lambda: number.mul_(2) + 1)
        >>> [int(tape()) for _ in range(6)]
        [3, 5, 9, 17, 33, 65]
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        super().__init__(function)
        self._calls = 0
        self._replay: Callable[[], Result] | None = None

    @torch.inference_mode()
    def __call__(self) -> Result:
        """What the function returns."""
        if self._replay is not None:
            return self._replay()
        self._calls += 1
        if self._calls <= CALLS_BEFORE_TAPE:
            return self._function()
        writer, before = _Writer(), is_recorded.set(True)
        try:
            with _NoCopiesToHost(writer), writer:
                result = self._function()
        except RuntimeError as error:
            if writer.refusal is None:
                raise
            raise writer.refusal from error  # of which TorchScript makes an error of its own
        finally:
            is_recorded.reset(before)
        if writer.refusal is not None:  # and somebody went on nevertheless
            raise writer.refusal
        self._replay = writer.replay(result)
        return result


class _NoCopiesToHost(TorchFunctionMode):
    """Refuses what reads a tensor without an operation of torch."""

    def __init__(self, writer: "_Writer") -> None:
        super().__init__()
        self._writer = writer

    def __torch_function__(  # torch's signature
        self, function: Call, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        del types
        if function in _COPIES_TO_HOST:
            raise self._writer.refused(f"nothing may read tensors, and Tensor.{function.__name__} does.")
        given = kwargs or {}
        self._writer.streams += [one for one in given.values() if isinstance(one, torch.Generator)]
        if function in _MAKE_TENSORS and any(map(_lists_tensors, [*args, *given.values()])):
            raise self._writer.refused(f"nothing may read tensors, and {function.__name__} does with a list.")
        return function(*args, **given)


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation, as a line of Python; what it did not compute is given by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lines: list[tuple[str, set[str]]] = []  # and the names in it
        self._names: dict[int, str] = {}
        self._given: dict[str, object] = {}
        self._alive: list[object] = []  # what is gone could lend its identity to another
        self._outside: set[int] = set()  # the memory of what it did not compute
        self._inside: set[int] = set()  # and of what it did
        self.streams: list[torch.Generator] = []  # that were drawn from, as Python has them
        self.refusal: CannotRecordError | None = None

    def refused(self, why: str) -> CannotRecordError:
        """The error to raise, which is remembered in case somebody catches it."""
        self.refusal = CannotRecordError(f"Tape: {why}")
        return self.refusal

    def __torch_dispatch__(  # torch's signature
        self, function: Call, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        del types
        kwargs = kwargs or {}
        if _reads(function):
            raise self.refused(f"nothing may read tensors, and {function} does.")
        if _has_shape_of_data(function, args):
            raise self.refused(f"shapes must not depend on data, and that of {function} does.")
        if any(isinstance(value, torch.UntypedStorage) for value in args):  # whose memory has no name
            raise self.refused(f"memory must not be taken from a tensor, and {function} does.")
        if function is torch.ops.aten.lift_fresh.default:
            return self._fresh(args[0])
        result = function(*args, **kwargs)
        results = list(result) if isinstance(result, tuple | list) else [result]
        known = all(id(one) in self._names or not isinstance(one, Tensor) for one in results)
        if known and not function._schema.is_mutable and results != [None]:  # noqa: SLF001 - where torch says so
            return result
        used: set[str] = set()
        given = [self._written(value, used) for value in args]
        given += [f"{name}={self._written(value, used)}" for name, value in kwargs.items()]
        call = f"{self._give(function)}({', '.join(given)})"
        new = [self._new(one, used) for one in results]
        left = f"[{', '.join(new)}]" if isinstance(result, tuple | list) else new[0]
        self._lines.append((f"{left} = {call}", used))
        return result

    def _fresh(self, one: Tensor) -> Tensor:
        """What Python has just made of numbers: every replay makes it anew, as somebody may write to it."""
        if id(one) not in self._names:
            used: set[str] = set()
            call = f"{self._give(torch.ops.aten.clone.default)}({self._give(one.clone())})"
            self._lines.append((f"{self._new(one, used)} = {call}", used))
        return one

    def replay(self, result: Result) -> Callable[[], Result]:
        """What was written down, as a function; it returns what was computed then as `result`."""
        # Who holds one: the list of streams, and whoever made it. The loop and the call hold it too.
        for stream in self.streams:
            if getrefcount(stream) - self.streams.count(stream) <= 2:  # noqa: PLR2004
                raise self.refused("a random stream must go on, and one is made anew at every call.")
        leaves, spec = tree_flatten(result)
        used: set[str] = set()
        self._lines.append((f"return [{', '.join(self._written(leaf, used) for leaf in leaves)}]", used))
        lines, later = [], set(self._given)
        for line, names in reversed(self._lines):
            dead = sorted(names - later)  # nobody reads them after this line, and their memory is free
            lines.append(f"{line}; del {', '.join(dead)}" if dead and not line.startswith("return") else line)
            later |= names
        source = "def run():\n" + "".join(f"    {line}\n" for line in reversed(lines))
        exec(source, self._given)  # noqa: S102 - written above, of nothing but names and numbers
        run = self._given.pop("run")  # else the function would hold itself, and its tensors with it
        return _Replay(cast("Callable[[], list[Any]]", run), spec)

    def _written(self, value: object, used: set[str]) -> str:
        """A value in the text of a line."""
        if isinstance(value, Tensor):
            name = self._names.get(id(value)) or self._give(value)
            used.add(name)
            return name
        if isinstance(value, tuple | list):
            return f"[{', '.join(self._written(one, used) for one in value)}]"
        plain = value is None or type(value) in {bool, int, str}  # others (infinity, a device) by name
        return repr(value) if plain else self._give(value)

    def _new(self, one: object, used: set[str]) -> str:
        """The name of a result."""
        if not isinstance(one, Tensor) or id(one) in self._names:
            return "_"
        self._alive.append(one)
        if (memory := _memory(one)) not in self._outside:
            self._inside.add(memory)
        name = self._names[id(one)] = f"t{len(self._names)}"
        used.add(name)
        return name

    def _give(self, value: object) -> str:
        """The name of what was there before."""
        name = self._names.get(id(value))
        if name is None:
            if isinstance(value, Tensor):
                if (memory := _memory(value)) in self._inside:
                    raise self.refused("tensors must be made by torch's operations, and a view is not.")
                self._outside.add(memory)
            self._alive.append(value)
            name = self._names[id(value)] = f"given_{len(self._given)}"
            self._given[name] = value
        return name


def _memory(tensor: Tensor) -> int:
    """Where its numbers are; the tensor's own identity where that is no single place."""
    plain = tensor.layout == torch.strided and tensor.numel() > 0
    return tensor.untyped_storage().data_ptr() if plain else -id(tensor)


def _lists_tensors(given: object) -> bool:
    """Whether it is a list, however deep, with tensors among its numbers."""
    leaves = tree_flatten(given)[0] if isinstance(given, list | tuple) else []
    return any(isinstance(leaf, Tensor) for leaf in leaves)


def _reads(function: Call) -> bool:
    """Whether it returns what it finds in a tensor, as a number or a truth value."""
    kinds = {str(value.type) for value in function._schema.returns}  # noqa: SLF001 - where torch says so
    is_tagged = torch.Tag.data_dependent_output in function.tags
    return is_tagged or not kinds.isdisjoint({"bool", "number", "Scalar"})


def _has_shape_of_data(function: Call, args: Sequence[Any]) -> bool:
    if function is torch.ops.aten.index.Tensor:  # whose shape depends on data where it is given truth values
        return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
    return torch.Tag.dynamic_output_shape in function.tags


class _Replay(Generic[Result]):
    """Runs what was written, and gives its results the structure that they had."""

    def __init__(self, run: Callable[[], list[Any]], spec: TreeSpec) -> None:
        self._run, self._spec = run, spec

    def __call__(self) -> Result:
        return cast("Result", tree_unflatten(self._run(), self._spec))
