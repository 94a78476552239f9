"""Recording and replay of torch operations.

A recording runs a function of tensors once and from then on repeats its operations on the same memory.
Python's decisions (a branch, a length) are recorded, not repeated. A replay reads and writes the tensors of
the recorded run: the caller writes new inputs into these tensors before it.
"""

from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from decodekit.core.device import is_recorded
from decodekit.errors import DecodekitError

Result = TypeVar("Result")
Operation = Any  # a function or an operation of torch
Keywords = dict[str, Any]

# Plain calls before the recorded one: recording takes as long as several steps, too much for a short run.
CALLS_BEFORE_TAPE = 3
# They copy to the host without an operation that a dispatch mode sees.
_COPIES_TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu, Tensor.__repr__)
# So do these if their argument is a list with tensors in it.
_CONSTRUCTORS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


class CannotRecordError(DecodekitError):
    """The function reads the device, or has a shape that depends on data."""


@final
class Tape(Generic[Result]):
    """A recording of torch's operations, for any device: a replay runs them without the Python around them.

    The same operations run on the same memory in the same order, so a replay gives the same bits. Every call
    returns new tensors.

    Args:
        function: Computes tensors from tensors that it holds, and may write to them. It must run the same
            operations for all values in them.

    Example:
        >>> number, tape = torch.tensor(1), Tape(lambda: number.mul_(2) + 1)
        >>> [int(tape()) for _ in range(6)]
        [3, 5, 9, 17, 33, 65]
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._calls = 0
        self._replay: Callable[[], Result] | None = None

    @torch.inference_mode()
    def __call__(self) -> Result:
        """Call the function, in inference mode, or replay it. Raises if it cannot be recorded."""
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
            raise writer.refusal from error  # TorchScript wraps it in an error of its own
        finally:
            is_recorded.reset(before)
        if writer.refusal is not None:  # the function has caught it
            raise writer.refusal
        self._replay = writer.replay(result)
        return result


class _NoCopiesToHost(TorchFunctionMode):
    """Refuses functions that read a tensor without an operation of torch."""

    def __init__(self, writer: "_Writer") -> None:
        super().__init__()
        self._writer = writer

    def __torch_function__(
        self, function: Operation, types: object, args: Sequence[Any] = (), kwargs: Keywords | None = None
    ) -> Any:  # noqa: ANN401 - torch's signature
        del types
        if function in _COPIES_TO_HOST:
            raise self._writer.refuse(f"Tensor.{function.__name__} reads a tensor.")
        named = kwargs or {}
        self._writer.generators += [value for value in named.values() if isinstance(value, torch.Generator)]
        if function in _CONSTRUCTORS and any(map(_is_list_of_tensors, [*args, *named.values()])):
            raise self._writer.refuse(f"{function.__name__} reads a list of tensors.")
        return function(*args, **named)


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operation as a line of Python. Tensors that no line has computed are inputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lines: list[tuple[str, set[str]]] = []  # a line, and the names of the tensors in it
        self._names: dict[int, str] = {}  # by identity
        self._inputs: dict[str, object] = {}
        self._alive: list[object] = []  # a freed object could lend its identity to another
        self._input_memory: set[int] = set()
        self._computed_memory: set[int] = set()
        self.generators: list[torch.Generator] = []  # the generators that Python has passed
        self.refusal: CannotRecordError | None = None

    def refuse(self, reason: str) -> CannotRecordError:
        """The error to raise; it is remembered in case the function catches it."""
        self.refusal = CannotRecordError(f"Tape: {reason}")
        return self.refusal

    def __torch_dispatch__(
        self, function: Operation, types: object, args: Sequence[Any] = (), kwargs: Keywords | None = None
    ) -> Any:  # noqa: ANN401 - torch's signature
        del types
        kwargs = kwargs or {}
        if _reads_tensors(function):
            raise self.refuse(f"{function} reads a tensor.")
        if _has_shape_of_data(function, args):
            raise self.refuse(f"the shape of the result of {function} depends on data.")
        if any(isinstance(value, torch.UntypedStorage) for value in args):  # it has no name
            raise self.refuse(f"{function} uses the memory of a tensor directly.")
        if function is torch.ops.aten.lift_fresh.default:
            return self._write_constant(args[0])
        result = function(*args, **kwargs)
        results = list(result) if isinstance(result, tuple | list) else [result]
        known = all(id(value) in self._names or not isinstance(value, Tensor) for value in results)
        if known and not function._schema.is_mutable and results != [None]:  # noqa: SLF001 - torch's only name
            return result
        used: set[str] = set()
        arguments = [self._source(value, used) for value in args]
        arguments += [f"{name}={self._source(value, used)}" for name, value in kwargs.items()]
        call = f"{self._input(function)}({', '.join(arguments)})"
        targets = [self._target(value, used) for value in results]
        target = f"[{', '.join(targets)}]" if isinstance(result, tuple | list) else targets[0]
        self._lines.append((f"{target} = {call}", used))
        return result

    def _write_constant(self, tensor: Tensor) -> Tensor:
        """Write a clone of a tensor that Python has made of numbers: the function may write to it."""
        if id(tensor) not in self._names:
            used: set[str] = set()
            call = f"{self._input(torch.ops.aten.clone.default)}({self._input(tensor.clone())})"
            self._lines.append((f"{self._target(tensor, used)} = {call}", used))
        return tensor

    def replay(self, result: Result) -> Callable[[], Result]:
        """The written lines as a function, which returns the new value of `result`."""
        # References to a generator: by this list, its creator, the loop and the call.
        for generator in self.generators:
            if getrefcount(generator) - self.generators.count(generator) <= 2:  # noqa: PLR2004
                raise self.refuse("every call creates a random generator. Create it before the first call.")
        leaves, spec = tree_flatten(result)
        used: set[str] = set()
        self._lines.append((f"return [{', '.join(self._source(leaf, used) for leaf in leaves)}]", used))
        lines, used_later = [], set(self._inputs)
        for line, names in reversed(self._lines):
            dead = sorted(names - used_later)  # no later line reads them: free their memory
            lines.append(f"{line}; del {', '.join(dead)}" if dead and not line.startswith("return") else line)
            used_later |= names
        source = "def run():\n" + "".join(f"    {line}\n" for line in reversed(lines))
        exec(source, self._inputs)  # noqa: S102 - the lines above: only names and numbers
        run: Any = self._inputs.pop("run")  # otherwise the function would hold itself, and its tensors
        return lambda: tree_unflatten(run(), spec)

    def _source(self, value: object, used: set[str]) -> str:
        """The text of an argument; adds the names in it to `used`."""
        if isinstance(value, Tensor):
            name = self._names.get(id(value)) or self._input(value)
            used.add(name)
            return name
        if isinstance(value, tuple | list):
            return f"[{', '.join(self._source(item, used) for item in value)}]"
        plain = value is None or type(value) in {bool, int, str}  # else (infinity, a device) by name
        return repr(value) if plain else self._input(value)

    def _target(self, value: object, used: set[str]) -> str:
        """The name of a result."""
        if not isinstance(value, Tensor) or id(value) in self._names:
            return "_"
        self._alive.append(value)
        if (memory := _memory(value)) not in self._input_memory:
            self._computed_memory.add(memory)
        name = self._names[id(value)] = f"t{len(self._names)}"
        used.add(name)
        return name

    def _input(self, value: object) -> str:
        """The name of an object that existed before, or of an operation."""
        name = self._names.get(id(value))
        if name is None:
            if isinstance(value, Tensor):
                if (memory := _memory(value)) in self._computed_memory:
                    raise self.refuse("a view of a tensor was not created by an operation of torch.")
                self._input_memory.add(memory)
            self._alive.append(value)
            name = self._names[id(value)] = f"input_{len(self._inputs)}"
            self._inputs[name] = value
        return name


def _memory(tensor: Tensor) -> int:
    """Address of a tensor's storage; its own identity if it has no single storage."""
    plain = tensor.layout == torch.strided and tensor.numel() > 0
    return tensor.untyped_storage().data_ptr() if plain else -id(tensor)


def _is_list_of_tensors(value: object) -> bool:
    """True for a list, of any depth, that holds tensors."""
    leaves = tree_flatten(value)[0] if isinstance(value, list | tuple) else []
    return any(isinstance(leaf, Tensor) for leaf in leaves)


def _reads_tensors(function: Operation) -> bool:
    """True if the operation returns the value of a tensor as a number or a truth value."""
    kinds = {str(value.type) for value in function._schema.returns}  # noqa: SLF001 - torch's only name
    is_tagged = torch.Tag.data_dependent_output in function.tags
    return is_tagged or not kinds.isdisjoint({"bool", "number", "Scalar"})


def _has_shape_of_data(function: Operation, args: Sequence[Any]) -> bool:
    """True if the shape of the operation's result depends on data."""
    if function is torch.ops.aten.index.Tensor:  # only with truth values
        return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
    return torch.Tag.dynamic_output_shape in function.tags
