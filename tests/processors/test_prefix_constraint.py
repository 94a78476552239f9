from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PrefixConstrainedLogitsProcessor

import decodekit as dk
from decodekit.testing import HashModel, check_processor
from tests.processors.parity import LAWS, Call, calls

BANNED = -torch.inf


def apply(function: Any, history: dk.History, scores: torch.Tensor) -> list[list[float]]:  # noqa: ANN401
    processor = dk.PrefixConstraint(function)
    return processor.apply(history, scores, processor.init(history))[0].tolist()


def test_prefix_constraint_bans_tokens_that_the_function_does_not_allow() -> None:
    history = dk.Prompt.from_ids([[0], [1]]).history(4, 1)
    out = apply(lambda prompt, ids: [2, prompt, int(ids[-1])], history, torch.tensor([[1.0, 2, 3, 4]] * 2))
    assert out == [[1.0, BANNED, 3.0, BANNED], [BANNED, 2.0, 3.0, BANNED]]


def test_prefix_constraint_passes_the_number_of_the_prompt_and_the_ids_without_padding() -> None:
    seen = []

    def note(prompt: int, ids: torch.Tensor) -> list[int]:
        seen.append((prompt, ids.tolist()))
        return [0]

    apply(note, dk.Prompt.from_ids([[3], [1, 2]]).history(5, 2), torch.zeros(4, 4))
    assert seen == [(0, [3]), (0, [3]), (1, [1, 2]), (1, [1, 2])]


def test_prefix_constraint_passes_the_number_of_a_prompt_in_a_part_of_the_batch() -> None:
    history = dk.Prompt.from_ids([[3], [2]]).history(5, 1).take(torch.tensor([1, 0, 1]))
    out = apply(lambda prompt, ids: [prompt, int(ids[-1])], history, torch.zeros(3, 4))
    assert [[token for token in range(4) if row[token] > BANNED] for row in out] == [[1, 2], [0, 3], [1, 2]]


def test_prefix_constraint_takes_ids_as_a_tensor() -> None:
    history = dk.Prompt.from_ids([[0]]).history(2, 1)
    assert apply(lambda _, __: torch.tensor([1]), history, torch.zeros(1, 2)) == [[BANNED, 0.0]]


def test_prefix_constraint_leaves_banned_tokens_banned() -> None:
    history = dk.Prompt.from_ids([[0]]).history(2, 1)
    scores = torch.tensor([[BANNED, 0.0]])
    assert apply(lambda _, __: [0], history, scores) == [[BANNED, BANNED]]


def test_prefix_constraint_follows_the_beams_of_every_prompt() -> None:
    # Every token must differ from the one before by one or two, and from its prompt's own banned one.
    def near(prompt: int, ids: torch.Tensor) -> list[int]:
        last = int(ids[-1])
        return [(last + step) % 7 for step in (1, 2) if (last + step) % 7 != prompt] or [last]

    out = dk.decode(
        HashModel(7, seed=1),
        [[0], [4, 5]],
        dk.BeamSearch(3, num_return=3),
        dk.PrefixConstraint(near),
        max_new_tokens=6,
    )
    for prompt, (start, hypotheses) in enumerate(zip(([0], [4, 5]), out.hypotheses(), strict=True)):
        for new in hypotheses:
            text = start + new
            for length in range(len(start), len(text)):
                assert text[length] in near(prompt, torch.tensor(text[:length]))


@pytest.mark.parametrize("none", [[], (), torch.tensor([], dtype=torch.long)])
def test_prefix_constraint_refuses_a_function_that_allows_nothing(none: Any) -> None:  # noqa: ANN401
    history = dk.Prompt.from_ids([[0], [7, 8]]).history(3, 1)
    message = r"^PrefixConstraint: the function must allow .*returned none for prompt 1 after \[7, 8\]"
    with pytest.raises(dk.DecodekitError, match=message):
        apply(lambda prompt, _: none if prompt else [0], history, torch.zeros(2, 9))


@pytest.mark.parametrize("bad", [-1, 4, 1.0, True, "a", None])
def test_prefix_constraint_refuses_what_is_no_id_of_the_vocabulary(bad: Any) -> None:  # noqa: ANN401
    history = dk.Prompt.from_ids([[0]]).history(3, 1)
    message = r"^PrefixConstraint: the function must return ids of the model's 4 tokens, but"
    with pytest.raises(dk.DecodekitError, match=message):
        apply(lambda _, __: [0, bad], history, torch.zeros(1, 4))


@pytest.mark.parametrize("function", [None, [1, 2], "f"])
def test_prefix_constraint_refuses_what_cannot_be_called(function: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^PrefixConstraint: function must be callable with"):
        dk.PrefixConstraint(function)


def test_prefix_constraint_keeps_the_contract_of_processors() -> None:
    check_processor(dk.PrefixConstraint(lambda _, ids: [len(ids) % 9, int(ids.sum()) % 9]), max_examples=20)
    check_processor(
        lambda prompts: dk.PrefixConstraint(lambda prompt, ids: [(prompts[prompt] + int(ids[-1])) % 9]),
        max_examples=20,
    )


@LAWS
@given(calls(), st.integers(1, 3), st.integers(0, 99))
def test_prefix_constraint_is_hugging_faces(call: Call, beams: int, seed: int) -> None:
    tokens, scores = (part.repeat_interleave(beams, 0) for part in call)
    scores = scores.clamp(max=1e9)  # theirs makes NaN of a banned infinity
    vocab = scores.shape[1]

    def some(prompt: int, ids: torch.Tensor) -> list[int]:
        mixed = seed + 7 * prompt + 31 * int(ids.sum()) + len(ids)
        return [token for token in range(vocab) if (mixed >> token) % 2] or [mixed % vocab]

    theirs = PrefixConstrainedLogitsProcessor(some, beams)(tokens, scores.clone())
    ours = apply(some, dk.Prompt.from_ids(call[0].tolist()).history(tokens.shape[1] + 1, beams), scores)
    # Where all tokens are banned for every beam of a prompt, theirs allows banned tokens again.
    left = (torch.tensor(ours).view(len(call[0]), -1) > BANNED).any(-1).repeat_interleave(beams)
    assume(left.any())
    assert theirs[left].tolist() == torch.tensor(ours)[left].tolist()
    assert ((torch.tensor(ours) == BANNED).all(-1) | left).all()
