"""Constraint to a given set of strings."""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import read_ids, set_fields
from decodekit.errors import DecodekitError
from decodekit.processors._shared.token_trie import Strings, TokenTrie, on_device
from decodekit.processors.base import LogitsProcessor, Scores, check_largest, device_ids


class TrieMemory(NamedTuple):
    """The node of every row in the trie, and the column of the first new token."""

    node: Int64[Tensor, " rows"]
    start: Int64[Tensor, ""]


@final
@dataclass(frozen=True, eq=False, repr=False)
class TrieConstraint(LogitsProcessor):
    r"""Allows only tokens that continue one of the given strings.

    Keeps $\{v : y_{<t} v \text{ is a prefix of some } s \in S\}$, and the end ids where $y_{<t} \in S$. So
    every finished output is one of the strings, and an output that reaches `max_new_tokens` is a prefix of
    one. The constructor sorts the strings into a trie (a hundred thousand names in about a second), so reuse
    the object; a step is a binary search per row, on the device.

    Args:
        strings: Sequences of ids without end ids; with `per_prompt` one set of them per prompt. The empty
            string is an output that ends at once.
        end_ids: Ids that may follow a whole string, one or several; the model's are
            `model.vocabulary.end_ids`.
        per_prompt: True if `strings` is one set per prompt.

    Raises:
        TypeError: If a string is not a sequence.
        ValueError: If there are no strings or no end ids, an id is not an integer of at least 0, or a string
            holds an end id.
        DecodekitError: In a run, if an id is outside the vocabulary, or the number of sets is not the batch
            size.

    Example:
        >>> model = dk.load()
        >>> names = [model.tokenizer.encode(name) for name in (" a king", " a queen", " two kings")]
        >>> one = TrieConstraint(names, model.vocabulary.end_ids)
        >>> dk.decode(model, "Once upon a time there was", dk.BeamSearch(4), one, max_new_tokens=9).texts
        [[' a king']]

    Source:
        De Cao et al., 2021, https://arxiv.org/abs/2010.00904.

    Hugging Face:
        `generate(prefix_allowed_tokens_fn=...)` with a function that searches such a trie for one row at a
        time, on the host; the same scores.
    """

    strings: InitVar[Strings | Sequence[Strings]]
    end_ids: int | Iterable[int]
    _: KW_ONLY
    per_prompt: bool = False
    trie: TokenTrie = field(init=False)

    batch_independent = True

    def __post_init__(self, strings: Strings | Sequence[Strings]) -> None:
        ends = read_ids("TrieConstraint", self.end_ids)
        if not ends:
            raise ValueError("TrieConstraint: there must be at least one end id, got none.")
        sets = list(strings) if self.per_prompt else [strings]
        trie = TokenTrie.build("TrieConstraint", sets)  # type: ignore[arg-type]  # per_prompt decides
        for end in ends:
            if trie.contains(end):
                raise ValueError(
                    f"TrieConstraint: strings must not hold the end id {end}. Leave it out: it is allowed "
                    "after every whole string."
                )
        set_fields(self, end_ids=ends, trie=trie)

    @override
    def init(self, history: History) -> TrieMemory:
        batch, device, sets = history.batch, history.tokens.device, self.trie.roots
        if self.per_prompt and sets != batch:
            raise DecodekitError(
                f"TrieConstraint: there must be one set of strings for each prompt, got {sets} sets for "
                f"{batch} prompts."
            )
        roots = torch.arange(batch, device=device) * int(self.per_prompt)  # the root of every prompt's set
        return TrieMemory(history.to_rows(roots), history.position.clone())

    @override
    def apply(self, history: History, scores: Scores, memory: TrieMemory) -> tuple[Scores, TrieMemory]:
        trie, ends = on_device(self.trie, scores.device), read_ids("TrieConstraint", self.end_ids)
        vocab = scores.shape[-1]
        check_largest("TrieConstraint", max(*ends, trie.stride - 1), vocab)
        end_ids = device_ids(ends, scores.device)
        newest = history.last()
        # A finished row keeps its node. No string holds an end id, so from other nodes it leads to `dead`.
        ends_here = trie.complete.index_select(0, memory.node) & (newest[:, None] == end_ids).any(-1)
        has_ended = (memory.node == trie.ended) | ends_here
        after = torch.where(has_ended, trie.ended, trie.child(memory.node, newest))
        node = torch.where(history.position > memory.start, after, memory.node)
        is_end = torch.zeros(vocab, dtype=torch.bool, device=scores.device).index_fill(0, end_ids, True)
        allowed = trie.next_ids(node, vocab) | (trie.complete.index_select(0, node)[:, None] & is_end)
        return scores.masked_fill(~allowed, -torch.inf), memory._replace(node=node)

    def __repr__(self) -> str:
        strings = int(self.trie.complete.sum()) - 1
        per_prompt = ", per_prompt=True" if self.per_prompt else ""
        return f"TrieConstraint({strings} strings, end_ids={self.end_ids}{per_prompt})"
