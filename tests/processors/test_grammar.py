import json
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

import decodekit as dk
from decodekit.core.pytrees import reorder_memory
from decodekit.testing import check_processor

BANNED = -torch.inf
END = 0  # the bundled model's
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "king": {"type": "boolean"},
    },
    "required": ["name", "age", "king"],
    "additionalProperties": False,
}
LINES = """
start: greeting " " name
greeting: "good day" | "hello"
name: /[a-z]{2,5}/
"""


@pytest.fixture(scope="module")
def model() -> dk.HFModel:
    return dk.load()


def allowed_by(processor: dk.Grammar, texts: list[list[int]], vocab: int = 4096) -> list[set[int]]:
    """The allowed ids after each of some texts that follow a prompt, in one batch."""
    history = dk.Prompt.from_ids([[5]] * len(texts)).history(1 + len(texts[0]), 1)
    memory, scores = processor.init(history), torch.zeros(len(texts), vocab)
    out, memory = processor.apply(history, scores, memory)
    for column in zip(*texts, strict=True):
        history = history.append(torch.tensor(column))
        out, memory = processor.apply(history, scores, memory)
    return [set(torch.where(row > BANNED)[0].tolist()) for row in out]


def texts_of(model: dk.HFModel, ids: set[int]) -> set[str]:
    return {"END" if token == END else model.tokenizer.decode([token]) for token in ids}


def test_a_regular_expression_allows_the_tokens_with_which_it_can_go_on(model: dk.HFModel) -> None:
    processor = dk.Grammar.regex("(the|then)y?", model.vocabulary)
    ids = {text: model.vocabulary.ids(text)[0] for text in ("t", "h", "e", "n", "y", "the")}
    assert {"t", "th", "the", "then", "they"} >= texts_of(model, *allowed_by(processor, [[]])) >= {"t", "the"}
    assert [{"END", "n", "ny", "y"}] == [
        texts_of(model, one) for one in allowed_by(processor, [[ids["the"]]])
    ]
    t, h, e, n, y = (ids[letter] for letter in "theny")
    # For any tokenization; where the string is complete, only the end id is left.
    assert allowed_by(processor, [[ids["the"]]]) == allowed_by(processor, [[t, h, e]])
    assert [{END}] == allowed_by(processor, [[t, h, e, n, y]])
    assert [{END}] == allowed_by(processor, [[t, h, e, y]])


def test_an_ended_output_stays_ended_and_a_rejected_one_has_no_token_left(
    model: dk.HFModel,
) -> None:
    processor = dk.Grammar.regex("ab?", model.vocabulary)
    a, b, c = (model.vocabulary.ids(letter)[0] for letter in "abc")
    assert [{END}, set(), set(), {END}] == allowed_by(
        processor, [[a, END, c], [b, a, b], [END, a, a], [a, END, END]]
    )


def test_several_end_ids_are_allowed_together_and_never_as_text(model: dk.HFModel) -> None:
    letter = model.vocabulary.ids("a")[0]
    processor = dk.Grammar.regex("b|a", model.tokenizer, end_ids=[END, letter])
    assert [{"b"}] == [texts_of(model, one) for one in allowed_by(processor, [[]])]
    assert [{END, letter}] == allowed_by(processor, [model.vocabulary.ids("b")])


@pytest.mark.parametrize("vocab", [4096, 4100, 5000, 3000, 300])
def test_a_model_may_have_more_tokens_than_the_tokenizer_or_fewer(model: dk.HFModel, vocab: int) -> None:
    processor = dk.Grammar.regex("[^x]*", model.vocabulary)
    expected = {token for token in allowed_by(processor, [[]])[0] if token < vocab}
    assert [expected] == allowed_by(processor, [[]], vocab)
    assert max(expected) < 4096


