"""Random calls of `generate`, put to transformers and to decodekit: field for field the same.

What is drawn together: a family, a batch with or without padding, a mode, options, processors and criteria of
both libraries, and what is to be returned. Left out is what is deliberately different and has its own test
in test_deviations: n-gram blocking and word biases over padding, guidance under beams, fewer strings than
beams.

    DECODEKIT_FUZZ=20000 pytest -n 2 tests/equivalence/test_fuzz.py    # a longer run
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, assume, given, reject, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from tests.equivalence.compare import Batch, batch
from tests.equivalence.families import ALL, ENCODER_DECODERS, ENDS, PAD, VOCAB, build, wrap
from tests.equivalence.outputs import differences

CASES = int(os.environ.get("DECODEKIT_FUZZ", "600"))
SHARDS = 6
SLOW = {"bloom", "mpt", "mixtral", "gemma2-mixed"}  # float32, where rounding may choose between two tokens
CHOICES = sorted(set(ALL) - SLOW)

Options = dict[str, Any]


def maybe(**choices: st.SearchStrategy[Any]) -> st.SearchStrategy[Options]:
    """Some of the options, each rarely enough that most of them meet."""
    return st.fixed_dictionaries({}, optional=choices).filter(lambda options: len(options) <= 4)


IDS = st.integers(8, VOCAB - 1)
WORDS = st.lists(st.lists(IDS, min_size=1, max_size=2), min_size=1, max_size=3, unique_by=tuple)
LENGTHS = maybe(
    max_new_tokens=st.integers(1, 14),
    min_new_tokens=st.integers(0, 6),
    exponential_decay_length_penalty=st.tuples(st.integers(0, 4), st.floats(0.5, 1.6)),
    forced_eos_token_id=st.just(ENDS[0]),  # two would be tied
    forced_bos_token_id=IDS,
)
REPETITION = maybe(
    repetition_penalty=st.floats(0.7, 1.8),
    encoder_repetition_penalty=st.floats(0.7, 1.8),
    suppress_tokens=st.lists(IDS, min_size=1, max_size=4),
    begin_suppress_tokens=st.lists(IDS, min_size=1, max_size=4),
    renormalize_logits=st.booleans(),
    remove_invalid_values=st.booleans(),
)
ONLY_WITHOUT_PADDING = maybe(
    no_repeat_ngram_size=st.integers(1, 3),
    encoder_no_repeat_ngram_size=st.integers(1, 3),
    bad_words_ids=WORDS,
    sequence_bias=WORDS.map(lambda words: [[word, 1.5 - number] for number, word in enumerate(words)]),
    min_length=st.integers(1, 16),
)
SAMPLING = maybe(
    temperature=st.floats(0.4, 2.0),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.2, 1.0),
    min_p=st.floats(0.0, 0.3),
    top_h=st.floats(0.2, 1.0),
    typical_p=st.floats(0.3, 0.99),
    epsilon_cutoff=st.floats(0.0, 0.2),
    eta_cutoff=st.floats(0.0, 0.2),
)
BEAMS = st.fixed_dictionaries(
    {"num_beams": st.integers(2, 4)},
    optional={
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.7, 1.0, 2.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "num_return_sequences": st.integers(1, 2),
    },
)
GUIDANCE = maybe(guidance_scale=st.floats(1.1, 3.0))
SAMPLES = st.fixed_dictionaries({"num_return_sequences": st.integers(1, 3)})
MODES: dict[str, st.SearchStrategy[Options]] = {
    "greedy": st.just({}),
    "sample": st.builds(lambda *several: {"do_sample": True} | several[0] | several[1], SAMPLING, SAMPLES),
    "beams": BEAMS,
    "beam sample": st.builds(lambda *several: {"do_sample": True} | several[0] | several[1], SAMPLING, BEAMS),
}
OUTPUT = st.sampled_from(
    [
        {},
        {"return_dict_in_generate": True},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    ]
)
USERS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "theirs": lambda: [transformers.RepetitionPenaltyLogitsProcessor(1.3), transformers.TopKLogitsWarper(9)],
    "replacing": lambda: [transformers.SuppressTokensLogitsProcessor([9, 10], device="cpu")],
    "ours": lambda: [dk.MinP(0.02), dk.SuppressTokens([12, 13])],
}


class AfterToken(transformers.StoppingCriteria):
    """Stops a row that says an even token after an odd one."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ANN401, ARG002
        return (input_ids[:, -1] % 2 == 0) & (input_ids[:, -2:-1].sum(-1) % 2 == 1)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, Batch, Options, str]:
    """A family, prompts, options and whose processors."""
    family = draw(st.sampled_from(CHOICES))
    reads_source = family in ENCODER_DECODERS
    padding = draw(st.sampled_from([(0,), (0, 0), (0, 3), (4, 0, 1)]))
    prompts = batch(padding, seed=draw(st.integers(0, 9)), length=draw(st.integers(6, 9)))
    if reads_source:  # encoders count positions from the left
        prompts = Batch(prompts.tokens.flip(1), prompts.mask.flip(1))
    options: Options = {"max_new_tokens": 10} | draw(LENGTHS) | draw(REPETITION) | draw(OUTPUT)
    if not any(padding):
        options |= draw(ONLY_WITHOUT_PADDING)
    if any(padding):  # theirs counts padding as text here
        options.pop("encoder_repetition_penalty", None)
    mode = draw(st.sampled_from(list(MODES)))
    options |= draw(MODES[mode])
    if mode == "greedy" and not reads_source:
        options |= draw(GUIDANCE)
    if draw(st.integers(0, 4)) == 0:
        options["stopping_criteria"] = True
    if draw(st.integers(0, 4)) == 0:
        # Without beams theirs is told the number of the row, not of the prompt: see test_deviations.
        alike = mode == "sample" and options["num_return_sequences"] > 1
        options["prefix_allowed_tokens_fn"] = allowed_after if alike else allowed
    return family, prompts, without_overflow(options), draw(st.sampled_from(list(USERS)))


