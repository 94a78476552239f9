"""Streaming: joined, the pieces are the text; what was handed out stands."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.engine.decode import StepSnapshot, decode_steps
from decodekit.testing import HashModel
from decodekit.testing.strategies import prompts
from tests.stopping.scripted import Pieces, Scripted

LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
# Letters, two of a word, and a character in two parts.
TEXTS = Pieces(["a", "b", ".", "ab", "\u00e9".encode()[:1], "\u00e9".encode()[1:]])
STOPS: list[Any] = [
    (),
    "ab",
    ["bab", "é", dk.StopStrings("..", include=True)],
    dk.StopStrings("b") & dk.MaxNewTokens(3),
    dk.EndIds(2) | dk.StopStrings("aé"),
]


class Silent(dk.Decoder[dk.RowState]):
    """A decoder that does not say what is settled."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.argmax(-1), scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=1)


def readable(seed: int) -> HashModel:
    """A random model that says letters."""
    model = HashModel(6, seed)
    model.vocabulary = dk.Vocabulary(size=6, tokenizer=TEXTS)
    return model


def decoder(name: str, batch: int) -> dk.Decoder[Any]:
    """A fresh one, so that a run can be repeated."""
    made: dict[str, dk.Decoder[Any]] = {
        "greedy": dk.Greedy(),
        "sample": dk.Sample(2, seeds=list(range(batch))),
        "beam": dk.BeamSearch(3),
        "beams": dk.BeamSearch(3, num_return=2, stop_rule=dk.Patience(1.5)),
        "silent": Silent(),
    }
    return made[name]


def joined(stream: dk.Stream) -> dict[tuple[int, int], str]:
    """The text of every hypothesis, from its pieces."""
    texts: dict[tuple[int, int], str] = {}
    for piece in stream:
        assert piece.text
        texts[piece.prompt, piece.hypothesis] = texts.get((piece.prompt, piece.hypothesis), "") + piece.text
    return texts


def texts_of(out: dk.Decoded) -> dict[tuple[int, int], str]:
    """The same from a result; texts without letters have no pieces."""
    assert out.texts is not None
    return {
        (prompt, number): text
        for prompt, texts in enumerate(out.texts)
        for number, text in enumerate(texts)
        if text
    }


@pytest.mark.mostly_slow(3)
@pytest.mark.parametrize("name", ["greedy", "sample", "beam", "beams", "silent"])
@LAWS
@given(batch=prompts(vocab=6), seed=st.integers(0, 2**31), stop=st.sampled_from(STOPS), ends=st.booleans())
def test_joined_the_pieces_are_the_texts_that_decode_returns(
    name: str,
    batch: list[list[int]],
    seed: int,
    stop: Any,  # noqa: ANN401
    ends: bool,  # noqa: FBT001
) -> None:
    options = {"stop": stop, "end_ids": (2,) if ends else (), "max_new_tokens": 8}
    expected = dk.decode(readable(seed), batch, decoder(name, len(batch)), **options)  # type: ignore[arg-type]
    stream = dk.stream(readable(seed), batch, decoder(name, len(batch)), **options)  # type: ignore[arg-type]
    assert texts_of(expected) == joined(stream)
    assert expected.texts == stream.result.texts
    assert torch.equal(expected.tokens, stream.result.tokens)
    assert expected.finish_reason == stream.result.finish_reason


def pieces(said: list[str | bytes], **options: Any) -> list[str]:  # noqa: ANN401
    """The pieces in which a model that says some pieces is streamed."""
    model = Scripted([list(range(len(said)))], len(said), Pieces(said))
    stream = dk.stream(model, [[0]], dk.Greedy(), max_new_tokens=len(said), **options)
    return [piece.text for piece in stream]


def test_every_token_is_a_piece() -> None:
    assert pieces(["a", " b", "c"]) == ["a", " b", "c"]


def test_a_token_that_says_nothing_is_none() -> None:
    assert pieces(["a", b"", "c"]) == ["a", "c"]


def test_a_part_of_a_character_waits_for_the_rest() -> None:
    euro = "€".encode()
    assert pieces(["a", euro[:1], euro[1:2], euro[2:], "b"]) == ["a", "€", "b"]
    assert pieces(["a", b"b" + euro[:2], euro[2:] + b"c"]) == ["a", "b", "€c"]


def test_bytes_that_are_no_character_come_once_they_stand() -> None:
    euro = "€".encode()
    assert pieces(["a", euro[:2], "b"]) == ["a", "\ufffdb"]
    assert pieces(["a", euro[:2]]) == ["a", "\ufffd"]  # at the end it is what it is


def test_the_bundled_models_characters_come_whole() -> None:
    model = dk.load()
    tokenizer = model.vocabulary.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("über 日🙂!", add_special_tokens=False)
    stream = dk.stream(Scripted([ids], 4096, tokenizer), [[5]], dk.Greedy(), max_new_tokens=len(ids))
    letters = [piece.text for piece in stream]
    assert "".join(letters) == "über 日🙂!"
    assert not any("\ufffd" in letter for letter in letters)


