"""Where decodekit is not `generate()`: what each says, and which one an exact recomputation confirms."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

import decodekit as dk
from tests.equivalence.compare import Batch, batch, ours, theirs
from tests.equivalence.families import END, PAD, build

RULES: dict[Any, dk.StopRule] = {True: dk.WhenFull(), False: dk.Heuristic(), "never": dk.Proved()}
FEW = ("gpt2", "llama", "gemma3-mixed")


def exact_score(family: str, prompt: list[int], continuation: list[int]) -> float:
    """Log-probability a token, from one plain forward pass without cache, batch or padding."""
    text = torch.tensor([prompt + continuation])
    with torch.no_grad():
        log_probs = (
            build(family)(input_ids=text, attention_mask=torch.ones_like(text)).logits[0].log_softmax(-1)
        )
    chosen = log_probs[len(prompt) - 1 : -1].gather(1, text[0, len(prompt) :, None])
    return chosen.mean().item()


def padded_with(prompts: Batch, pad_id: int) -> Batch:
    return Batch(prompts.tokens.masked_fill(prompts.mask == 0, pad_id), prompts.mask)


# Q1: generate fills a beam's tail with `pad_token_id or eos_token_id[0]`, and 0 is false.


@pytest.mark.parametrize("family", FEW)
def test_pad_id_0_fills_the_tails_of_beams_and_generate_fills_them_with_the_end_id(family: str) -> None:
    prompts = batch(pad_id=0)
    expected = theirs(
        family,
        prompts,
        pad_id=0,
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    out = ours(family, prompts, dk.BeamSearch(3, num_return=3), pad_id=0)
    new, longest = expected.sequences[:, 9:], out.tokens.shape[-1]
    past_the_end = torch.arange(longest) >= out.lengths.flatten()[:, None]
    assert past_the_end.any()
    assert (new[past_the_end] == END).all()
    assert (out.tokens.flatten(0, 1)[past_the_end] == 0).all()
    # The rest is the same, and the lengths without the tail are those that the scores are made with.
    assert new[~past_the_end].tolist() == out.tokens.flatten(0, 1)[~past_the_end].tolist()
    prompt_of = [ids for ids in out.prompt.ids() for _ in range(3)]
    said = [ids for hypotheses in out.hypotheses() for ids in hypotheses]
    exact = [exact_score(family, *texts) for texts in zip(prompt_of, said, strict=True)]
    # float32 sums of at most 12 terms on both sides
    assert expected.sequences_scores.tolist() == pytest.approx(exact, rel=1e-5)
    assert out.score.flatten().tolist() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("family", FEW)
def test_pad_id_0_is_generates_pad_under_greedy_search(family: str) -> None:
    prompts = batch(pad_id=0)
    expected = theirs(family, prompts, pad_id=0, do_sample=False)
    out = ours(family, prompts, dk.Greedy(), pad_id=0)
    assert (expected[:, 9:] == 0).any()
    assert expected.tolist() == out.sequences.tolist()


# Q2: generate computes every prompt once a beam or sample.


@pytest.mark.parametrize("family", FEW)
def test_a_prompt_is_processed_once_and_by_generate_once_per_beam(family: str) -> None:
    shapes: list[tuple[int, ...]] = []
    embeddings = build(family).get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        ours(family, batch(), dk.BeamSearch(4), new=1)  # decodekit probes a model before its first run
        shapes.clear()
        expected = theirs(family, batch(), new=2, num_beams=4, do_sample=False)
        assert shapes == [(12, 9), (12, 1)]
        shapes.clear()
        out = ours(family, batch(), dk.BeamSearch(4), new=2)
        assert shapes == [(3, 9), (3, 4)]  # and its beams are queries of one row
    finally:
        hook.remove()
    assert expected.tolist() == out.sequences.tolist()


# Q6: generate marks finished beams with -1e9 and banned tokens with minus infinity, so that where nothing
# else is allowed, what has finished comes back.


@dataclass(frozen=True)
class OnlyStrings(dk.StatelessProcessor):
    """Bans what does not begin one of the strings; after an end id only the end id may come."""

    strings: tuple[tuple[int, ...], ...]
    prompt_length: int
    capturable: ClassVar[bool] = False

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        banned = torch.ones_like(scores, dtype=torch.bool)
        said = history.tokens[:, self.prompt_length : int(history.position)].tolist()
        for row, tokens in enumerate(said):
            if END in tokens:
                banned[row, END] = False
            for string in self.strings:
                if len(tokens) < len(string) and list(string[: len(tokens)]) == tokens:
                    banned[row, string[len(tokens)]] = False
        return scores.masked_fill(banned, -torch.inf)


STRINGS = ((9, 10, END), (9, 11, 12, END), (14, END))


def only_strings(family: str, early_stopping: bool | str) -> tuple[list[list[list[int]]], Tensor, dk.Decoded]:  # noqa: FBT001 - generate's option
    """Four beams for three strings: generate's texts up to the padding, its scores, and our result."""
    processor = OnlyStrings(STRINGS, prompt_length=9)
    expected = theirs(
        family,
        batch((0, 4)),
        end_ids=(END,),
        num_beams=4,
        num_return_sequences=4,
        do_sample=False,
        early_stopping=early_stopping,
        logits_processor=[processor],
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = [[token for token in row if token != PAD] for row in expected.sequences[:, 9:].tolist()]
    out = ours(
        family,
        batch((0, 4)),
        dk.BeamSearch(4, num_return=4, stop_rule=RULES[early_stopping]),
        [processor],
        end_ids=(END,),
    )
    return [texts[:4], texts[4:]], expected.sequences_scores.view(2, 4), out


@pytest.mark.parametrize("early_stopping", RULES)
@pytest.mark.parametrize("family", FEW)
def test_fewer_strings_than_beams_are_fewer_hypotheses(family: str, early_stopping: bool | str) -> None:  # noqa: FBT001
    _, _, out = only_strings(family, early_stopping)
    for row, prompt in enumerate(out.prompt.ids()):
        exact = {string: exact_score(family, prompt, list(string)) for string in STRINGS}
        ranked = sorted(exact, key=exact.__getitem__, reverse=True)
        assert [list(string) for string in ranked] == out.hypotheses()[row]
        assert out.score[row, :3].tolist() == pytest.approx([exact[s] for s in ranked], rel=1e-5)  # float32
    assert out.valid.tolist() == [[True, True, True, False]] * 2
    assert out.score[:, 3].tolist() == [-torch.inf] * 2
    assert out.lengths[:, 3].tolist() == [0, 0]
    assert [row[3] for row in out.finish_reason] == ["missing"] * 2


@pytest.mark.parametrize("early_stopping", RULES)
@pytest.mark.parametrize("family", FEW)
def test_fewer_strings_than_beams_make_generate_repeat_itself_or_go_on_past_the_end(
    family: str,
    early_stopping: bool | str,  # noqa: FBT001
) -> None:
    texts, scores, _ = only_strings(family, early_stopping)
    for row in range(2):
        distinct = {tuple(text) for text in texts[row]}
        assert len(distinct) < 4 or any(text.count(END) > 1 for text in texts[row])
        assert scores[row, -1].item() < -1e8


def test_generate_can_lose_a_string_to_a_repeated_one() -> None:
    texts, _, out = only_strings("llama", early_stopping=True)
    assert [9, 11, 12, END] not in texts[0]
    assert [9, 11, 12, END] in out.hypotheses()[0]


# n-grams over padding: generate's blocking has no mask, and left padding is text to it.


@pytest.mark.parametrize(("family", "pad_id"), [("opt", 35), ("gpt2", 4), ("llama", 7)])
def test_ngram_blocking_ignores_padding(family: str, pad_id: int) -> None:
    prompts = padded_with(batch((0, 4), seed=0), pad_id)
    options = {"end_ids": (), "pad_id": pad_id}
    blocked = {"do_sample": False, "no_repeat_ngram_size": 2}
    alone = theirs(family, prompts.alone(1), **options, **blocked)[0, 5:].tolist()
    in_a_batch = theirs(family, prompts, **options, **blocked)[1, 9:].tolist()
    out = ours(family, prompts, dk.Greedy(), [dk.NoRepeatNGram(2)], **options)
    # Alone the text repeats no pair of tokens, so that padding is all that generate can have blocked.
    text = [*prompts.alone(1).tokens[0].tolist(), *alone]
    pairs = list(pairwise(text))
    assert len(set(pairs)) == len(pairs)
    assert in_a_batch != alone
    assert out.hypotheses()[1] == [alone]
    assert ours(family, prompts.alone(1), dk.Greedy(), [dk.NoRepeatNGram(2)], **options).hypotheses() == [
        [alone]
    ]


# The repetition penalty: generate's option leaves padding out, its class used by hand does not.


@pytest.mark.parametrize("family", FEW)
def test_padding_is_no_text_to_the_repetition_penalty(family: str) -> None:
    plain = theirs(family, batch((0, 4)).alone(1), end_ids=(), do_sample=False, repetition_penalty=1.5)
    pad_id = int(plain[0, 5])  # the first token it says: penalised, if padding counts
    prompts = padded_with(batch((0, 4)), pad_id)
    options = {"end_ids": (), "pad_id": pad_id}
    alone = theirs(family, prompts.alone(1), **options, do_sample=False, repetition_penalty=1.5)
    option = theirs(family, prompts, **options, do_sample=False, repetition_penalty=1.5)
    by_hand = theirs(
        family,
        prompts,
        **options,
        do_sample=False,
        logits_processor=[RepetitionPenaltyLogitsProcessor(1.5)],
    )
    out = ours(family, prompts, dk.Greedy(), [dk.RepetitionPenalty(1.5)], **options)
    assert by_hand[1, 9:].tolist() != alone[0, 5:].tolist()
    assert option[1, 9:].tolist() == alone[0, 5:].tolist()
    assert option.tolist() == out.sequences.tolist()
