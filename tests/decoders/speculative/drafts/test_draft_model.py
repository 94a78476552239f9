"""Drafts from another model."""

import pytest
import torch

import decodekit as dk
from decodekit.decoders.speculative.drafts.draft_model import DraftModelSession
from decodekit.testing import HashModel
from tests.equivalence.families import build, wrap
from tests.processors.second import bare

VOCAB = 7


def test_it_takes_back_refused_tokens_and_reads_emitted_ones() -> None:
    """Its logits always equal those of a fresh start on the whole sequence."""
    model = HashModel(VOCAB)
    seen: list[tuple[list[list[int]], torch.Tensor]] = []
    texts = [[1], [3, 4], [5]]

    def choose(logits: torch.Tensor, proposed: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen.append(([text + new for text, new in zip(texts, proposed, strict=True)], logits))
        return logits.argmax(-1), None

    session = DraftModelSession(model, dk.Prompt.from_ids(texts), rows_per_prompt=1, capacity=99)
    proposed = session.propose([[], [], []], [3, 3, 3], choose).tokens
    # All, one and none of the proposals are accepted; then one row ends; at last two continue.
    rounds = [
        [[*proposed[0], 6], [proposed[1][0], (proposed[1][1] + 1) % VOCAB], [(proposed[2][0] + 1) % VOCAB]],
        [[2], [], [0, 1, 2, 3, 4]],
        [[1, 1], [], [3]],
    ]
    for max_tokens, emitted in zip(([2, 3, 1], [3, 0, 3], [1, 0, 1]), rounds, strict=True):
        texts = [text + new for text, new in zip(texts, emitted, strict=True)]
        before = len(seen)
        proposed = session.propose(emitted, max_tokens, choose).tokens
        assert [len(row) for row in proposed] == max_tokens
        for full, logits in seen[before:]:
            for row, text in enumerate(full):
                if len(text) - len(texts[row]) < max_tokens[row]:
                    _, fresh = model.start(dk.Prompt.from_ids([text]), rows_per_prompt=1, capacity=99)
                    assert torch.equal(fresh[0], logits[row])


def test_its_logits_are_fresh_where_every_emitted_token_was_proposed() -> None:
    model = HashModel(VOCAB)
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, _: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen.append(logits)
        return logits.argmax(-1), None

    session = DraftModelSession(model, dk.Prompt.from_ids([[1]]), rows_per_prompt=1, capacity=99)
    (proposed,) = session.propose([[]], [4], choose).tokens
    seen.clear()
    session.propose([proposed[:2]], [1], choose)
    _, fresh = model.start(dk.Prompt.from_ids([[1, *proposed[:2]]]), rows_per_prompt=1, capacity=99)
    assert torch.equal(fresh, seen[0])


def test_a_draft_model_reads_each_token_once_and_its_last_proposal_only_if_accepted() -> None:
    model, draft = wrap("gpt2"), build("gpt2", 0)
    calls: list[int] = []
    hook = draft.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        decoder = dk.Speculative(dk.DraftModel(dk.HFModel(draft)), tokens=4)
        dk.decode(model, [[9, 10]], decoder, max_new_tokens=11, end_ids=())  # probes, the first time
        calls.clear()
        out = dk.decode(model, [[9, 10]], decoder, max_new_tokens=11, end_ids=())
    finally:
        hook.remove()
    assert isinstance(out.report, dk.Acceptance)
    assert out.report.passes.tolist() == [[3]]
    # The prompt; four proposals, of which the last is not read; the emitted tokens, and four more.
    assert len(calls) == 1 + 3 + (1 + 3)


def test_the_draft_of_an_encoder_decoder_may_be_a_language_model_or_an_encoder_decoder() -> None:
    model, sources = wrap("t5"), [[9, 10, 11], [20, 21, 22, 23, 24]]
    expected = dk.decode(model, sources, dk.Greedy(), max_new_tokens=12)
    for draft in (wrap("gpt2"), wrap("marian"), model):
        out = dk.decode(model, sources, dk.Speculative(dk.DraftModel(draft)), max_new_tokens=12)
        assert torch.equal(expected.tokens, out.tokens)
    with pytest.raises(dk.PromptError, match="an encoder-decoder needs a source"):
        dk.decode(wrap("gpt2"), sources, dk.Speculative(dk.DraftModel(model)), max_new_tokens=3)


def test_a_draft_must_be_a_model() -> None:
    with pytest.raises(TypeError, match=r"DraftModel: model must be a decodekit.Model, got GPT2LMHeadModel"):
        dk.DraftModel(bare())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="DraftModel: model must be"):
        dk.DraftModel(HashModel)  # type: ignore[arg-type]