def test_what_may_become_a_stop_string_is_held_back_and_comes_if_it_does_not() -> None:
    said: list[str | bytes] = ["x", "s", "t", "i", "l", "l", " s", "to", "p", "y"]
    # The newest token always waits: it might end the text.
    assert pieces(said, stop="stop") == ["x", "sti", "l", "l", " "]
    assert pieces(said, stop=dk.StopStrings("stop", include=True)) == ["x", "sti", "l", "l", " ", "stop"]
    assert pieces(said, stop="stopped") == ["x", "sti", "l", "l", " ", "stopy"]


def test_a_stop_string_never_leaks_even_from_the_middle_of_a_token() -> None:
    assert pieces(["ab", "c##d", "e"], stop="##") == ["ab", "c"]
    assert pieces(["ab#", "#d", "e"], stop="##") == ["ab"]
    euro = "€".encode()
    assert pieces(["a€", b"b" + euro[:1], euro[1:], "e"], stop="b€") == ["a€"]


def test_pieces_say_where_they_belong() -> None:
    model = Scripted([[0, 1], [1, 0]], 2, Pieces("ab"))
    stream = dk.stream(model, [[0], [0, 1]], dk.Sample(2, seeds=[1, 2]), max_new_tokens=2)
    assert list(stream) == [
        dk.TextChunk(prompt, hypothesis, text)
        for texts in ("ab", "ba")
        for prompt, text in enumerate(texts)
        for hypothesis in range(2)
    ]


