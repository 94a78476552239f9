"""Stop strings: across tokens, within them, through characters that are split."""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from tests.stopping.scripted import Pieces, Scripted, script_of

LAWS = settings(max_examples=150, deadline=None, derandomize=True, database=None)
TOKENIZER = dk.load().vocabulary.tokenizer
VOCABULARY = dk.Vocabulary(tokenizer=TOKENIZER)
VOCAB = 4096


def stopped(
    pieces: list[str | bytes], stop: dk.StopStrings | list[dk.StopStrings], prompt: list[int] | None = None
) -> tuple[str, int, str]:
    """The text, its number of tokens and why it ended, of a model that emits some pieces."""
    model, new = script_of(pieces)
    prompts = [[0] if prompt is None else prompt]
    out = dk.decode(model, prompts, dk.Greedy(), stop=stop, max_new_tokens=new)
    assert out.hypotheses() == [[list(range(int(out.lengths)))]]
    assert out.texts is not None
    return out.texts[0][0], int(out.lengths), out.finish_reason[0][0]


def test_a_string_in_one_token_finishes_the_text_before_it() -> None:
    assert stopped(["a", "b", "stop", "c"], dk.StopStrings("stop")) == ("ab", 3, "string")


def test_include_keeps_the_string_and_drops_what_follows_it_in_its_token() -> None:
    pieces: list[str | bytes] = ["a", "b st", "op!!", "c"]
    assert stopped(pieces, dk.StopStrings("stop")) == ("ab ", 3, "string")
    assert stopped(pieces, dk.StopStrings("stop", include=True)) == ("ab stop", 3, "string")


def test_a_string_may_begin_inside_a_token_and_end_inside_another() -> None:
    assert stopped(["one ", "two.\n", "\n\nthree", "x"], dk.StopStrings("\n\n")) == ("one two.", 3, "string")


def test_a_string_may_stretch_over_many_tokens() -> None:
    assert stopped(["x", *"long string", "y"], dk.StopStrings("long string")) == ("x", 12, "string")


def test_a_string_may_be_much_longer_than_the_first_window() -> None:
    string = "abcdefghij" * 30
    pieces: list[str | bytes] = ["x", *string, "y"]
    assert stopped(pieces, dk.StopStrings(string)) == ("x", 301, "string")
    assert stopped(pieces, dk.StopStrings(string[1:] + "!")) == ("x" + string + "y", 302, "length")


def test_tokens_without_text_may_stand_in_the_middle() -> None:
    model = Scripted([[1, *[0] * 60, 2, 3]], 4, Pieces([b"", "a", "b", "c"]))
    out = dk.decode(model, [[1]], dk.Greedy(), stop="ab", max_new_tokens=63)
    assert (out.texts, out.lengths.item()) == ([[""]], 62)


def test_strings_in_the_prompt_do_not_count() -> None:
    # The prompt contains "ab", and "a" again at its end.
    model = Scripted([[1, 2, 0, 1, 2]], 3, Pieces("abc"))
    out = dk.decode(model, "aba", dk.Greedy(), stop=["ab", "aa"], max_new_tokens=5)
    assert (out.texts, out.lengths.item(), out.finish_reason) == ([["bc"]], 4, [["string"]])


def test_a_character_may_be_split_between_tokens() -> None:
    euro = "€".encode()
    assert stopped(["a", *[euro[i : i + 1] for i in range(3)], "b"], dk.StopStrings("€")) == (
        "a",
        4,
        "string",
    )
    assert stopped(["a", euro[:2], euro[2:] + b"!", "b"], dk.StopStrings("€", include=True)) == (
        "a€",
        3,
        "string",
    )
    # Begun, and another character after all.
    assert stopped(["a", euro[:2], "b", "c"], dk.StopStrings("€c"))[2] == "length"


def test_a_character_that_the_bundled_tokenizer_splits_is_found() -> None:
    assert TOKENIZER is not None
    ids = TOKENIZER.encode("über 🙂!", add_special_tokens=False)
    smile = TOKENIZER.encode("🙂", add_special_tokens=False)
    assert len(smile) == 4
    out = dk.decode(Scripted([ids], VOCAB, TOKENIZER), [[5]], dk.Greedy(), stop="r 🙂", max_new_tokens=20)
    assert out.texts == [["übe"]]
    assert out.hypotheses() == [[ids[: ids.index(smile[-1]) + 1]]]