def without_overflow(options: Options) -> Options:
    """The options without those that make infinities of the least number there is."""
    overflow = {"guidance_scale", "exponential_decay_length_penalty"}
    if not options.get("remove_invalid_values"):
        return options
    return {name: value for name, value in options.items() if name not in overflow}


def allowed(prompt: int, ids: Tensor) -> list[int]:
    """Two tokens in three, which ones depends on the prompt's number and the last token."""
    return [token for token in range(VOCAB) if (token + prompt + int(ids[-1])) % 3]


def allowed_after(_: int, ids: Tensor) -> list[int]:
    """The same, whichever the prompt."""
    return allowed(0, ids)


def arguments(prompts: Batch, options: Options, users: str) -> Options:
    """The keyword arguments of a call, with objects that no other call has used."""
    given = {
        "attention_mask": prompts.mask,
        "eos_token_id": list(ENDS),
        "pad_token_id": PAD,
        "logits_processor": transformers.LogitsProcessorList(USERS[users]()),
        **options,
    }
    if given.pop("stopping_criteria", False):
        given["stopping_criteria"] = transformers.StoppingCriteriaList([AfterToken()])
    return given


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers warns of combinations that are merely odd
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_random_call_returns_what_generate_returns(shard: int) -> None:
    @settings(
        max_examples=CASES // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @seed(shard)
    @given(calls())
    def compare(call: tuple[str, Batch, Options, str]) -> None:
        family, prompts, options, users = call
        model = build(family)
        try:
            expected = emit(model.generate, prompts, options, users)
        except ValueError:
            reject()  # such options do not go together, or leave no token to draw
        assume(not runs_out_of_strings(expected, family, prompts, options, users))
        inside = partial(model.generate, custom_generate=dk.compat.hf.custom_generate)
        for ours in (partial(dk.compat.hf.generate, wrap(family)), inside):
            try:
                actual = emit(ours, prompts, options, users)
            except dk.DecodingError:  # every token banned, where theirs says one of them
                reject()
            assert differences(expected, actual) == []

    compare()


def emit(generate: Callable[..., Any], prompts: Batch, options: Options, users: str) -> Any:  # noqa: ANN401
    """What a `generate` returns, from the same seed."""
    torch.manual_seed(len(options))
    return generate(prompts.tokens, **arguments(prompts, options, users))


def runs_out_of_strings(
    expected: Any,  # noqa: ANN401 - what generate returned
    family: str,
    prompts: Batch,
    options: Options,
    users: str,
) -> bool:
    """Whether there were fewer strings than beams, of which theirs then invents some: see test_deviations."""
    if options.get("num_beams", 1) == 1:
        return False
    if getattr(expected, "sequences_scores", None) is None:
        scored = options | {"return_dict_in_generate": True, "output_scores": True}
        expected = emit(build(family).generate, prompts, scored, users)
    return bool((expected.sequences_scores < -1e8).any())
