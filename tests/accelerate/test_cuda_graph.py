"""CUDA graphs: replays on the same memory, and refusal of functions that read the device."""

import pytest
import torch

from decodekit.accelerate.cuda_graph import CudaGraph, record
from decodekit.accelerate.tape import CannotRecordError, Tape


def test_a_cuda_device_gets_a_graph_and_any_other_a_tape() -> None:
    assert isinstance(record(lambda: None, torch.device("cpu")), Tape)
    assert isinstance(record(lambda: None, torch.device("cuda")), CudaGraph)


@pytest.mark.cuda
def test_a_graph_replays_on_the_same_memory() -> None:
    total, step = torch.tensor(0, device="cuda"), torch.tensor(1, device="cuda")
    graph = CudaGraph(lambda: total.add_(step) * 10)
    results = []
    for number in range(7):
        step.fill_(number)
        results.append(int(graph()))
    assert results == [0, 10, 30, 60, 100, 150, 210]


@pytest.mark.cuda
def test_a_graph_refuses_a_function_that_waits_for_the_device() -> None:
    number = torch.tensor(1, device="cuda")
    graph = CudaGraph(lambda: number * number.item())
    graph()
    with pytest.raises(CannotRecordError, match="CudaGraph: the function reads the device"):
        graph()
