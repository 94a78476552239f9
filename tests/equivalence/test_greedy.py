"""`Greedy` says what `generate(do_sample=False)` says."""

from typing import Any

import pytest

import decodekit as dk
from tests.equivalence.compare import NEW, batch, ours, theirs
from tests.equivalence.families import END, ENDS, FAMILIES, PAD, build

pytestmark = pytest.mark.mostly_slow(16)

END_SETTINGS = {"one end id": (END,), "several end ids": ENDS, "no end id": ()}
# Our processors, and generate's options.
PROCESSORS: dict[str, tuple[list[dk.LogitsProcessor], dict[str, Any]]] = {
    "repetition penalty": ([dk.RepetitionPenalty(1.4)], {"repetition_penalty": 1.4}),
    "least new tokens": ([dk.MinNewTokens(6, ENDS)], {"min_new_tokens": 6}),
    "suppressed tokens": (
        [dk.SuppressTokens([END, *range(8, 30, 3)])],
        {"suppress_tokens": [END, *range(8, 30, 3)]},
    ),
    "three, in generate's order": (
        [dk.RepetitionPenalty(0.8), dk.MinNewTokens(4, ENDS), dk.SuppressTokens([5, 11, 30])],
        {"repetition_penalty": 0.8, "min_new_tokens": 4, "suppress_tokens": [5, 11, 30]},
    ),
}


@pytest.mark.parametrize("ends", END_SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_on_a_left_padded_batch(family: str, ends: str) -> None:
    prompts, end_ids = batch(), END_SETTINGS[ends]
    expected = theirs(family, prompts, end_ids=end_ids, do_sample=False)
    out = ours(family, prompts, dk.Greedy(), end_ids=end_ids)
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generates_without_padding(family: str) -> None:
    prompts = batch((0, 0), seed=1)
    expected = theirs(family, prompts, do_sample=False)
    assert expected.tolist() == ours(family, prompts, dk.Greedy()).sequences.tolist()


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_with_processors_is_generates(family: str, processor: str) -> None:
    processors, options = PROCESSORS[processor]
    prompts = batch(seed=2)
    expected = theirs(family, prompts, do_sample=False, **options)
    out = ours(family, prompts, dk.Greedy(), processors)
    assert expected.tolist() == out.sequences.tolist()


# generate takes padding for text when it blocks n-grams, so it is asked prompt by prompt; what it does
# with padding is in test_deviations.
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_with_blocked_ngrams_in_a_batch_is_generates_prompt_by_prompt(family: str, n: int) -> None:
    prompts = batch(seed=3)
    out = ours(family, prompts, dk.Greedy(), [dk.NoRepeatNGram(n)])
    for row, ((hypothesis,), prompt) in enumerate(zip(out.hypotheses(), out.prompt.ids(), strict=True)):
        expected = theirs(family, prompts.alone(row), do_sample=False, no_repeat_ngram_size=n)
        assert expected.tolist() == [prompt + hypothesis]


@pytest.mark.parametrize("family", FAMILIES)
def test_lists_of_ids_of_any_lengths_are_the_padded_tensor_with_its_mask(family: str) -> None:
    prompts = batch()
    lists = [row[mask.bool()].tolist() for row, mask in zip(*prompts, strict=True)]
    expected = theirs(family, prompts, do_sample=False)
    assert expected.tolist() == ours(family, prompts, dk.Greedy()).sequences.tolist()
    assert expected.tolist() == ours(family, lists, dk.Greedy()).sequences.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_end_and_pad_ids_are_the_models_own_unless_given(family: str) -> None:
    prompts, model = batch(seed=4), build(family)
    expected = model.generate(
        prompts.tokens, attention_mask=prompts.mask, max_new_tokens=2 * NEW, do_sample=False
    )
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=2 * NEW)
    assert expected.tolist() == out.sequences.tolist()
    assert out.pad_id == PAD


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_prompts_show_what_a_processor_does(processor: str) -> None:
    changed = [
        ours(family, batch(seed=2), dk.Greedy(), PROCESSORS[processor][0]).hypotheses()
        != ours(family, batch(seed=2), dk.Greedy()).hypotheses()
        for family in FAMILIES
    ]
    assert sum(changed) >= 10  # of 21


@pytest.mark.slow
def test_the_prompts_show_what_end_ids_do() -> None:
    shorter = [
        [
            int(ours(family, batch(), dk.Greedy(), end_ids=end_ids).lengths.sum())
            for end_ids in (ENDS, (END,), ())
        ]
        for family in FAMILIES
    ]
    assert sum(several < one for several, one, _ in shorter) >= 10  # of 21
    assert sum(one < none for _, one, none in shorter) >= 10
