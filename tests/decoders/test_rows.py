"""Rows that go on from others: everything that is known of a hypothesis comes along."""

from typing import Any

import pytest
import torch
from jaxtyping import Float32
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, check_decoder, next_log_probs


class LastTakesFirst(dk.Decoder[dk.RowState]):
    """Two rows say different tokens; at every second step the last one goes on from the first."""

    rows_per_prompt = 2

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: dk.RowState
    ) -> tuple[dk.RowState, dk.Selection]:
        rows = torch.arange(len(scores), device=scores.device)
        sources = torch.where(state.step % 2 == 1, rows - rows % 2, rows)
        scores = scores.index_select(0, sources)
        ranked = scores.topk(2).indices  # the first row says its best, the last its second best
        tokens = ranked.gather(1, (rows % 2)[:, None])[:, 0]
        after, selection = state.take(sources).emit(tokens, scores)
        return after, dk.Selection(selection.tokens, sources)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=2)


def test_a_row_that_takes_anothers_place_has_its_text_log_probs_and_parents() -> None:
    model: Any = HashModel(6, 3)
    out = dk.decode(model, [[1], [2, 4]], LastTakesFirst(), max_new_tokens=4)
    for number, prompt in enumerate([[1], [2, 4]]):
        log_probs, first, last = next_log_probs(model), list[int](), list[int]()
        for step in range(4):
            last = first if step % 2 == 1 else last
            best, second = (
                sorted(range(6), key=lambda token: -log_probs(prompt + text)[token])[rank]
                for text, rank in ((first, 0), (last, 1))
            )
            first, last = [*first, best], [*last, second]
        assert out.hypotheses()[number] == [first, last]
        # Tokens 0 and 2 of what the last row ends up with were said on the first.
        row = 2 * number
        assert out.parents[number].tolist() == [[row] * 4, [row, row, row, row + 1]]
    torch.testing.assert_close(out.log_prob, dk.score(model, [[1], [2, 4]], out).log_prob)


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(LastTakesFirst(), max_examples=20)
    check_decoder(LastTakesFirst(), stop=dk.EndIds([3, 4]) & dk.MaxNewTokens(2), max_examples=20)