@pytest.mark.parametrize(
    ("strings", "text"),
    [
        (["cd", "bcd"], "a"),  # end together: the longer one
        (["d", "b"], "a"),  # the first to end, though one token has both
        (["bcdX", "c"], "ab"),
        (["zz", "yy"], "abcd"),
    ],
)
def test_of_several_strings_the_first_to_end_cuts(strings: list[str], text: str) -> None:
    assert stopped(["a", "bcd"], dk.StopStrings(strings))[0] == text


def test_of_several_criteria_the_one_that_finished_the_text_cuts_it() -> None:
    both = [dk.StopStrings("c", include=True), dk.StopStrings("bc")]
    assert stopped(["a", "bcd"], both) == ("abc", 2, "string")
    assert stopped(["a", "bcd"], both[::-1]) == ("a", 2, "string")


def test_of_combinations_with_one_reason_the_one_that_held_cuts() -> None:
    early = dk.StopStrings("bc", include=True) & dk.MaxNewTokens(2)
    late = dk.StopStrings("b") & dk.MaxNewTokens(3)
    assert stopped(["a", "bcd", "e"], [late, early]) == ("abc", 2, "string and length")


def test_a_string_in_an_end_id_or_the_last_token_is_cut_too() -> None:
    model, new = script_of(["a", "b!", "c"])
    ended = dk.decode(model, [[0]], dk.Greedy(), stop="!", end_ids=1, max_new_tokens=new)
    assert (ended.texts, ended.finish_reason) == ([["ab"]], [["end"]])
    last = dk.decode(model, [[0]], dk.Greedy(), stop="!", max_new_tokens=2)
    assert (last.texts, last.finish_reason) == ([["ab"]], [["string"]])


def test_every_prompt_of_a_batch_stops_where_it_would_alone() -> None:
    scripts, tokenizer = [[0, 1, 2, 3], [3, 3, 3, 0], [1, 1, 1, 1]], Pieces("abc.")
    stop = dk.StopStrings(["bc", "."])
    out = dk.decode(
        Scripted(scripts, 4, tokenizer), [[0], [1, 2], [1, 2, 0]], dk.Greedy(), stop=stop, max_new_tokens=4
    )
    assert out.texts == [["a"], [""], ["bbbb"]]
    assert out.finish_reason == [["string"], ["string"], ["length"]]


@pytest.mark.parametrize("stop", ["xx", dk.StopWhen(lambda text: "xx" in text)])
def test_padding_is_not_read(stop: Any) -> None:  # noqa: ANN401
    class WithoutPadding(Pieces):
        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            assert 0 not in token_ids
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    model = Scripted([[1, 2, 1], [2, 1, 2]], 3, WithoutPadding(["", "a", "b"]))
    out = dk.decode(model, [[1], [1, 2, 1, 2]], dk.Greedy(), stop=stop, max_new_tokens=3)
    assert out.texts == [["aba"], ["bab"]]


def test_construction_needs_no_vocabulary_and_a_run_decodes_only_new_tokens() -> None:
    decoded: list[int] = []

    class Counting(Pieces):
        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            decoded.append(len(token_ids))
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    stop = dk.StopStrings(["!", "?"])
    model = Scripted([[*range(100), 1]], 5000, Counting(["x"] * 5000))
    dk.decode(model, [[1]], dk.Greedy(), stop=stop, max_new_tokens=100)
    # Four texts a step, each of a few tokens however long the run is, and the result at the end.
    assert len(decoded) <= 4 * 100 + 4
    assert sorted(decoded)[: 4 * 100][-1] <= 10


def ids_to_say() -> st.SearchStrategy[list[int]]:
    """Ids of the bundled tokenizer: words, letters, parts of characters, and one without text."""
    assert TOKENIZER is not None
    parts = TOKENIZER.encode("the king's “un€” über 日🙂… and, 'I am. \n—", add_special_tokens=False)
    return st.lists(st.sampled_from([0, *parts]), min_size=1, max_size=14)


def first_to_say(prompt: list[int], ids: list[int], strings: list[str]) -> tuple[int, str, str] | None:
    """By reading everything at every step: tokens until one of the strings is there, the text before it
    and the text with it."""
    for length in range(1, len(ids) + 1):
        text = VOCABULARY.text(prompt, ids[:length])
        assert text is not None
        ends = sorted((text.find(s) + len(s), text.find(s)) for s in strings if s in text)
        if ends:
            return length, text[: ends[0][1]], text[: ends[0][0]]
    return None


