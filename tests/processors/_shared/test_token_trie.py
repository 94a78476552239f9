import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from decodekit.processors._shared.token_trie import TokenTrie
from tests.processors.parity import LAWS

STRINGS = st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=12)


def descend(trie: TokenTrie, root: int, ids: list[int]) -> int:
    node = torch.tensor([root])
    for token in ids:
        node = trie.child(node, torch.tensor([token]))
    return int(node)


def test_a_trie_has_a_node_for_every_prefix_level_by_level() -> None:
    trie = TokenTrie.build("X", [[[1, 2], [1], [3, 0, 0]]])
    # [] is 0, [1] 1, [3] 2, [1 2] 3, [3 0] 4, [3 0 0] 5
    prefixes: list[list[int]] = [[], [1], [3], [1, 2], [3, 0], [3, 0, 0]]
    assert [descend(trie, 0, ids) for ids in prefixes] == [0, 1, 2, 3, 4, 5]
    assert trie.complete.tolist() == [False, True, False, True, False, True, False, True]
    assert [torch.where(trie.next_ids(torch.tensor([0]), 5)[0])[0].tolist()] == [[1, 3]]
    assert (trie.dead, trie.ended) == (6, 7)


def test_a_sequence_that_no_string_begins_with_leads_to_the_dead_node_and_stays_there() -> None:
    trie = TokenTrie.build("X", [[[1, 2], [2]]])
    # The id 5 is the stride's 2 and 3 more: it must not be taken for an edge of the next node.
    assert {trie.dead} == {descend(trie, 0, text) for text in ([0], [1, 1], [1, 2, 1], [0, 1], [5], [99])}
    assert trie.dead == descend(trie, trie.ended, [1])
    assert not trie.next_ids(torch.tensor([trie.dead, trie.ended]), 5).any()


def test_a_trie_contains_the_ids_of_its_strings() -> None:
    trie = TokenTrie.build("X", [[[1, 2]], [[4]]])
    assert [token for token in range(9) if trie.contains(token)] == [1, 2, 4]


def test_the_empty_string_alone_is_a_trie_without_edges() -> None:
    trie = TokenTrie.build("X", [[[]]])
    assert trie.complete.tolist() == [True, False, True]
    assert not trie.next_ids(torch.tensor([0]), 3).any()
    assert trie.dead == descend(trie, 0, [0])


@LAWS
@given(st.lists(STRINGS, min_size=1, max_size=3))
def test_a_trie_has_the_next_ids_of_every_prefix_of_every_set(sets: list[list[list[int]]]) -> None:
    trie = TokenTrie.build("X", [[np.array(text, dtype=np.int64) for text in one] for one in sets])
    assert trie.edges.tolist() == sorted(trie.edges.tolist())
    for root, strings in enumerate(sets):
        for text in {tuple(string[:length]) for string in strings for length in range(len(string) + 1)}:
            node = descend(trie, root, list(text))
            expected = {
                string[len(text)] for string in strings if tuple(string[: len(text)]) == text != tuple(string)
            }
            assert expected == set(torch.where(trie.next_ids(torch.tensor([node]), 6)[0])[0].tolist())
            assert (list(text) in strings) == trie.complete[node]
