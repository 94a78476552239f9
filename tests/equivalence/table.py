"""Calls of `generate` with every option, decoded by transformers and by decodekit: docs/equivalence.md."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
import transformers

import decodekit as dk
from tests.equivalence.compare import Batch, batch
from tests.equivalence.families import ENCODER_DECODERS, ENDS, PAD, VOCAB, build, wrap
from tests.equivalence.outputs import differences

Options = dict[str, Any]
ALL_OUTPUT: Options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


@dataclass(frozen=True, eq=False)
class Row:
    """An option, a call that uses it, and the expected outcome.

    Attributes:
        option: Name or description, as the page shows it.
        options: The keyword arguments of the call, or a function that creates them.
        verdict: "equal", "different" or "refused".
        note: A remark for the page.
        test: The test that compares a difference with an exact recomputation.
        family: Family of the tiny random model.
        padding: Columns of padding of each prompt.
        pad_id: The id in these columns.
    """

    option: str
    options: Options | Callable[[], Options] = field(default_factory=dict)
    verdict: str = "equal"
    note: str = ""
    test: str = ""
    family: str = "gpt2"
    padding: tuple[int, ...] = (0, 0, 0)
    pad_id: int = PAD

    def call(self) -> Options:
        """The keyword arguments, with objects that no other call shares."""
        return self.options() if callable(self.options) else dict(self.options)

    @property
    def prompts(self) -> Batch:
        """The prompts; for an encoder they are padded on the right."""
        prompts = batch(self.padding, seed=31, pad_id=self.pad_id)
        if self.family in ENCODER_DECODERS and self.option != "a source padded on the left":
            return Batch(prompts.tokens.flip(1), prompts.mask.flip(1))
        return prompts


@dataclass(frozen=True)
class Outcome:
    """The outcome of a row: the verdict, and the positions that the model computed in either library."""

    verdict: str
    theirs: int
    ours: int


def allowed(prompt: int, ids: torch.Tensor) -> list[int]:
    """Allow two tokens in three."""
    return [token for token in range(VOCAB) if (token + prompt + int(ids[-1])) % 3]


def sampled(**options: Any) -> Options:  # noqa: ANN401 - generate's own
    return {"do_sample": True, "top_k": 0, **options}


def beams(**options: Any) -> Options:  # noqa: ANN401 - generate's own
    return {"num_beams": 4, **options}


def marked(**options: Any) -> Callable[[], Options]:  # noqa: ANN401 - of a watermarking configuration
    def make() -> Options:
        kind = (
            transformers.SynthIDTextWatermarkingConfig
            if "keys" in options
            else transformers.WatermarkingConfig
        )
        return sampled(watermarking_config=kind(**options))

    return make


def with_processors(*make: Callable[[], Any]) -> Callable[[], Options]:
    return lambda: {"logits_processor": transformers.LogitsProcessorList([one() for one in make])}


class OddAfterEven(transformers.StoppingCriteria):
    """Stops a row that emits an odd token after an even one."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ANN401, ARG002
        return (input_ids[:, -1] % 2 == 1) & (input_ids[:, -2] % 2 == 0)


def stopped(**options: Any) -> Callable[[], Options]:  # noqa: ANN401 - generate's own
    return lambda: {"stopping_criteria": transformers.StoppingCriteriaList([OddAfterEven()]), **options}