DECODERS = {
    "greedy": dk.Greedy(),
    "samples": dk.Sample(3, seeds=[1, 2]),
    "beams": dk.BeamSearch(4, num_return=4),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_every_decoder_emits_a_string_that_the_grammar_accepts(model: dk.HFModel, decoder: Any) -> None:  # noqa: ANN401
    prompts = ["The king was ", "He said to her"]
    options = {"max_new_tokens": 60, "end_ids": model.vocabulary.end_ids}
    made = dk.Grammar.json_schema(PERSON, model.vocabulary, whitespace=False)
    out = dk.decode(model, prompts, decoder, made, **options)
    for text in (text for several in out.texts for text in several):
        person = json.loads(text)
        assert {"name": str, "age": int, "king": bool} == {key: type(value) for key, value in person.items()}
        assert len(person["name"]) <= 12
        assert 0 <= person["age"] <= 120
    for made, pattern in (
        (dk.Grammar.regex(r"(she|he|they) (was|were) [a-z]{3,9}\.", model.tokenizer), None),
        (dk.Grammar.lark(LINES, model.tokenizer), "(good day|hello) [a-z]{2,5}"),
    ):
        out = dk.decode(model, prompts, decoder, made, **options)
        expected = pattern or r"(she|he|they) (was|were) [a-z]{3,9}\."
        texts = [text for several in out.texts for text in several]
        assert all(re.fullmatch(expected, text) for text in texts)
        assert {"end"} == {reason for several in out.finish_reason for reason in several}
        assert len(texts) == 2 * decoder.rows_per_prompt


def test_a_beams_matcher_follows_its_beam(model: dk.HFModel) -> None:
    # Each row against a matcher that reads the row's whole text from the start.
    processor = dk.Grammar.json_schema(PERSON, model.vocabulary)
    read = from_tokenizer(model.tokenizer)
    fresh = LLMatcher(read, LLMatcher.grammar_from_json_schema(PERSON))
    generator = torch.Generator().manual_seed(0)
    prompt, beams = dk.Prompt.from_ids([[7], [8, 9]]), 4
    moved = 0
    for _ in range(3):
        history = prompt.history(60, beams)
        memory, scores = processor.init(history), torch.zeros(8, 4096)
        emitted: list[list[int]] = [[] for _ in range(8)]
        for _ in range(40):
            out, after = processor.apply(history, scores, memory)
            again, _ = processor.apply(history, scores, memory)  # applying it did not change the memory
            assert torch.equal(out, again)
            for row, text in enumerate(emitted):
                matcher = fresh.deep_copy()
                assert matcher.consume_tokens(text)
                bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
                assert np.flatnonzero(bits).tolist() == torch.where(out[row] > BANNED)[0].tolist()
            sources = torch.arange(8) // beams * beams + torch.randint(0, beams, (8,), generator=generator)
            # Never an end id, so that all go on; where nothing else is left the grammar is complete.
            likely = (out.index_select(0, sources) > BANNED).float().index_fill(1, torch.tensor([END]), 1e-9)
            tokens = torch.tensor([_draw(row, generator) for row in likely])
            if END in tokens:
                break
            moved += int((sources != torch.arange(8)).any())
            emitted = [
                emitted[source] + [token]
                for source, token in zip(sources.tolist(), tokens.tolist(), strict=True)
            ]
            memory, history = reorder_memory(after, sources), history.take(sources).append(tokens)
    assert moved >= 100


def _draw(weights: torch.Tensor, generator: torch.Generator) -> int:
    return int((weights / torch.empty_like(weights).exponential_(generator=generator)).argmax())


def test_grammar_keeps_the_contract_of_processors(model: dk.HFModel) -> None:
    # Ids below 40 are single characters, so that random texts go on for a while.
    check_processor(dk.Grammar.regex(r"[!-7]{2}[!-@]*", model.vocabulary), vocab=40, max_examples=10)
    check_processor(dk.Grammar.json_schema({}, model.vocabulary), vocab=40, max_examples=5)


@pytest.mark.parametrize(
    "make",
    [
        lambda given: dk.Grammar.regex("(", given),
        lambda given: dk.Grammar.json_schema({"type": "nonsense"}, given),
        lambda given: dk.Grammar.json_schema("{", given),
        lambda given: dk.Grammar.json_schema({"type": {1, 2}}, given),
        lambda given: dk.Grammar.lark("start: missing", given),
        lambda given: dk.Grammar("", given),
    ],
)
def test_grammar_refuses_what_cannot_be_read(model: dk.HFModel, make: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^Grammar: the grammar cannot be read: \S"):
        make(model.vocabulary)


@pytest.mark.parametrize("tokenizer", [None, "gpt2", dk.Vocabulary(end_ids=(0,))])
def test_grammar_refuses_what_is_no_fast_tokenizer(tokenizer: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^Grammar: tokenizer must be a fast tokenizer of Hugging Face"):
        dk.Grammar.regex("a", tokenizer, end_ids=0)


def test_grammar_refuses_end_ids_that_are_none_or_outside_the_vocabulary(model: dk.HFModel) -> None:
    with pytest.raises(ValueError, match=r"^Grammar: there must be at least one end id"):
        dk.Grammar.regex("a", model.tokenizer, end_ids=())
    with pytest.raises(ValueError, match=r"^Grammar: token ids must be integers of at least 0, got -1"):
        dk.Grammar.regex("a", model.tokenizer, end_ids=-1)
    with pytest.raises(ValueError, match=r"^Grammar: llguidance cannot read the tokenizer: .*4096"):
        dk.Grammar.regex("a", model.tokenizer, end_ids=4096)
    late = dk.Grammar.regex("a", model.tokenizer, end_ids=4000)
    with pytest.raises(dk.DecodekitError, match=r"^Grammar: end ids must be below the vocabulary size 300"):
        allowed_by(late, [[]], vocab=300)


def test_grammar_without_llguidance_names_the_package_to_install(
    model: dk.HFModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"pip install decodekit\[grammar\]"):
        dk.Grammar.regex("a", model.vocabulary)
