"""Verifying sessions of transformers models: several tokens per pass, and discarded ones."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MambaConfig, MambaForCausalLM

import decodekit as dk
from decodekit.models.hf import verifying_sessions
from decodekit.models.hf.verifying_sessions import LeftAlignedSession, RightAlignedSession
from tests.decoders.scripted_draft import Scripted
from tests.equivalence.families import ALL, ENCODER_DECODERS, FAMILIES, PAD, build, wrap

NEW = 24
# Longer than a window with their continuation; sources have one length if the encoder reads padding.
PROMPTS = {
    **{name: [[9, 10, 11, 12, 13], [20], [30, 31, 32, *range(8, 15)]] for name in FAMILIES},
    **{name: [[9, 10, 11], [20, 21, 22, 23, 24], [30, 31]] for name in ENCODER_DECODERS},
    "led-window": [[9, 10, 11, 12], [20, 21, 22, 23], [30, 31, 32, 33]],
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def same(expected: dk.Decoded, actual: dk.Decoded) -> None:
    assert torch.equal(expected.tokens, actual.tokens)
    assert torch.equal(expected.lengths, actual.lengths)
    assert expected.finish_reason == actual.finish_reason
    # Rounding: several columns are multiplied in another order than one, in float32 in some families.
    torch.testing.assert_close(expected.token_log_probs, actual.token_log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("family", ALL)
def test_rows_that_discard_different_numbers_of_tokens_emit_those_of_greedy_search(family: str) -> None:
    model, batch = wrap(family), PROMPTS[family]
    # M2M100 counts positions by the ids that are not the pad id, all that it reads in a pass: a text that
    # says the pad id has other positions when it is read at once.
    no_pad = dk.SuppressTokens([PAD])
    for end_ids in (None, ()):
        expected = dk.decode(model, batch, dk.Greedy(), no_pad, max_new_tokens=NEW, end_ids=end_ids)
        # Some proposals right, some not, and not as many on every row.
        for draft in (Scripted.around([row[0] for row in expected.hypotheses()]), dk.PromptLookup()):
            decoder = dk.Speculative(draft, tokens=4)
            same(expected, dk.decode(model, batch, decoder, no_pad, max_new_tokens=NEW, end_ids=end_ids))


@pytest.mark.mostly_slow(5)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window", "t5", "bart"])
def test_drafts_with_a_model_discard_different_numbers_of_tokens(family: str) -> None:
    model, batch = wrap(family), PROMPTS[family]
    expected = dk.decode(model, batch, dk.Greedy(), max_new_tokens=NEW)
    drafts: list[dk.Draft] = [dk.DraftModel(model), dk.DraftModel(dk.HFModel(build(family, 1)))]
    for draft in [*drafts, *([] if family in ENCODER_DECODERS else [dk.EarlyExit(1)])]:
        same(expected, dk.decode(model, batch, dk.Speculative(draft, tokens=4), max_new_tokens=NEW))


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_samples_of_a_prompt_do_not_depend_on_the_batch(family: str) -> None:
    model, batch = wrap(family), PROMPTS[family]

    def run(texts: list[list[int]], seeds: list[int]) -> dk.Decoded:
        decoder = dk.Speculative(dk.DraftModel(model), tokens=3, sample=True, num_samples=2, seeds=seeds)
        return dk.decode(model, texts, decoder, dk.TopK(5), max_new_tokens=10)

    together = run(batch, [1, 2, 3])
    for number, text in enumerate(batch):
        assert together.hypotheses()[number] == run([text], [number + 1]).hypotheses()[0]
    rescored = dk.score(model, batch, together).token_log_probs
    torch.testing.assert_close(together.token_log_probs, rescored, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "mistral-window", "bart"])
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_session_equals_a_fresh_start_on_each_row(family: str, data: st.DataObject) -> None:
    """Whatever is read and taken back: also where a row reads nothing for a while."""
    model, prompt = wrap(family), dk.Prompt.of(PROMPTS[family], wrap(family).vocabulary)
    session, _ = model.start_verifying(prompt, rows_per_prompt=1, capacity=prompt.tokens.shape[1] + 40)
    texts, unsure = prompt.ids(), [0, 0, 0]
    for _ in range(data.draw(st.integers(2, 8))):
        columns = data.draw(st.integers(1, 4))
        counts = data.draw(st.lists(st.integers(0, columns), min_size=3, max_size=3).filter(any))
        new = data.draw(
            st.lists(st.lists(st.integers(8, 36), min_size=4, max_size=4), min_size=3, max_size=3)
        )
        logits = session.extend(torch.tensor(new)[:, :columns], torch.tensor(counts))
        for row, count in enumerate(counts):
            texts[row] = texts[row] + new[row][:count]
            unsure[row] += count
            if count:
                alone = prompt.take(torch.tensor([row]))
                text = dk.Prompt(torch.tensor([texts[row]]), torch.ones(1, len(texts[row])), alone.source)
                _, fresh = model.start(text, rows_per_prompt=1, capacity=len(texts[row]) + 1)
                torch.testing.assert_close(fresh[0], logits[row, count - 1], atol=1e-5, rtol=1e-5)
        if data.draw(st.booleans()):
            kept = [data.draw(st.integers(0, number)) for number in unsure]
            session.keep(torch.tensor(kept))
            texts = [
                text[: len(text) - number + keep]
                for text, number, keep in zip(texts, unsure, kept, strict=True)
            ]
            unsure = [0, 0, 0]


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_a_row_that_was_ahead_and_paused_continues_its_own_sequence(family: str) -> None:
    model, prompt = wrap(family), dk.Prompt.of([[9, 10], [11, 12]], wrap(family).vocabulary)
    session, _ = model.start_verifying(prompt, rows_per_prompt=1, capacity=20)
    assert isinstance(session, dk.VerifyingSession)
    session.extend(torch.tensor([[20, 21, 22, 23], [0] * 4]), torch.tensor([4, 0]))
    session.extend(torch.tensor([[0], [24]]), torch.tensor([0, 1]))
    logits = session.extend(torch.tensor([[25], [0]]), torch.tensor([1, 0]))
    text = torch.tensor([[*prompt.ids()[0], 20, 21, 22, 23, 25]])
    alone = dk.Prompt(text, torch.ones_like(text), prompt.take(torch.tensor([0])).source)
    _, fresh = model.start(alone, rows_per_prompt=1, capacity=20)
    torch.testing.assert_close(fresh[0], logits[0, 0], atol=1e-5, rtol=1e-5)  # float32 of float64


def test_families_that_ignore_padding_are_right_aligned_and_others_left_aligned() -> None:
    kinds = {name: wrap(name)._verification.kind for name in ("gpt2", "t5", "bart")}
    assert kinds == {"gpt2": RightAlignedSession, "t5": RightAlignedSession, "bart": LeftAlignedSession}


@pytest.mark.parametrize("family", ["gpt2", "mistral-window", "t5"])
def test_left_alignment_is_right_for_families_that_ignore_padding(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying_sessions, "RightAlignedSession", LeftAlignedSession)
    model, batch = dk.HFModel(build(family)), PROMPTS[family]
    expected = dk.decode(model, batch, dk.Greedy(), max_new_tokens=NEW, end_ids=())
    draft = Scripted.around([row[0] for row in expected.hypotheses()])
    same(expected, dk.decode(model, batch, dk.Speculative(draft), max_new_tokens=NEW, end_ids=()))


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_without_a_cache_the_sequence_is_read_again(family: str) -> None:
    model = dk.HFModel(build(family), cache="none")
    expected = dk.decode(model, PROMPTS[family], dk.Greedy(), max_new_tokens=8)
    draft = Scripted.around([row[0] for row in expected.hypotheses()])
    same(expected, dk.decode(model, PROMPTS[family], dk.Speculative(draft), max_new_tokens=8))


def test_one_pass_verifies_all_rows_and_a_prompt_is_computed_once() -> None:
    model, shapes = copy.deepcopy(build("gpt2")), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),  # noqa: ARG005
        with_kwargs=True,
    )
    hf = dk.HFModel(model)
    texts = [
        row[0] for row in dk.decode(hf, [[9], [10]], dk.Greedy(), max_new_tokens=9, end_ids=()).hypotheses()
    ]
    decoder = dk.Speculative(Scripted.around(texts), tokens=3)
    dk.decode(hf, [[9], [10]], decoder, max_new_tokens=9, end_ids=())  # asks the probe, the first time
    shapes.clear()
    out = dk.decode(hf, [[9], [10]], decoder, max_new_tokens=9, end_ids=())
    assert isinstance(out.report, dk.Acceptance)
    assert shapes[0] == (2, 1)
    assert len(shapes) == 1 + int(out.report.passes.max())


def test_a_run_up_to_the_last_position_of_the_model_fits() -> None:
    for family in ("gpt2", "opt", "bart"):
        model = wrap(family)
        texts = [[9] * (20 if family != "bart" else 3), [10, 11]]
        new = 64 - 20 + 1 if family != "bart" else 63
        expected = dk.decode(model, texts, dk.Greedy(), max_new_tokens=new, end_ids=())
        draft = Scripted.around([row[0] for row in expected.hypotheses()])
        same(
            expected, dk.decode(model, texts, dk.Speculative(draft, tokens=9), max_new_tokens=new, end_ids=())
        )


def recurrent() -> list[Any]:
    torch.manual_seed(0)
    mamba = MambaConfig(vocab_size=37, hidden_size=16, num_hidden_layers=1, state_size=4, **IDS)
    return [MambaForCausalLM(mamba).eval()]


@pytest.mark.parametrize("model", recurrent(), ids=lambda model: type(model).__name__)
def test_a_recurrent_state_cannot_discard_tokens(model: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        dk.ModelError, match=r"cache cannot discard tokens .* Use HFModel\(model, cache='none'\)"
    ):
        dk.decode(model, [[9, 10]], dk.Speculative(dk.PromptLookup()), max_new_tokens=5)
    again = dk.HFModel(model, cache="none")
    out = dk.decode(again, [[9, 10]], dk.Speculative(dk.PromptLookup()), max_new_tokens=5)
    same(dk.decode(again, [[9, 10]], dk.Greedy(), max_new_tokens=5), out)


def test_runs_beyond_the_positions_are_refused() -> None:
    with pytest.raises(dk.ModelError, match="must fit the 64 positions"):
        dk.decode(wrap("gpt2"), [[9]], dk.Speculative(dk.PromptLookup()), max_new_tokens=65)
