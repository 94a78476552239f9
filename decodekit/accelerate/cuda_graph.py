"""CUDA graphs: a device's work as one launch."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, cast, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from decodekit.accelerate.tape import CannotRecordError, Result, Tape


@final
class CudaGraph(Generic[Result]):
    """A recording of a CUDA device's work: a replay is one launch.

    The first call runs the function, which initializes the device's libraries; the second records it. The
    result is in the same memory at every call. `generators` are the random streams apart from torch's own.
    """

    def __init__(self, function: Callable[[], Result], generators: Sequence[torch.Generator] = ()) -> None:
        self._function = function
        self._generators = generators
        self._is_warm = False
        self._graph: Any = None
        self._result: Any = None

    @torch.inference_mode()
    def __call__(self) -> Result:
        """Call the function, in inference mode, or replay it. Raises if it cannot be recorded."""
        if not self._is_warm:
            self._is_warm = True
            return self._warm_up()
        if self._graph is None:
            self._record()
        self._graph.replay()
        return cast("Result", self._result)

    def _warm_up(self) -> Result:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self._function()
        current.wait_stream(side)
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Tensor):
                leaf.record_stream(current)
        return result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):
                self._result = self._function()
        except RuntimeError as error:
            raise CannotRecordError(
                f"CudaGraph: the function reads the device or waits for it, and cannot be recorded: {error}"
            ) from error
        self._graph = graph


def record(
    function: Callable[[], Result], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Callable[[], Result]:
    """The recording for a device: a CUDA graph, or elsewhere a tape."""
    return CudaGraph(function, generators) if device.type == "cuda" else Tape(function)
