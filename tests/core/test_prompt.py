import dataclasses
from collections import UserDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from transformers import AutoTokenizer, BatchEncoding

import decodekit as dk
from decodekit.testing.strategies import prompts

LAWS = settings(max_examples=100, deadline=None, derandomize=True, database=None)

BOS, END, PAD = 1, 2, 3


class Letters:
    """A tokenizer whose ids are the places of letters in the alphabet, from 4 on."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return [ord(letter) - ord("a") + 4 for letter in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(chr(token - 4 + ord("a")) for token in token_ids)


KNOWS_ALL = dk.Vocabulary(size=30, end_ids=(END,), pad_id=PAD, bos_id=BOS, tokenizer=Letters())
KNOWS_SIZE = dk.Vocabulary(size=30)


def ids(given_prompts: Any, vocabulary: dk.Vocabulary = KNOWS_ALL) -> list[list[int]]:  # noqa: ANN401
    """What every prompt was read as."""
    return dk.Prompt.of(given_prompts, vocabulary).ids()


def tensor(rows: Any) -> torch.Tensor:  # noqa: ANN401
    """Ids as a tensor, even if there are none."""
    return torch.tensor(rows, dtype=torch.long)


# What a person may call prompts


@pytest.mark.parametrize(
    ("given_prompts", "expected"),
    [
        ("cab", [[6, 4, 5]]),
        (["cab", "a"], [[6, 4, 5], [4]]),
        (("cab", "a"), [[6, 4, 5], [4]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ((5, 6, 7), [[5, 6, 7]]),
        (range(5, 8), [[5, 6, 7]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
        (([5, 6], [7, 8]), [[5, 6], [7, 8]]),
        ([(5, 6, 7), range(8, 9)], [[5, 6, 7], [8]]),
        (["cab", [8]], [[6, 4, 5], [8]]),
        ([tensor([5, 6]), tensor([7])], [[5, 6], [7]]),
        (tensor([5, 6, 7]), [[5, 6, 7]]),
        (tensor([[5, 6, 7], [8, 9, 4]]), [[5, 6, 7], [8, 9, 4]]),
        (torch.tensor([[5, 6]], dtype=torch.int32), [[5, 6]]),
        ((tensor([[3, 6], [8, 9]]), tensor([[0, 1], [1, 1]])), [[6], [8, 9]]),
        ((tensor([[3, 6]]), torch.tensor([[False, True]])), [[6]]),
        ((tensor([[3, 6]]), [[0, 1]]), [[6]]),
        ((tensor([3, 6]), tensor([0, 1])), [[6]]),
        ((tensor([[5, 6]]), None), [[5, 6]]),
        ({"input_ids": tensor([[3, 6]]), "attention_mask": tensor([[0, 1]])}, [[6]]),
        ({"input_ids": tensor([[5, 6]])}, [[5, 6]]),
        (UserDict(input_ids=tensor([[5, 6]]), attention_mask=tensor([[1, 1]]), token_type_ids=0), [[5, 6]]),
        (BatchEncoding({"input_ids": tensor([[3, 6]]), "attention_mask": tensor([[0, 1]])}), [[6]]),
        (dk.Prompt.from_ids([[5], [6, 7]]), [[5], [6, 7]]),
    ],
)
def test_prompts_are_read_in_every_form(given_prompts: Any, expected: list[list[int]]) -> None:  # noqa: ANN401
    assert expected == ids(given_prompts)


def test_prompts_are_padded_on_the_left_with_the_pad_id() -> None:
    prompt = dk.Prompt.of([[5, 6, 7], [8]], KNOWS_ALL)
    assert prompt.tokens.tolist() == [[5, 6, 7], [PAD, PAD, 8]]
    assert prompt.mask.tolist() == [[True, True, True], [False, False, True]]
    assert prompt.tokens.dtype == torch.long


def test_padding_is_zero_where_no_pad_id_is_known() -> None:
    assert dk.Prompt.of([[5, 6], [8]], KNOWS_SIZE).tokens.tolist() == [[5, 6], [0, 8]]


def test_a_tensor_without_mask_holds_tokens_only() -> None:
    prompt = dk.Prompt.of(tensor([[5, 6]]), KNOWS_ALL)
    assert prompt.mask.tolist() == [[True, True]]


def test_what_a_tokenizer_returns_as_tensors_is_read_as_it_is() -> None:
    tokenizer = AutoTokenizer.from_pretrained(dk.bundled_path(), padding_side="left")
    vocabulary = dk.Vocabulary(size=len(tokenizer), pad_id=tokenizer.pad_token_id, tokenizer=tokenizer)
    texts = ["Once upon a time", "The"]
    expected = [tokenizer.encode(text) for text in texts]
    assert expected == ids(tokenizer(texts, return_tensors="pt", padding=True), vocabulary)
    assert expected == ids(texts, vocabulary)


def test_what_a_tokenizer_returns_as_a_list_is_one_prompt() -> None:
    encoding = BatchEncoding({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]})
    assert ids(encoding) == [[5, 6, 7]]


def test_what_a_tokenizer_returns_as_lists_is_one_prompt_each() -> None:
    encoding = {"input_ids": [[5, 6], [8]], "attention_mask": [[1, 1], [1]]}
    assert ids(encoding) == [[5, 6], [8]]


def test_what_a_tokenizer_returns_as_padded_lists_has_its_mask() -> None:
    encoding = {"input_ids": [[5, 6], [PAD, 8]], "attention_mask": [[1, 1], [0, 1]]}
    assert ids(encoding) == [[5, 6], [8]]


def test_a_mapping_of_lists_needs_no_mask() -> None:
    assert ids({"input_ids": [[5, 6], [8]]}) == [[5, 6], [8]]


@LAWS
@given(prompts(vocab=30, max_batch=4, max_length=6))
def test_lists_tensors_and_mappings_of_one_batch_are_the_same_prompts(batch: list[list[int]]) -> None:
    prompt = dk.Prompt.from_ids(batch, pad_id=PAD)
    assert batch == prompt.ids()
    assert batch == ids(batch)
    assert batch == ids((prompt.tokens, prompt.mask))
    assert batch == ids({"input_ids": prompt.tokens, "attention_mask": prompt.mask.long()})
    assert batch == ids([tensor(row) for row in batch])


# Empty prompts


@pytest.mark.parametrize("empty", ["", [""], [[]], [()], [tensor([])]])
def test_an_empty_prompt_is_the_bos(empty: Any) -> None:  # noqa: ANN401
    assert ids(empty) == [[BOS]]


def test_an_empty_prompt_among_others_is_the_bos() -> None:
    assert ids([[5, 6], [], "a"]) == [[5, 6], [BOS], [4]]


@pytest.mark.parametrize("empty", ["", [[]], [tensor([])]])
def test_an_empty_prompt_without_bos_is_refused(empty: Any) -> None:  # noqa: ANN401
    vocabulary = dataclasses.replace(KNOWS_ALL, bos_id=None)
    with pytest.raises(
        dk.PromptError, match=r"an empty prompt starts from .* BOS, .* Give at least one token"
    ):
        ids(empty, vocabulary)


@pytest.mark.parametrize(("empty", "batch"), [(tensor([]), 1), (tensor([[], []]), 2)])
def test_an_empty_tensor_is_the_bos(empty: torch.Tensor, batch: int) -> None:
    assert [[BOS]] * batch == ids(empty)


@pytest.mark.parametrize("empty", [tensor([]), tensor([[], []])])
def test_an_empty_tensor_without_bos_is_refused(empty: torch.Tensor) -> None:
    with pytest.raises(dk.PromptError, match="BOS"):
        ids(empty, KNOWS_SIZE)


@pytest.mark.parametrize("nothing", [[], (), range(0), torch.zeros(0, 3, dtype=torch.long)])
def test_no_prompt_at_all_is_refused(nothing: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.PromptError, match=r"^Prompt: there must be at least one prompt"):
        ids(nothing)


# Padding


@pytest.mark.parametrize(
    ("mask", "row"),
    [
        ([[1, 1, 0]], 0),  # right padding
        ([[1, 1, 1], [1, 1, 0]], 1),
        ([[1, 0, 1]], 0),  # a hole
        ([[0, 1, 1], [0, 1, 0]], 1),  # padding on both sides
        ([[0, 0, 0]], 0),  # nothing at all
        ([[1, 1, 1], [0, 0, 0]], 1),
    ],
)
@pytest.mark.parametrize("form", ["pair", "mapping", "prompt"])
def test_padding_that_is_not_on_the_left_is_refused(mask: list[list[int]], row: int, form: str) -> None:
    tokens = torch.full((len(mask), 3), 5)
    message = (
        rf"^Prompt: padding must be on the left, and row {row} .* Pad on the left \(padding_side='left'\)"
    )
    with pytest.raises(dk.PromptError, match=message):
        {
            "pair": lambda: ids((tokens, tensor(mask))),
            "mapping": lambda: ids({"input_ids": tokens, "attention_mask": tensor(mask)}),
            "prompt": lambda: dk.Prompt(tokens, tensor(mask).bool()),
        }[form]()


@pytest.mark.parametrize("tokens", [[PAD, 5], [5, PAD], [PAD, PAD]])
def test_a_tensor_without_mask_with_a_pad_at_its_edge_is_refused(tokens: list[int]) -> None:
    message = rf"row 1 starts or ends with the pad id {PAD}. Pass \(tokens, mask\), or lists of ids"
    for given_prompts in (tensor([[5, 6], tokens]), {"input_ids": tensor([[5, 6], tokens])}):
        with pytest.raises(dk.PromptError, match=message):
            ids(given_prompts)


def test_a_pad_at_the_edge_is_what_the_mask_says_it_is() -> None:
    assert ids((tensor([[PAD, 5]]), tensor([[0, 1]]))) == [[5]]
    assert ids((tensor([[PAD, 5]]), tensor([[1, 1]]))) == [[PAD, 5]]


def test_a_pad_at_the_edge_of_a_list_is_a_token() -> None:
    assert ids([[PAD, 5]]) == [[PAD, 5]]


def test_a_pad_inside_a_tensor_without_mask_is_a_token() -> None:
    assert ids(tensor([[5, PAD, 6]])) == [[5, PAD, 6]]


@pytest.mark.parametrize("pad_id", [BOS, END, None])
def test_a_pad_that_may_be_a_token_is_not_taken_for_padding(pad_id: int | None) -> None:
    # GPT-2 and many others pad with the end id, which prompts may well begin with.
    vocabulary = dataclasses.replace(KNOWS_ALL, pad_id=pad_id)
    assert ids(tensor([[END, 5, BOS]]), vocabulary) == [[END, 5, BOS]]


# Ids


@pytest.mark.parametrize("token", [30, 31, -1, -100])
@pytest.mark.parametrize(
    "form",
    [
        lambda token: [[5, 6], [7, token]],
        lambda token: tensor([[5, 6], [7, token]]),
        lambda token: (tensor([[5, 6], [7, token]]), tensor([[1, 1], [0, 1]])),
        lambda token: {"input_ids": tensor([[5, 6], [7, token]])},
        lambda token: dk.Prompt.from_ids([[5, 6], [7, token]]),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused(form: Any, token: int) -> None:  # noqa: ANN401
    message = (
        rf"^Prompt: ids must be in \[0, 30\), and prompt 1 has {token}\. Is this the model's own tokenizer"
    )
    with pytest.raises(dk.PromptError, match=message):
        ids(form(token))


def test_an_id_outside_the_vocabulary_may_stand_under_the_padding() -> None:
    assert ids((tensor([[-100, 5]]), tensor([[0, 1]]))) == [[5]]


def test_every_id_is_welcome_where_the_size_is_not_known() -> None:
    assert ids([[10**6]], dk.Vocabulary()) == [[10**6]]


@pytest.mark.parametrize(
    "wrong",
    [
        [1.0, 2.0],
        [[5, 6.0]],
        [True, False],
        [[True, 5]],
        [None],
        [[None]],
        [[5], None],
        [[[5]]],
        [["a"]],
        [torch.tensor([1.0])],
        [tensor([[5, 6]])],
        [tensor(5)],
        [{5, 6}],
    ],
)
def test_a_list_of_anything_else_is_refused(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        dk.PromptError, match=r"^Prompt: a prompt must be a string or a list of integers, got"
    ):
        ids(wrong)


@pytest.mark.parametrize("wrong", [None, 5, 5.0, True, {5, 6}, object(), b"ab"])
def test_anything_else_is_refused(wrong: Any) -> None:  # noqa: ANN401
    name = type(wrong).__name__
    with pytest.raises(dk.PromptError, match=rf"^Prompt: prompts must be a string, ids, .* got {name}\."):
        ids(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
def test_a_tensor_of_anything_but_integers_is_refused(dtype: torch.dtype) -> None:
    wrong = torch.ones(1, 2, dtype=dtype)
    for given_prompts in (wrong, (wrong, torch.ones(1, 2)), {"input_ids": wrong}):
        with pytest.raises(
            dk.PromptError, match=r"^Prompt: token ids must be integers, got a tensor of torch"
        ):
            ids(given_prompts)


@pytest.mark.parametrize("shape", [(), (1, 2, 3)])
def test_a_tensor_of_no_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        dk.PromptError, match=r"^Prompt: a tensor of ids must be \[length\] or \[batch, length\]"
    ):
        ids(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(("tokens", "mask"), [((1, 2), (1, 3)), ((2,), (2,)), ((1, 2, 3), (1, 2, 3))])
def test_tokens_and_mask_must_both_be_batch_by_length(tokens: tuple[int, ...], mask: tuple[int, ...]) -> None:
    message = r"^Prompt: tokens and mask must both be \[batch, length\], got"
    with pytest.raises(dk.PromptError, match=message):
        dk.Prompt(torch.zeros(tokens, dtype=torch.long), torch.ones(mask, dtype=torch.bool))


def test_strings_without_tokenizer_are_refused() -> None:
    with pytest.raises(dk.PromptError, match=r"^Prompt: a string needs a tokenizer.* Pass token ids, or"):
        ids(["a"], KNOWS_SIZE)


def test_a_mapping_without_ids_is_refused() -> None:
    with pytest.raises(dk.PromptError, match="input_ids"):
        ids({"ids": tensor([[5]])})


@pytest.mark.parametrize("mask", [[[1, 1]], [[1], [1], [1]], [[1, 1, 1, 1]]])
def test_a_mask_of_another_shape_is_refused(mask: list[list[int]]) -> None:
    with pytest.raises(dk.PromptError, match="mask"):
        ids((tensor([[5, 6, 7]]), tensor(mask)))


def test_a_mask_on_its_side_is_refused() -> None:
    with pytest.raises(dk.PromptError, match="mask"):
        ids((tensor([[5, 6, 7], [8, 9, 4]]), tensor([[0, 1], [1, 1], [1, 1]])))


def test_two_prompts_as_a_pair_of_tensors_are_not_tokens_and_mask() -> None:
    with pytest.raises(dk.PromptError, match="mask"):
        ids((tensor([5, 6]), tensor([7, 8])))


def test_a_hole_in_a_mask_of_integers_is_refused() -> None:
    with pytest.raises(dk.PromptError, match="mask"):
        dk.Prompt(tensor([[5, 6, 7]]), tensor([[1, 0, 1]]))


def test_an_id_that_fits_no_tensor_is_refused() -> None:
    with pytest.raises(dk.PromptError, match="ids must be in the model"):
        ids([[2**64]])


# What a batch is for


def test_the_history_of_a_batch_has_room_and_a_row_a_beam() -> None:
    history = dk.Prompt.from_ids([[5], [6, 7]], pad_id=PAD).history(4, 2)
    assert history.tokens.tolist() == [[PAD, 5, 0, 0], [PAD, 5, 0, 0], [6, 7, 0, 0], [6, 7, 0, 0]]
    padded, full = [False, True, False, False], [True, True, False, False]
    assert history.valid.tolist() == [padded, padded, full, full]
    assert history.position.item() == 2


def test_a_prompt_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        dk.Prompt.from_ids([[5]]).mask = tensor([[0]])  # type: ignore[misc]


def test_prompts_move_to_another_device_as_they_are() -> None:
    moved = dk.Prompt.from_ids([[5], [6, 7]]).to(torch.device("cpu"))
    assert moved.ids() == [[5], [6, 7]]


def test_decoding_refuses_what_a_prompt_refuses() -> None:
    model = dk.testing.MarkovModel([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(dk.PromptError, match=r"ids must be in \[0, 2\), and prompt 0 has 2"):
        dk.decode(model, [[2]], dk.Greedy(), max_new_tokens=1)
    with pytest.raises(dk.PromptError, match="a string needs a tokenizer"):
        dk.decode(model, "a", dk.Greedy(), max_new_tokens=1)
