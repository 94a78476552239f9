"""Verifying sessions for models without `start_verifying`."""

import torch

import decodekit as dk
from decodekit.models.rereading import start_verifying
from decodekit.testing import HashModel


def fresh(model: dk.Model, text: list[int]) -> torch.Tensor:
    return model.start(dk.Prompt.from_ids([text]), rows_per_prompt=1, capacity=len(text) + 1)[1][0]


def test_any_model_reads_several_tokens_and_discards_them() -> None:
    model = HashModel(9)
    session, logits = start_verifying(model, dk.Prompt.from_ids([[1], [2, 3]]), rows_per_prompt=2, capacity=9)
    texts = [[1], [1], [2, 3], [2, 3]]
    for row, text in enumerate(texts):
        assert torch.equal(fresh(model, text), logits[row])
    tokens, counts = torch.tensor([[4, 5, 6], [5, 0, 0], [7, 8, 0], [0, 0, 0]]), torch.tensor([3, 1, 2, 0])
    several = session.extend(tokens, counts)
    for row, text in enumerate(texts):
        for column in range(int(counts[row])):
            assert torch.equal(fresh(model, text + tokens[row, : column + 1].tolist()), several[row, column])
    more = session.extend(torch.tensor([[1], [1], [1], [1]]), torch.tensor([1, 0, 1, 1]))
    assert torch.equal(fresh(model, [1, 4, 5, 6, 1]), more[0, 0])
    session.keep(torch.tensor([2, 1, 0, 1]))  # of all that was read since the start
    after = session.extend(torch.tensor([[8]] * 4), torch.ones(4, dtype=torch.long))
    for row, text in enumerate([[1, 4, 5, 8], [1, 5, 8], [2, 3, 8], [2, 3, 1, 8]]):
        assert torch.equal(fresh(model, text), after[row, 0])


def test_a_verifying_model_starts_its_own_session() -> None:
    class Able(HashModel):
        def start_verifying(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> str:  # noqa: ARG002
            return "asked"

    assert start_verifying(Able(9), dk.Prompt.from_ids([[1]]), rows_per_prompt=1, capacity=3) == "asked"
    assert isinstance(Able(9), dk.VerifyingModel)
    assert not isinstance(HashModel(9), dk.VerifyingModel | dk.EarlyExitModel)
    assert isinstance(dk.load(), dk.VerifyingModel | dk.EarlyExitModel)