def test_a_step_is_taken_only_when_a_piece_is_wanted() -> None:
    steps: list[int] = []

    class Watch(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            steps.append(int(history.position))
            return scores

    stream = dk.stream(readable(1), [[0]], dk.Greedy(), Watch(), end_ids=(), max_new_tokens=8)
    assert steps == []
    next(stream)
    assert len(steps) <= 3  # a character in two parts may come first
    assert len(stream.result.hypotheses()[0][0]) == 8
    assert len(steps) == 8


# Beam search


def starts(beams: int, progress: StepSnapshot[Any], out: dk.Decoded) -> list[list[list[int]]]:
    """Of every prompt, all that is still in play: what lives and what has finished."""
    step, state = progress.number, progress.state
    said = state.history.tokens[:, progress.limits.prompt_length :][:, :step].view(-1, beams, step)
    play = []
    for prompt in range(len(out.lengths)):
        live = [
            row
            for row, log_prob in zip(said[prompt].tolist(), state.log_probs[prompt].tolist(), strict=True)
            if log_prob > -torch.inf
        ]
        ended = [
            row[:length]
            for row, length, used in zip(
                state.finished.records.tokens[prompt].tolist(),
                state.finished.lengths[prompt].tolist(),
                state.finished.used[prompt].tolist(),
                strict=True,
            )
            if used
        ]
        play.append((live if state.active[prompt] else []) + ended)
    return play


def common(texts: list[list[int]]) -> list[int]:
    """The longest list that all of them begin with."""
    longest = max(
        length
        for length in range(min(map(len, texts)) + 1)
        if all(text[:length] == texts[0][:length] for text in texts)
    )
    return texts[0][:longest]


@pytest.mark.slow
@LAWS
@given(
    batch=prompts(vocab=6),
    seed=st.integers(0, 2**31),
    beams=st.integers(1, 3),
    stop=st.sampled_from(STOPS),
    scale=st.sampled_from([1.0, 6.0]),
)
def test_what_a_beam_search_has_settled_is_the_longest_common_start_and_stands(
    batch: list[list[int]],
    seed: int,
    beams: int,
    stop: Any,  # noqa: ANN401
    scale: float,
) -> None:
    model = HashModel(6, seed, scale)
    model.vocabulary = dk.Vocabulary(size=6, tokenizer=TEXTS)
    search = dk.BeamSearch(beams, num_return=beams)
    out = dk.decode(model, batch, search, max_new_tokens=7, end_ids=2, stop=stop)
    said: list[list[int]] = [[] for _ in batch]
    for progress in decode_steps(model, batch, search, max_new_tokens=7, end_ids=2, stop=stop):
        stable_prefix = search.stable_prefix(progress.state)
        for prompt, play in enumerate(starts(beams, progress, out)):
            best = stable_prefix[prompt][0]
            assert best[: len(said[prompt])] == said[prompt]
            said[prompt] = best
            if progress.state.active[prompt]:
                assert common(play) == best
            # Whatever came of it, it begins so: of every hypothesis.
            for number, tokens in enumerate(stable_prefix[prompt]):
                final = out.hypotheses()[prompt][number]
                assert final[: len(tokens)] == tokens
    assert said == [row[0] for row in out.hypotheses()]


def test_a_sure_beam_search_settles_token_by_token() -> None:
    model = HashModel(6, seed=3, scale=40.0)
    model.vocabulary = dk.Vocabulary(size=6, tokenizer=Pieces("abcdef"))
    stream = dk.stream(model, [[1]], dk.BeamSearch(2), max_new_tokens=12)
    parts = [piece.text for piece in stream]
    assert len(parts) >= 4
    assert ["".join(parts)] == stream.result.texts[0]  # type: ignore[index]


def test_hypotheses_that_may_not_exist_wait_for_the_end() -> None:
    # Constraints leave one text only, and two are asked for.
    model = Scripted([[0, 1, 2]], 3, Pieces("abc"))
    only = dk.PrefixConstraint(lambda _, ids: [len(ids) - 1] if len(ids) < 4 else [0])
    stream = dk.stream(model, [[0]], dk.BeamSearch(2, num_return=2), only, max_new_tokens=3)
    assert joined(stream) == {(0, 0): "abc"}
    assert stream.result.valid.tolist() == [[True, False]]


# The result, closing, errors


def test_the_result_needs_no_iteration() -> None:
    expected = dk.decode(readable(5), [[1]], dk.BeamSearch(3), max_new_tokens=6)
    stream = dk.stream(readable(5), [[1]], dk.BeamSearch(3), max_new_tokens=6)
    assert expected.texts == stream.result.texts
    assert list(stream) == []
    assert stream.result is stream.result


def test_the_result_may_be_asked_for_in_the_middle() -> None:
    stream = dk.stream(readable(5), [[1]], dk.Greedy(), max_new_tokens=6)
    first = next(stream)
    assert stream.result.texts is not None
    assert stream.result.texts[0][0].startswith(first.text)


def test_it_takes_decodes_options() -> None:
    stream = dk.stream(readable(5), [[1]], dk.Greedy(), dk.SuppressTokens([4]), max_new_tokens=3, trace=2)
    assert stream.result.trace is not None
    assert len(stream.result.trace) == 3
    padded = dk.stream(
        readable(5), [[1]], dk.BeamSearch(2, num_return=2), max_new_tokens=3, end_ids=2, pad_id=1
    )
    assert padded.result.pad_id == 1


def test_closed_it_hands_out_no_more_and_has_no_result() -> None:
    for taken in (0, 1):
        stream = dk.stream(readable(5), [[1]], dk.Greedy(), max_new_tokens=6)
        for _ in range(taken):
            next(stream)
        stream.close()
        assert list(stream) == []
        with pytest.raises(dk.DecodekitError, match="Stream: there is no result"):
            _ = stream.result


def test_closing_a_stream_that_is_over_keeps_its_result() -> None:
    stream = dk.stream(readable(5), [[1]], dk.Greedy(), max_new_tokens=6)
    text = "".join(piece.text for piece in stream)
    stream.close()
    assert stream.result.texts == [[text]]


def test_options_and_prompts_are_refused_at_once() -> None:
    with pytest.raises(dk.DecodekitError, match="max_new_tokens must be an integer of at least 1"):
        dk.stream(readable(5), [[1]], dk.Greedy(), max_new_tokens=0)
    with pytest.raises(dk.PromptError, match="ids must be in"):
        dk.stream(readable(5), [[99]], dk.Greedy(), max_new_tokens=2)


def test_an_error_on_the_way_comes_after_the_pieces_before_it() -> None:
    class Ends(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            return scores.masked_fill(history.position > 2, -torch.inf)

    model = Scripted([[0, 1, 2]], 3, Pieces("abc"))
    stream = dk.stream(model, [[0]], dk.Greedy(), Ends(), max_new_tokens=3)
    assert [next(stream).text, next(stream).text] == ["a", "b"]
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 0"):
        next(stream)
    with pytest.raises(dk.DecodekitError, match="Stream: there is no result"):
        _ = stream.result


@pytest.mark.parametrize("beams", [None, 2])
def test_a_stuck_prompt_is_an_error(beams: int | None) -> None:
    way = dk.Greedy() if beams is None else dk.BeamSearch(beams)
    stream = dk.stream(readable(1), [[0]], way, dk.SuppressTokens(range(6)), max_new_tokens=3)
    with pytest.raises(dk.DecodingError, match="every token is banned"):
        next(stream)


def test_a_stuck_beam_search_has_settled_nothing() -> None:
    search = dk.BeamSearch(2)
    steps = decode_steps(readable(1), [[0]], search, dk.SuppressTokens(range(6)), max_new_tokens=3)
    assert search.stable_prefix(next(steps).state) == [[[]]]


def test_text_needs_a_tokenizer() -> None:
    stream = dk.stream(HashModel(5), [[1]], dk.Greedy(), max_new_tokens=2)
    with pytest.raises(dk.DecodekitError, match="stream: text needs a tokenizer, and the model has none"):
        next(stream)


def test_a_tokenizer_that_takes_back_what_it_said_is_an_error_after_the_last_piece() -> None:
    class CleansUp(Pieces):
        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens).replace(" .", ".")

    model = Scripted([[0, 1, 2, 0]], 3, CleansUp(["a", " ", "."]))
    stream = dk.stream(model, [[0]], dk.Greedy(), max_new_tokens=4)
    assert [next(stream).text for _ in range(2)] == ["a", " "]
    with pytest.raises(dk.DecodekitError, match="stream: the tokenizer removed text"):
        next(stream)
    assert list(stream) == []
    assert stream.result.texts == [["a.a"]]
