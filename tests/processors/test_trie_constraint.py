from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_captures, check_processor
from tests.processors.parity import LAWS

BANNED = -torch.inf
END = 0


def function_of(sets: list[list[list[int]]], lengths: list[int]) -> Any:  # noqa: ANN401
    """The same constraint in Hugging Face's form: a function of all ids of a row."""

    def allowed(prompt: int, ids: torch.Tensor) -> list[int]:
        new, strings = ids[lengths[prompt] :].tolist(), sets[prompt]
        going = [
            string[len(new)] for string in strings if len(string) > len(new) and string[: len(new)] == new
        ]
        return going + ([END] if new in strings or not going else [])

    return allowed


def decoded(model: dk.Model, prompts: list[list[int]], decoder: Any, processor: dk.LogitsProcessor) -> Any:  # noqa: ANN401
    return dk.decode(model, prompts, decoder, processor, max_new_tokens=7, end_ids=END)


def test_trie_constraint_allows_continuations_of_strings_and_ends_after_a_whole_one() -> None:
    processor = dk.TrieConstraint([[1, 2], [1], [3, 1, 1]], end_ids=[0, 4])
    history = dk.Prompt.from_ids([[2, 2]]).history(9, 1)
    memory, allowed = processor.init(history), []
    for token in (1, 2, 4, 3):
        out, memory = processor.apply(history, torch.zeros(1, 5), memory)
        allowed.append(torch.where(out[0] > BANNED)[0].tolist())
        history = history.append(torch.tensor([token]))
    out, memory = processor.apply(history, torch.zeros(1, 5), memory)
    allowed.append(torch.where(out[0] > BANNED)[0].tolist())
    # at the start; after 1, a whole string and a prefix; after 1 2; after the end; after padding
    assert allowed == [[1, 3], [0, 2, 4], [0, 4], [0, 4], [0, 4]]


def test_trie_constraint_allows_nothing_after_a_sequence_that_no_string_begins_with() -> None:
    processor = dk.TrieConstraint([[1, 2]], end_ids=0)
    history = dk.Prompt.from_ids([[2]]).history(9, 1)
    memory = processor.init(history)
    for token in (1, 0, 2):  # the end comes too early
        _, memory = processor.apply(history, torch.zeros(1, 5), memory)
        history = history.append(torch.tensor([token]))
        out, _ = processor.apply(history, torch.zeros(1, 5), memory)
    assert (out == BANNED).all()


def test_trie_constraint_finds_the_likeliest_string_of_a_set() -> None:
    # Alone, 1 is likelier than 2 at first; the strings with 2 are likelier as a whole.
    model = MarkovModel(
        [[0.25, 0.25, 0.25, 0.25], [0.01, 0.01, 0.49, 0.49], [0.9, 0.03, 0.03, 0.04], [0.1, 0.5, 0.3, 0.1]],
        end_ids=(END,),
    )
    out = dk.decode(
        model,
        [[3]],
        dk.BeamSearch(4, scorer=dk.LogProb(), num_return=3),
        dk.TrieConstraint([[1, 1], [2], [2, 1]], end_ids=END),
        max_new_tokens=4,
    )
    assert out.hypotheses() == [[[2, 0], [2, 1, 0], [1, 1, 0]]]
    # 0.3 * 0.9, 0.3 * 0.03 * 0.01, 0.5 * 0.01 * 0.01: float32 logarithms
    assert out.log_prob.exp()[0].tolist() == pytest.approx([0.27, 9e-5, 5e-5], rel=1e-5)


@pytest.mark.parametrize("beams", [1, 2, 5, 9])
def test_no_beam_leaves_the_set_even_where_there_are_fewer_strings(beams: int) -> None:
    strings = [[1, 2, 3], [1, 2], [4]]
    for seed in range(10):
        model = HashModel(6, seed=seed, end_ids=(END,))
        out = decoded(
            model,
            [[1], [2, 2]],
            dk.BeamSearch(beams, num_return=beams, stop_rule=dk.Proved()),
            dk.TrieConstraint(strings, end_ids=END),
        )
        for texts in out.hypotheses():
            assert all(text[:-1] in strings and text[-1] == END for text in texts)
            assert min(beams, 3) == len(texts) == len({tuple(text) for text in texts})


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[list[list[int]]], list[list[int]], int]:
    """Sets of strings for prompts of different lengths, and a seed."""
    batch = draw(st.integers(1, 3))
    text = st.lists(st.integers(1, 5), max_size=4)
    sets = [draw(st.lists(text, min_size=1, max_size=6)) for _ in range(batch)]
    prompts = [draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)) for _ in range(batch)]
    return sets, prompts, draw(st.integers(0, 999))


@pytest.mark.slow
@settings(LAWS, max_examples=40)
@given(runs(), st.integers(1, 4))
def test_trie_constraint_is_a_prefix_constraint_with_a_function_that_looks_up_the_strings(
    run: tuple[list[list[list[int]]], list[list[int]], int], rows: int
) -> None:
    sets, prompts, seed = run
    function = dk.PrefixConstraint(function_of(sets, [len(prompt) for prompt in prompts]))
    trie = dk.TrieConstraint(sets, end_ids=END, per_prompt=True)
    model = HashModel(6, seed=seed, end_ids=(END,))
    sample = dk.Sample(rows, seeds=list(range(len(prompts))))
    for decoder in (dk.BeamSearch(rows, num_return=rows), dk.Greedy(), sample):
        theirs, ours = (decoded(model, prompts, decoder, processor) for processor in (function, trie))
        assert theirs.hypotheses() == ours.hypotheses()
        assert theirs.score.tolist() == ours.score.tolist()
        assert theirs.valid.tolist() == ours.valid.tolist()


