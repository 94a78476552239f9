"""Where an option of `generate` is not ours: what each says, and which one recomputation confirms."""

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import decodekit as dk
from tests.equivalence.compare import Batch, batch
from tests.equivalence.families import END, PAD, VOCAB, build, wrap


def both(family: str, prompts: Batch, **options: Any) -> tuple[list[list[int]], list[list[int]]]:  # noqa: ANN401
    """What theirs and ours say, from the same seed."""
    said = []
    for generate in (build(family).generate, partial(dk.compat.hf.generate, wrap(family))):
        torch.manual_seed(5)
        given = {
            "max_new_tokens": 8,
            "pad_token_id": PAD,
            "eos_token_id": END,
            "attention_mask": prompts.mask,
        }
        said.append(generate(prompts.tokens, **given | options).tolist())
    return said[0], said[1]


def test_the_number_that_a_prefix_function_is_given_is_the_prompts() -> None:
    seen: dict[str, set[tuple[int, int]]] = {}

    def note(side: str, prompt: int, ids: Tensor) -> list[int]:
        seen.setdefault(side, set()).add((prompt, int(ids[0])))
        return list(range(VOCAB))

    prompts = batch((0, 0), seed=40)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 2}
    build("gpt2").generate(
        prompts.tokens,
        attention_mask=prompts.mask,
        pad_token_id=PAD,
        prefix_allowed_tokens_fn=partial(note, "theirs"),
        **options,
    )
    dk.compat.hf.generate(
        wrap("gpt2"),
        prompts.tokens,
        attention_mask=prompts.mask,
        pad_token_id=PAD,
        prefix_allowed_tokens_fn=partial(note, "ours"),
        **options,
    )
    first = prompts.tokens[:, 0].tolist()
    assert seen["ours"] == seen["theirs"] == {(0, first[0]), (1, first[1])}


@pytest.mark.parametrize("family", ["bart", "marian", "mbart"])
def test_a_source_padded_on_the_left_has_the_result_of_the_source_alone(family: str) -> None:
    prompts = batch((0, 2, 5), seed=41)
    theirs, ours = both(family, prompts)
    alone = [both(family, prompts.alone(row))[0][0] for row in range(3)]
    for row in range(3):
        length = len(alone[row])
        assert alone[row] == ours[row][:length]
        assert set(ours[row][length:]) <= {PAD}
    assert theirs[1:] != ours[1:]


def test_the_encoder_repetition_penalty_ignores_padding() -> None:
    # It makes what stands in the prompt likelier, by much.
    prompts = batch((0, 4), seed=42)
    plain = both("gpt2", prompts.alone(1), encoder_repetition_penalty=30.0, eos_token_id=None)[0][0]
    pad = next(token for token in range(8, VOCAB) if token not in plain)
    padded = Batch(prompts.tokens.masked_fill(prompts.mask == 0, pad), prompts.mask)
    theirs, ours = both(
        "gpt2", padded, encoder_repetition_penalty=30.0, eos_token_id=None, pad_token_id=pad, num_beams=2
    )
    alone = both("gpt2", prompts.alone(1), encoder_repetition_penalty=30.0, eos_token_id=None, num_beams=2)[
        0
    ][0]
    assert ours[1][4:] == alone
    assert theirs[0] == ours[0] or theirs[1] != ours[1]


class ImmediateFlags(transformers.StoppingCriteria):
    """Stops the first row after its first token, the others after their sixth."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ANN401, ARG002
        new = input_ids.shape[1] - 9
        return torch.arange(len(input_ids)) * 5 < new


def test_a_stopped_row_emits_no_further_tokens_without_end_ids() -> None:
    criteria = transformers.StoppingCriteriaList([ImmediateFlags()])
    theirs, ours = both("gpt2", batch((0, 0), seed=43), stopping_criteria=criteria, eos_token_id=None)
    free, _ = both("gpt2", batch((0, 0), seed=43), eos_token_id=None)
    assert theirs[0] == free[0][: len(theirs[0])]  # on and on
    assert ours[0][9:] == [theirs[0][9], *[PAD] * 5]
    assert theirs[1] == ours[1]


def test_a_prefix_function_receives_the_ids_of_its_prompt() -> None:
    def by_length(_: int, ids: Tensor) -> list[int]:
        return list(range(8 + len(ids) % 3, VOCAB, 3))

    prompts = batch((0, 4), seed=44)
    theirs, ours = both("gpt2", prompts, prefix_allowed_tokens_fn=by_length, eos_token_id=None)
    alone, _ = both("gpt2", prompts.alone(1), prefix_allowed_tokens_fn=by_length, eos_token_id=None)
    assert ours[1][4:] == alone[0]
    assert theirs[1][4:] != alone[0]
    assert theirs[0] == ours[0]


class After(transformers.StoppingCriteria):
    """Stops rows that say an even token."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ANN401, ARG002
        return input_ids[:, -1] % 2 == 0


def test_the_tails_of_beams_without_an_end_id_are_the_pad_id() -> None:
    options = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": None}
    criteria = transformers.StoppingCriteriaList([After()])
    theirs, ours = both("gpt2", batch((0, 0), seed=45), stopping_criteria=criteria, **options)
    assert any(-1 in row for row in theirs)
    assert [[PAD if token == -1 else token for token in row] for row in theirs] == ours
