import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from decodekit.core.device import BLOCK, chosen_log_probs, is_on_host


def test_numbers_in_memory_are_on_the_host() -> None:
    assert is_on_host(torch.zeros(1))


def test_what_has_no_numbers_or_is_recorded_is_not_on_the_host() -> None:
    with FakeTensorMode():
        fake = torch.zeros(1)
    assert not is_on_host(fake)
    assert not is_on_host(torch.zeros(1, device="meta"))
    assert not is_on_host(torch.zeros(1, requires_grad=True))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, BLOCK // 2), (2, BLOCK + 1)])
def test_chosen_log_probs_are_those_of_the_whole_rows_bit_for_bit(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator)
    scores[0, 1:] = -torch.inf
    tokens = torch.randint(0, shape[1], shape[:1], generator=generator)
    expected = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert expected.tolist() == chosen_log_probs(scores, tokens).tolist()


def test_chosen_log_probs_need_no_numbers() -> None:
    scores, tokens = torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    assert chosen_log_probs(scores, tokens).shape == (2,)
