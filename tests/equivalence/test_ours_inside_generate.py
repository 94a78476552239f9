"""Our stateless processors, handed to `generate` as they are."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

import decodekit as dk
from tests.equivalence.compare import batch, theirs

pytestmark = pytest.mark.mostly_slow(16)

FEW = ("gpt2", "llama", "gemma3-mixed")
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "end_ids": ()},
    "beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
}
# What we hand over, and generate's own options, in its order.
FILTERS: dict[str, tuple[list[dk.StatelessProcessor], dict[str, Any]]] = {
    "repetition penalty": ([dk.RepetitionPenalty(1.4)], {"repetition_penalty": 1.4}),
    "n-grams": ([dk.NoRepeatNGram(2)], {"no_repeat_ngram_size": 2}),
    "suppressed tokens": (
        [dk.SuppressTokens(range(8, 30, 3))],
        {"suppress_tokens": list(range(8, 30, 3))},
    ),
    "all": (
        [dk.RepetitionPenalty(1.4), dk.NoRepeatNGram(1), dk.SuppressTokens([5, 11, 30])],
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 1, "suppress_tokens": [5, 11, 30]},
    ),
}
WARPERS: dict[str, tuple[list[dk.StatelessProcessor], dict[str, Any]]] = {
    "temperature": ([dk.Temperature(0.6)], {"top_k": 0, "temperature": 0.6}),
    "top-k": ([dk.TopK(5)], {"top_k": 5}),
    "top-p": ([dk.TopP(0.7)], {"top_k": 0, "top_p": 0.7}),
    "min-p": ([dk.MinP(0.2)], {"top_k": 0, "min_p": 0.2}),
    "top-h": ([dk.TopH(0.4)], {"top_k": 0, "top_h": 0.4}),
    "typical": ([dk.Typical(0.4)], {"top_k": 0, "typical_p": 0.4}),
    "epsilon": ([dk.EpsilonCutoff(0.02)], {"top_k": 0, "epsilon_cutoff": 0.02}),
    "eta": ([dk.EtaCutoff(0.2)], {"top_k": 0, "eta_cutoff": 0.2}),
    "all": (
        [dk.Temperature(1.3), dk.TopK(12), dk.TopP(0.9), dk.MinP(0.05)],
        {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ),
}


# Without padding: generate hands no mask over, so the first two would count it.
@pytest.mark.parametrize("chosen", FILTERS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FEW)
def test_decodekit_processors_inside_generate_equal_its_options(
    family: str, search: str, chosen: str
) -> None:
    processors, options = FILTERS[chosen]
    prompts = batch((0, 0, 0), seed=20)
    expected = theirs(family, prompts, **SEARCHES[search], **options)
    handed = theirs(family, prompts, **SEARCHES[search], logits_processor=processors)
    assert expected.tolist() == handed.tolist()
    assert expected.tolist() != theirs(family, prompts, **SEARCHES[search]).tolist()


@pytest.mark.parametrize("chosen", WARPERS)
@pytest.mark.parametrize("family", FEW)
def test_our_truncations_inside_generate_are_its_options(family: str, chosen: str) -> None:
    processors, options = WARPERS[chosen]
    prompts = batch(seed=21)
    torch.manual_seed(22)
    expected = theirs(family, prompts, do_sample=True, **options)
    torch.manual_seed(22)
    handed = theirs(family, prompts, do_sample=True, top_k=0, logits_processor=processors)
    assert expected.tolist() == handed.tolist()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    ("our_processor", "their_processor"),
    [
        (dk.RepetitionPenalty(1.5), RepetitionPenaltyLogitsProcessor(1.5)),
        (dk.NoRepeatNGram(2), NoRepeatNGramLogitsProcessor(2)),
    ],
    ids=["repetition penalty", "n-grams"],
)
@pytest.mark.parametrize("family", FEW)
def test_inside_generate_ours_take_padding_for_text_as_its_classes_do(
    family: str, our_processor: dk.StatelessProcessor, their_processor: LogitsProcessor, search: str
) -> None:
    prompts = batch(seed=23)
    expected = theirs(family, prompts, **SEARCHES[search], logits_processor=[their_processor])
    handed = theirs(family, prompts, **SEARCHES[search], logits_processor=[our_processor])
    assert expected.tolist() == handed.tolist()
