import dataclasses
import math

import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel

PAD = 9


class Letters:
    """A tokenizer whose ids are the places of letters in the alphabet; `z` is special."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text = "".join(chr(token + ord("a")) for token in token_ids)
        return text.replace("z", "") if skip_special_tokens else text


LETTERS = dk.Vocabulary(size=26, tokenizer=Letters())


def decoded() -> dk.Decoded:
    """Two prompts with two hypotheses, of which the second prompt has only one."""
    return dk.Decoded(
        tokens=torch.tensor([[[5, 6, 2], [7, 2, PAD]], [[8, 8, 8], [PAD, PAD, PAD]]]),
        lengths=torch.tensor([[3, 2], [3, 0]]),
        finish_reason=[["end", "end"], ["length", "missing"]],
        valid=torch.tensor([[True, True], [True, False]]),
        token_log_probs=torch.tensor([[[-0.5, -1.0, -0.25], [-2.0, -0.5, 0.0]], [[-1.0] * 3, [0.0] * 3]]),
        score=torch.tensor([[-0.5, -1.25], [-1.0, -torch.inf]]),
        parents=torch.tensor([[[0, 0, 1], [0, 0, -1]], [[2, 2, 2], [-1, -1, -1]]]),
        pad_id=PAD,
    )


def in_context(vocabulary: dk.Vocabulary = LETTERS) -> dk.Decoded:
    """The same, after the prompts `bc` and `d`."""
    return decoded().with_context(dk.Prompt.from_ids([[1, 2], [3]], pad_id=PAD), vocabulary, None)


def test_log_prob_is_the_sum_over_the_tokens() -> None:
    assert decoded().log_prob.tolist() == [[-1.75, -2.5], [-3.0, -math.inf]]


def test_log_prob_is_summed_in_double_precision() -> None:
    # Added to -2**24 one by one, in single precision each -1 is rounded away.
    terms = torch.tensor([[[-(2.0**24), *[-1.0] * 4]]])
    out = dataclasses.replace(decoded(), token_log_probs=terms, valid=torch.tensor([[True]]))
    assert out.log_prob.tolist() == [[-(2.0**24) - 4]]
    assert out.log_prob.dtype == torch.float32
    assert terms.sum(-1).tolist() != [[-(2.0**24) - 4]]


def test_sequences_are_prompts_and_continuations_prompt_major() -> None:
    assert in_context().sequences.tolist() == [
        [1, 2, 5, 6, 2],
        [1, 2, 7, 2, PAD],
        [PAD, 3, 8, 8, 8],
        [PAD, 3, PAD, PAD, PAD],
    ]


def test_sequences_need_the_prompts_and_the_message_says_who_gives_them() -> None:
    with pytest.raises(dk.DecodekitError, match=r"^Decoded: sequences need the prompts.* Use decode\(\)"):
        _ = decoded().sequences


def test_hypotheses_are_the_valid_ones_without_padding() -> None:
    assert decoded().hypotheses() == [[[5, 6, 2], [7, 2]], [[8, 8, 8]]]


def test_a_pad_id_that_was_said_is_a_token() -> None:
    out = dataclasses.replace(decoded(), pad_id=2)
    assert out.hypotheses() == [[[5, 6, 2], [7, 2]], [[8, 8, 8]]]


def test_texts_are_those_of_the_valid_hypotheses() -> None:
    assert in_context().texts == [["fgc", "hc"], ["iii"]]


def test_texts_leave_special_tokens_out() -> None:
    out = dataclasses.replace(decoded(), tokens=decoded().tokens.where(decoded().tokens != 6, 25))
    prompt = dk.Prompt.from_ids([[25, 2], [3]])
    assert out.with_context(prompt, LETTERS, None).texts == [["fc", "hc"], ["iii"]]


def test_without_a_tokenizer_there_are_no_texts() -> None:
    assert in_context(dk.Vocabulary(size=26)).texts is None


def test_repr_shows_every_hypothesis_as_text_with_what_it_is_worth_and_why_it_ended() -> None:
    assert repr(in_context()).splitlines() == [
        "Decoded(prompts=2, hypotheses=2, new tokens≤3)",
        "  [0][0] log-prob     -1.75     3 tokens  end     'fgc'",
        "  [0][1] log-prob     -2.50     2 tokens  end     'hc'",
        "  [1][0] log-prob     -3.00     3 tokens  length  'iii'",
    ]


def test_repr_shows_ids_where_there_is_no_text() -> None:
    assert "[5, 6, 2]" in repr(decoded())
    assert "[8, 8, 8]" in repr(in_context(dk.Vocabulary()))


def test_repr_keeps_a_long_text_on_its_line() -> None:
    out = dataclasses.replace(decoded(), texts=[["x" * 1000, "two\nlines"], ["y" * 98]])
    _, long, lines, fits = repr(out).splitlines()
    assert long.endswith(f"'{'x' * 98}…")
    assert lines.endswith(r"'two\nlines'")
    assert fits.endswith(f"'{'y' * 98}'")


def test_a_result_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        decoded().pad_id = 3  # type: ignore[misc]


# What a run fills in


def test_decode_gives_prompts_texts_and_what_the_tokens_are_worth() -> None:
    model = MarkovModel([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75], [1 / 3, 1 / 3, 1 / 3]], end_ids=(2,))
    model.vocabulary = dataclasses.replace(model.vocabulary, tokenizer=Letters())
    out = dk.decode(model, ["a", "bb"], dk.Greedy(), max_new_tokens=5, pad_id=0)
    assert out.texts == [["bc"], ["c"]]
    assert out.tokens.tolist() == [[[1, 2]], [[2, 0]]]
    assert out.lengths.tolist() == [[2], [1]]
    assert out.finish_reason == [["end"], ["end"]]
    assert out.sequences.tolist() == [[0, 0, 1, 2], [1, 1, 2, 0]]
    assert out.parents.tolist() == [[[0, 0]], [[1, -1]]]
    expected = torch.tensor([[[0.5, 0.75]], [[0.75, 1.0]]]).log()
    # A logarithm, taken in single precision and normalised by another.
    torch.testing.assert_close(expected, out.token_log_probs, atol=1e-6, rtol=1e-6)
    assert out.trace is None


def test_a_text_that_does_not_end_has_the_limits_length() -> None:
    model = MarkovModel([[0.25, 0.75], [0.75, 0.25]])
    out = dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=3)
    assert (out.tokens.tolist(), out.lengths.tolist(), out.finish_reason) == (
        [[[1, 0, 1]]],
        [[3]],
        [["length"]],
    )


def test_hypotheses_that_do_not_exist_are_not_valid() -> None:
    # After 0 only 1 and then the end can come, so there is one text, not two.
    model = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], end_ids=(2,))
    out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=3, pad_id=0)
    assert out.valid.tolist() == [[True, False]]
    assert out.hypotheses() == [[[1, 2]]]
    assert out.tokens.tolist() == [[[1, 2], [0, 0]]]
    assert out.lengths.tolist() == [[2, 0]]
    assert out.score.tolist() == [[0.0, -torch.inf]]
    assert len(repr(out).splitlines()) == 2


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(3, seeds=[1, 2]), dk.BeamSearch(3, num_return=3)])
def test_sequences_are_hypotheses_after_their_prompts_filled_with_the_pad_id(decoder: dk.Decoder) -> None:
    prompts = [[3, 4, 5], [6]]
    out = dk.decode(HashModel(7, 3, end_ids=(2,)), prompts, decoder, max_new_tokens=6, pad_id=0)
    hyps = out.tokens.shape[1]
    for row, sequence in enumerate(out.sequences.tolist()):
        prompt, tokens = prompts[row // hyps], out.hypotheses()[row // hyps][row % hyps]
        padding = [0] * (3 - len(prompt))
        assert [*padding, *prompt, *tokens, *[0] * (out.tokens.shape[2] - len(tokens))] == sequence