class AtCall(transformers.StoppingCriteria):
    """Stops all rows at its n-th call."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ANN401, ARG002
        self.left -= 1
        return torch.full((len(input_ids),), self.left <= 0)


MODES = [
    Row("greedy search", {"do_sample": False}),
    Row("greedy search, left-padded", {"do_sample": False}, padding=(0, 2, 5)),
    Row("sampling", sampled(), note="after the same `torch.manual_seed`"),
    Row("several samples", sampled(num_return_sequences=4)),
    Row("beam search", beams()),
    Row("beam search, left-padded", beams(num_return_sequences=4), padding=(0, 2, 5)),
    Row("beam sampling", beams(do_sample=True), note="after the same `torch.manual_seed`"),
    *(
        Row(f"{mode}, {name}", options, family=family, padding=(0, 2, 5))
        for family, name in (("t5", "T5"), ("bart", "BART"), ("marian", "Marian"))
        for mode, options in (
            ("greedy search", {}),
            ("sampling", sampled(num_return_sequences=2)),
            ("beam search", beams(num_return_sequences=2)),
        )
    ),
    Row("assisted generation", lambda: {"assistant_model": build("gpt2")}, "refused"),
]

OF_CONFIG = [
    Row("max_new_tokens", {"max_new_tokens": 5}),
    Row(
        "max_length",
        {"max_length": 14, "max_new_tokens": None},
        note="the limit includes the prompt and its padding",
    ),
    Row("min_new_tokens", {"min_new_tokens": 8}),
    Row(
        "min_length",
        {"min_length": 17},
        padding=(0, 2, 5),
        note="the limit includes the prompt and its padding",
    ),
    Row("early_stopping", beams(early_stopping=True), note="in decodekit: `WhenFull`, `Heuristic`, `Proved`"),
    Row("max_time", {"max_time": 1e-9}),
    Row(
        "stop_strings",
        note="`dk.StopStrings` also removes the stop string from the text",
        options=lambda: {"stop_strings": ["of"]},
    ),
    Row("do_sample", sampled()),
    Row("num_beams", beams()),
    Row("use_cache", {"use_cache": False}),
    Row("temperature", sampled(temperature=0.6)),
    Row("top_k", {"do_sample": True, "top_k": 5}, note="default: 50, as in `generate()`"),
    Row("top_p", sampled(top_p=0.7)),
    Row("min_p", sampled(min_p=0.2)),
    Row("top_h", sampled(top_h=0.5)),
    Row("typical_p", sampled(typical_p=0.6)),
    Row("epsilon_cutoff", sampled(epsilon_cutoff=0.1)),
    Row("eta_cutoff", sampled(eta_cutoff=0.2)),
    Row("repetition_penalty", {"repetition_penalty": 1.5}, padding=(0, 2, 5)),
    Row("encoder_repetition_penalty", {"encoder_repetition_penalty": 1.5}, family="bart"),
    Row("length_penalty", beams(length_penalty=2.0)),
    Row("no_repeat_ngram_size", {"no_repeat_ngram_size": 2}),
    Row("encoder_no_repeat_ngram_size", {"encoder_no_repeat_ngram_size": 1}, family="bart"),
    Row("bad_words_ids", {"bad_words_ids": [[20], [8, 9]]}),
    Row("renormalize_logits", beams(renormalize_logits=True, do_sample=True, temperature=0.5)),
    Row("forced_bos_token_id", {"forced_bos_token_id": 12}, family="bart"),
    Row("forced_eos_token_id", {"forced_eos_token_id": 7}),
    Row("remove_invalid_values", {"remove_invalid_values": True}),
    Row("exponential_decay_length_penalty", {"exponential_decay_length_penalty": (2, 1.5)}),
    Row("suppress_tokens", {"suppress_tokens": [9, 20, 30]}),
    Row("begin_suppress_tokens", {"begin_suppress_tokens": list(range(8, 30))}),
    Row("sequence_bias", {"sequence_bias": [[[20], 3.0], [[8, 9], -2.0]]}),
    Row(
        "guidance_scale",
        {"guidance_scale": 1.8},
        note="under beams, see [Intended differences](#intended-differences)",
    ),
    Row("watermarking_config", marked(bias=4.0), note="green lists, on the CPU"),
    Row("watermarking_config (SynthID)", marked(keys=[1, 5, 9], ngram_len=3), note="not under beams"),
    Row("num_return_sequences", beams(num_return_sequences=3)),
    Row("output_scores", {"return_dict_in_generate": True, "output_scores": True}),
    Row("output_logits", {"return_dict_in_generate": True, "output_logits": True}),
    Row("return_dict_in_generate", beams(**ALL_OUTPUT), note="all fields are equal"),
    Row("pad_token_id", {"pad_token_id": 11}),
    Row("eos_token_id", {"eos_token_id": 20}),
    Row(
        "bos_token_id",
        {"inputs": None, "attention_mask": None, "bos_token_id": 1},
        note="becomes the prompt if no prompt is given",
    ),
    Row("decoder_start_token_id", {"decoder_start_token_id": 9}, family="bart"),
    Row(
        "disable_compile",
        {"disable_compile": True},
        note="decodekit compiles nothing, with or without this option",
    ),
    *(
        Row(name, {name: value}, "refused")
        for name, value in (
            ("assistant_early_exit", 1),
            ("assistant_ensemble_weight", 0.5),
            ("cache_config", {"backend": "quanto"}),
            ("cache_implementation", "static"),
            ("compile_config", transformers.CompileConfig()),
            ("constraints", ["a constraint"]),
            ("diversity_penalty", 0.5),
            ("dola_layers", "high"),
            ("force_words_ids", [[9]]),
            ("is_assistant", True),
            ("low_memory", True),
            ("max_cache_len", 99),
            ("num_beam_groups", 2),
            ("output_attentions", True),
            ("output_hidden_states", True),
            ("penalty_alpha", 0.6),
            ("prefill_chunk_size", 4),
            ("prompt_lookup_num_tokens", 3),
            ("speculation_type", "dflash"),
            ("token_healing", True),
            ("use_mtp", True),
        )
    ),
]
# Options of the draft of an assistant model; without such a model `generate` ignores them too.
OF_ASSISTANTS = {
    *("assistant_confidence_threshold", "assistant_lookbehind", "max_matching_ngram_size"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind"),
}
NO_OPTIONS = {"_from_model_config", "transformers_version", "continuous_batching_config"}

OF_GENERATE = [
    Row("generation_config", lambda: {"generation_config": transformers.GenerationConfig(num_beams=3)}),
    Row(
        "logits_processor, of transformers",
        with_processors(
            partial(transformers.TopKLogitsWarper, 3), partial(transformers.NoRepeatNGramLogitsProcessor, 2)
        ),
    ),
    Row(
        "logits_processor, of decodekit",
        with_processors(partial(dk.RepetitionPenalty, 1.4), partial(dk.MinP, 0.1)),
    ),
    Row("stopping_criteria", stopped()),
    Row("stopping_criteria under beams", stopped(**beams())),
    Row("prefix_allowed_tokens_fn", {"prefix_allowed_tokens_fn": allowed, **beams()}),
    Row(
        "prefix_allowed_tokens_fn, several samples",
        sampled(num_return_sequences=2, prefix_allowed_tokens_fn=allowed),
    ),
    Row("negative_prompt_ids", {"negative_prompt_ids": torch.tensor([[9, 8]] * 3), "guidance_scale": 1.5}),
    Row("attention_mask", padding=(3, 0, 1)),
    Row("decoder_input_ids", {"decoder_input_ids": torch.tensor([[9, 10]] * 3)}, family="bart"),
    Row(
        "`cache`",
        note="a cache of the first columns of the prompts; one sequence per prompt; named `past_key_values` "
        "before transformers 5.24",
        options=lambda: known_past(),  # noqa: PLW0108 - defined below
    ),
    Row("synced_gpus", {"synced_gpus": True}, "refused"),
    Row("inputs_embeds", {"inputs_embeds": torch.zeros(3, 9, 32)}, "refused"),
    Row("position_ids", {"position_ids": torch.arange(9).expand(3, -1)}, "refused"),
    Row("custom_generate", {"custom_generate": "a/repository"}, "refused"),
    Row("options that `generate()` does not know", {"top_q": 3}, "refused"),
]

DIFFERENT = [
    Row(
        "a pad id of 0 under beams",
        beams(pad_token_id=0, num_return_sequences=4),
        "different",
        "`generate()` ignores the pad id 0, and fills finished hypotheses with the end id. decodekit fills "
        "them with 0; all other tokens, lengths and scores are the same",
        "test_pad_id_0_fills_the_tails_of_beams_and_generate_fills_them_with_the_end_id",
    ),
    Row(
        "n-gram blocking in a left-padded batch",
        {"no_repeat_ngram_size": 1},
        "different",
        "`generate()` treats padding as text, so the result of a prompt depends on the batch. decodekit "
        "ignores padding",
        "test_ngram_blocking_ignores_padding",
        padding=(0, 2, 5),
        pad_id=6,
    ),
    Row(
        "guidance under beams",
        beams(guidance_scale=1.8, num_return_sequences=4),
        "different",
        "`generate()` does not reorder the cache of the unconditional model, so most hypotheses are wrong. "
        "decodekit reorders it with the beams",
        "test_guided_beams_are_exact_and_most_beams_of_generate_are_wrong",
    ),
    Row(
        "padded negative prompts",
        lambda: {
            "guidance_scale": 2.5,
            "negative_prompt_ids": torch.tensor([[3, 3, 3, 9], [8, 9, 10, 11], [3, 3, 20, 30]]),
            "negative_prompt_attention_mask": torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]]),
        },
        "different",
        "`generate()` counts padding in the positions of the prompt. decodekit returns the result that "
        "each prompt gets on its own",
        "test_padded_negative_prompts_have_the_results_of_each_prompt_alone",
    ),
    Row(
        "fewer strings than beams",
        beams(num_return_sequences=4, **ALL_OUTPUT, prefix_allowed_tokens_fn=lambda _, ids: one_of_two(ids)),
        "different",
        "`generate()` returns a string twice, or continues past its end, with a score of about -10⁹. "
        "decodekit returns the strings that exist, and `valid` is False for the rest",
        "test_fewer_strings_than_beams_are_fewer_hypotheses",
    ),
    Row(
        "a source padded on the left",
        beams(num_return_sequences=4),
        "different",
        "`generate()` shifts the positions in the encoder of BART. decodekit gives the result of the "
        "source without padding",
        "test_a_source_padded_on_the_left_has_the_result_of_the_source_alone",
        family="bart",
        padding=(0, 2, 5),
    ),
    Row(
        "encoder penalties over padding",
        {"encoder_repetition_penalty": 30.0},
        "different",
        "`generate()` treats padding as text. decodekit ignores it",
        "test_the_encoder_repetition_penalty_ignores_padding",
        padding=(0, 2, 5),
    ),
    Row(
        "prefix_allowed_tokens_fn in a left-padded batch",
        {"prefix_allowed_tokens_fn": lambda _, ids: list(range(8 + len(ids) % 3, VOCAB, 3))},
        "different",
        "`generate()` passes the padding to the function. decodekit passes only the ids of the prompt, so "
        "each prompt of a batch gets the result that it gets on its own",
        "test_a_prefix_function_receives_the_ids_of_its_prompt",
        padding=(0, 2, 5),
    ),
    Row(
        "a criterion that counts its calls, under beams",
        lambda: {"stopping_criteria": transformers.StoppingCriteriaList([AtCall(5)]), **beams()},
        "different",
        "`generate()` calls the criterion once per step with all candidates. decodekit calls the criterion "
        "several times per step, with as many rows as there are beams: a criterion must be a function of "
        "the ids",
        "test_under_beams_a_transformers_criterion_reads_hypotheses_and_not_candidates",
    ),
    Row(
        "the tails of beams without an end id",
        stopped(**beams(eos_token_id=None, num_return_sequences=4)),
        "different",
        "`generate()` fills the tails with -1. decodekit fills them with the pad id",
        "test_the_tails_of_beams_without_an_end_id_are_the_pad_id",
    ),
    Row(
        "a custom criterion and no end id",
        stopped(eos_token_id=None),
        "different",
        "`generate()` continues stopped rows until all rows are stopped. decodekit pads them",
        "test_a_stopped_row_emits_no_further_tokens_without_end_ids",
    ),
]


def one_of_two(ids: torch.Tensor) -> list[int]:
    """Allow two sequences: 9, 10 and the end, or 11 and the end."""
    return {9: [10], 10: [ENDS[0]], 11: [ENDS[0]]}.get(int(ids[-1]), [9, 11])


def known_past() -> Options:
    """A cache that holds the first five columns of the prompts."""
    prompts = batch((0, 0, 0), seed=31)
    with torch.no_grad():
        past = build("gpt2")(prompts.tokens[:, :5], use_cache=True).cache
    return {"cache": past, **ALL_OUTPUT}


@cache
def outcome(row: Row) -> Outcome:
    """Decode the call with both libraries."""
    _probe(row.family)
    try:
        ours, our_positions = _generate(partial(dk.compat.hf.generate, wrap(row.family)), row)
    except dk.DecodekitError as error:
        named = next(iter(row.call()))
        return Outcome("refused" if named in str(error) else f"refused without its name: {error}", 0, 0)
    theirs, their_positions = _generate(build(row.family).generate, row)
    verdict = "different" if differences(theirs, ours) else "equal"
    return Outcome(verdict, their_positions, our_positions)


@cache
def _probe(family: str) -> None:
    """Let decodekit probe the model, so that the passes of the probes are not counted."""
    prompts = Row("", family=family, padding=(0, 3)).prompts
    dk.compat.hf.generate(
        wrap(family), prompts.tokens, attention_mask=prompts.mask, num_beams=2, pad_token_id=PAD
    )


def _generate(generate: Callable[..., Any], row: Row) -> tuple[Any, int]:
    """The result, and the number of positions that the decoder of the model computed."""
    prompts, options = row.prompts, row.call()
    given: Options = {
        "attention_mask": prompts.mask,
        "eos_token_id": list(ENDS),
        "pad_token_id": row.pad_id,
        "max_new_tokens": 12,
    }
    given |= {"inputs": prompts.tokens} | options
    if "stop_strings" in options:
        given["tokenizer"] = dk.load().tokenizer
    positions = 0

    def count(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:  # noqa: ANN401 - a hook's signature
        nonlocal positions
        ids = named.get("decoder_input_ids", named.get("input_ids"))
        positions += (args[0] if ids is None else ids).numel()

    hook = build(row.family).register_forward_pre_hook(count, with_kwargs=True)
    try:
        torch.manual_seed(7)
        returned = generate(**given)
        return returned, positions
    finally:
        hook.remove()