def test_trie_constraint_decodes_from_a_hundred_thousand_names() -> None:
    random = np.random.default_rng(0)
    ids = random.integers(1, 4096, (100_000, 8)).tolist()
    names = [tuple(row[: 2 + place % 7]) for place, row in enumerate(ids)]
    known = set(names)
    processor = dk.TrieConstraint(names, end_ids=END)
    out = dk.decode(
        dk.load(), ["The king", "Once upon a"], dk.BeamSearch(4, num_return=4), processor, max_new_tokens=9
    )
    for hypotheses in out.hypotheses():
        assert len({tuple(text) for text in hypotheses}) == 4
        assert all(tuple(text[:-1]) in known and text[-1] == END for text in hypotheses)
    # The best first token of all names, then of the names that begin with it, and so on.
    model = dk.load()
    greedy = dk.decode(model, "The king", dk.Greedy(), processor, max_new_tokens=9).hypotheses()[0][0]
    log_probs, prompt, remaining = dk.testing.next_log_probs(model), model.vocabulary.ids("The king"), names
    for length, token in enumerate(greedy):
        next_log_probs = log_probs(prompt + greedy[:length])
        allowed = {END if len(name) == length else name[length] for name in remaining}
        assert max(allowed, key=next_log_probs.__getitem__) == token
        remaining = [name for name in remaining if len(name) > length and name[length] == token]


def test_trie_constraint_takes_strings_as_lists_tuples_tensors_and_arrays() -> None:
    kinds = dk.TrieConstraint([[1], (1, 2), torch.tensor([3]), np.array([4])], end_ids=torch.tensor([0]))
    assert repr(kinds) == "TrieConstraint(4 strings, end_ids=(0,))"
    assert dk.TrieConstraint(iter([[1], [1]]), end_ids=0).trie.complete.sum() == 2  # one and `ended`


def test_trie_constraint_takes_the_empty_string_for_an_output_that_ends_at_once() -> None:
    out = decoded(HashModel(6), [[1]], dk.Greedy(), dk.TrieConstraint([[]], end_ids=END))
    assert out.hypotheses() == [[[END]]]


@pytest.mark.parametrize("strings", [[], [[1], [-1]], [[1.0]], [[True]], [["a"]], [[2**31]]])
def test_trie_constraint_refuses_strings_that_are_none(strings: Any) -> None:  # noqa: ANN401
    message = r"^TrieConstraint: (there must be at least one string|token ids must be integers of at least 0)"
    with pytest.raises(ValueError, match=message):
        dk.TrieConstraint(strings, end_ids=0)


@pytest.mark.parametrize("strings", [[1, 2], ["ab"], [b"ab"], [None]])
def test_trie_constraint_refuses_strings_that_are_not_ids(strings: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^TrieConstraint: a string must be a sequence of token ids, got"):
        dk.TrieConstraint(strings, end_ids=0)


@pytest.mark.parametrize("sets", [[], [[[1]], []]])
def test_trie_constraint_refuses_an_empty_set(sets: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TrieConstraint: there must be at least one string in a set"):
        dk.TrieConstraint(sets, end_ids=0, per_prompt=True)


def test_trie_constraint_refuses_no_end_ids_and_end_ids_in_a_string() -> None:
    with pytest.raises(ValueError, match=r"^TrieConstraint: there must be at least one end id"):
        dk.TrieConstraint([[1]], end_ids=())
    with pytest.raises(ValueError, match=r"^TrieConstraint: token ids must be integers of at least 0"):
        dk.TrieConstraint([[1]], end_ids=-1)
    with pytest.raises(ValueError, match=r"^TrieConstraint: strings must not hold the end id 2"):
        dk.TrieConstraint([[1, 2]], end_ids=(0, 2))


@pytest.mark.parametrize(("strings", "end_ids"), [([[4]], 0), ([[1]], 4)])
def test_trie_constraint_refuses_ids_outside_the_vocabulary_when_applied(
    strings: list[list[int]], end_ids: int
) -> None:
    processor, history = dk.TrieConstraint(strings, end_ids), dk.Prompt.from_ids([[0]]).history(3, 1)
    with pytest.raises(dk.DecodekitError, match=r"^TrieConstraint: token ids must be below the vocabulary"):
        processor.apply(history, torch.zeros(1, 4), processor.init(history))


def test_trie_constraint_refuses_more_or_fewer_sets_than_prompts() -> None:
    processor = dk.TrieConstraint([[[1]], [[2]]], end_ids=0, per_prompt=True)
    message = r"^TrieConstraint: there must be one set of strings for each prompt, got 2 sets for 3 prompts"
    with pytest.raises(dk.DecodekitError, match=message):
        processor.init(dk.Prompt.from_ids([[1], [1], [1]]).history(3, 2))


@pytest.mark.slow
def test_trie_constraint_keeps_the_contract_of_processors() -> None:
    check_processor(dk.TrieConstraint([[1, 2], [1], [3, 4, 5], []], end_ids=(0, 8)), max_examples=20)
    check_processor(dk.TrieConstraint([[]], end_ids=0), max_examples=5)
    check_processor(
        lambda prompts: dk.TrieConstraint(
            [[[1, number % 8 + 1], [number % 8 + 1]] for number in prompts], end_ids=0, per_prompt=True
        ),
        max_examples=20,
    )


def test_a_beam_search_with_a_trie_constraint_can_be_captured() -> None:
    check_captures(dk.BeamSearch(3), [dk.TrieConstraint([[1, 2], [3]], end_ids=0)])