@pytest.mark.slow
@LAWS
@given(data=st.data(), include=st.booleans())
def test_it_equals_reading_the_whole_text_at_every_step(data: st.DataObject, include: bool) -> None:  # noqa: FBT001
    assert TOKENIZER is not None
    prompt = data.draw(ids_to_say())
    ids = data.draw(ids_to_say())
    text = TOKENIZER.decode(ids, skip_special_tokens=True)
    slices = st.builds(
        lambda start, length: text[start : start + length], st.integers(0, len(text)), st.integers(1, 9)
    )
    candidates = st.one_of(slices, st.sampled_from(["king", "€", " 日", "”", "the the", ". ", "🙂…"]))
    strings = data.draw(
        st.lists(candidates.filter(lambda s: s and "\ufffd" not in s), min_size=1, max_size=3)
    )
    stop = dk.StopStrings(strings, include=include)
    model = Scripted([ids], VOCAB, TOKENIZER)
    out = dk.decode(model, [prompt], dk.Greedy(), stop=stop, end_ids=(), max_new_tokens=len(ids))
    expected = first_to_say(prompt, ids, strings)
    if expected is None:
        assert (out.hypotheses(), out.finish_reason) == ([[ids]], [["length"]])
    else:
        length, before, through = expected
        assert (out.hypotheses(), out.finish_reason) == ([[ids[:length]]], [["string"]])
        assert out.texts == [[through if include else before]]


@pytest.mark.parametrize("string", ["who", "little boy", "ittle b", ",", "not in it"])
def test_hugging_face_stops_at_the_same_token(string: str) -> None:
    path = dk.bundled_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    inputs = tokenizer("Once upon a time there was", return_tensors="pt")
    expected = model.generate(
        **inputs, do_sample=False, max_new_tokens=16, stop_strings=[string], tokenizer=tokenizer
    )
    out = dk.decode(dk.load(), inputs, dk.Greedy(), stop=dk.StopStrings(string), max_new_tokens=16)
    assert expected.tolist() == out.sequences.tolist()


def test_a_beam_search_ranks_hypotheses_with_a_string_among_ended_ones() -> None:
    # Token 0 starts; "." ends. As beam search with the same end id, the text without it.
    model = dk.testing.HashModel(5, seed=3)
    ended = dk.decode(model, [[1], [2, 3]], dk.BeamSearch(3, num_return=3), end_ids=4, max_new_tokens=6)
    model.vocabulary = dk.Vocabulary(size=5, tokenizer=Pieces("abcd."))
    out = dk.decode(model, [[1], [2, 3]], dk.BeamSearch(3, num_return=3), stop=".", max_new_tokens=6)
    assert ended.hypotheses() == out.hypotheses()
    assert torch.equal(ended.score, out.score)
    assert out.texts == [
        ["".join("abcd."[token] for token in tokens).removesuffix(".") for tokens in row]
        for row in ended.hypotheses()
    ]
    assert {reason for row in out.finish_reason for reason in row} == {"string", "length"}


def test_without_a_tokenizer_there_is_no_string() -> None:
    with pytest.raises(
        dk.DecodekitError, match="StopStrings: strings need a tokenizer, and the model has no"
    ):
        dk.decode(dk.testing.HashModel(5), [[1]], dk.Greedy(), stop=".", max_new_tokens=2)


@pytest.mark.parametrize("strings", ["", [""], ["a", ""], [5], ["a", None], b"ab"])
def test_strings_must_be_text_of_some_length(strings: object) -> None:
    with pytest.raises(ValueError, match="StopStrings: strings must be text of some length"):
        dk.StopStrings(strings)  # type: ignore[arg-type]


def test_there_must_be_a_string() -> None:
    with pytest.raises(ValueError, match="StopStrings: there must be at least one string"):
        dk.StopStrings([])


@pytest.mark.parametrize("strings", [5, None])
def test_strings_must_be_a_string_or_several(strings: object) -> None:
    with pytest.raises(TypeError, match="StopStrings: strings must be a string or several"):
        dk.StopStrings(strings)  # type: ignore[arg-type]


def test_it_reads_on_the_host() -> None:
    assert not dk.StopStrings("a").capturable
    assert dk.StopStrings("a").reason == "string"
