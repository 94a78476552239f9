"""Texts from a given set."""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import read_ids
from decodekit.errors import DecodekitError
from decodekit.processors._shared.token_trie import Strings, TokenTrie, on_device
from decodekit.processors.base import LogitsProcessor, device_ids


class Walk(NamedTuple):
    """Where every row stands in the tree of strings.

    Attributes:
        node: The prefix that it has said.
        start: The column in which continuations begin.
    """

    node: Int64[Tensor, " rows"]
    start: Int64[Tensor, ""]


@final
@dataclass(frozen=True, eq=False, repr=False)
class TrieConstraint(LogitsProcessor):
    r"""Bans every token with which the new text is no prefix of a string of a set.

    Keeps $\{v : y_{<t} v \text{ is a prefix of some } s \in S\}$, and the end ids where $y_{<t} \in S$.
    So every text that ends is one of the strings; one that `max_new_tokens` cuts off is the beginning of
    one. The strings are sorted into a tree once (a hundred thousand names in a second or so); a step is a
    binary search a row, on the device, so keep the object for the next run.

    Args:
        strings: The strings, as sequences of ids without end ids; or with `each_prompt` one set of strings
            for each prompt. The empty string is a text that ends at once.
        end_ids: What may follow a whole string, one id or several; `model.vocabulary.end_ids` are the
            model's own.
        each_prompt: Whether `strings` are as many sets as there are prompts.

    Raises:
        TypeError: If a string is no sequence.
        ValueError: If there are no strings or no end ids, an id is not an integer of at least 0, or a
            string holds an end id.
        DecodekitError: In a run, if an id is outside the vocabulary, or there are not as many sets as
            prompts.

    Example:
        >>> model = dk.load()
        >>> names = [model.tokenizer.encode(name) for name in (" a king", " a queen", " two kings")]
        >>> one = TrieConstraint(names, model.vocabulary.end_ids)
        >>> dk.decode(model, "Once upon a time there was", dk.BeamSearch(4), one, max_new_tokens=9).texts
        [[' a king']]

    Source:
        De Cao et al., 2021, https://arxiv.org/abs/2010.00904.

    Hugging Face:
        `generate(prefix_allowed_tokens_fn=...)` with a function that walks such a tree for one row at a
        time, on the host; the same scores.
    """

    strings: InitVar[Strings | Sequence[Strings]]
    end_ids: int | Iterable[int]
    _: KW_ONLY
    each_prompt: bool = False
    trie: TokenTrie = field(init=False)

    batch_independent = True

    def __post_init__(self, strings: Strings | Sequence[Strings]) -> None:
        ends = read_ids("TrieConstraint", self.end_ids)
        if not ends:
            raise ValueError(
                "TrieConstraint: there must be at least one end id, for where a string is whole."
            )
        sets = list(strings) if self.each_prompt else [strings]
        trie = TokenTrie.build("TrieConstraint", sets)  # type: ignore[arg-type]  # each_prompt says which
        for end in ends:
            if trie.holds(end):
                raise ValueError(
                    f"TrieConstraint: strings must not hold the end id {end}. Leave it out: it is allowed "
                    "where a string is whole."
                )
        object.__setattr__(self, "end_ids", ends)  # frozen fields
        object.__setattr__(self, "trie", trie)

    def init(self, history: History) -> Walk:
        """Every row at the root of its prompt's set."""
        trie, device = self.trie, history.tokens.device
        batch = history.batch
        if self.each_prompt and trie.roots != batch:
            raise DecodekitError(
                f"TrieConstraint: there must be one set of strings for each prompt, got {trie.roots} sets "
                f"for {batch} prompts."
            )
        roots = (
            torch.arange(batch, device=device) if self.each_prompt else device_ids((0,), device).expand(batch)
        )
        return Walk(history.spread(roots), history.position.clone())

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Walk
    ) -> tuple[Float32[Tensor, "rows vocab"], Walk]:
        """The scores of what strings go on with, minus infinity elsewhere."""
        trie, ends = on_device(self.trie, scores.device), read_ids("TrieConstraint", self.end_ids)
        vocab = scores.shape[-1]
        if max(*ends, trie.stride - 1) >= vocab:
            raise DecodekitError(
                f"TrieConstraint: token ids must be below the vocabulary size {vocab}, got "
                f"{max(*ends, trie.stride - 1)}."
            )
        end_ids = device_ids(ends, scores.device)
        after = self._after(trie, end_ids, memory.node, history.last())
        node = torch.where(history.position > memory.start, after, memory.node)
        is_end = torch.zeros(vocab, dtype=torch.bool, device=scores.device).index_fill(0, end_ids, True)
        may_end = trie.complete.index_select(0, node)[:, None] & is_end
        allowed = trie.following(node, vocab) | may_end
        return scores.masked_fill(~allowed, -torch.inf), memory._replace(node=node)

    @staticmethod
    def _after(
        trie: TokenTrie,
        end_ids: Int64[Tensor, " ends"],
        node: Int64[Tensor, " rows"],
        tokens: Int64[Tensor, " rows"],
    ) -> Int64[Tensor, " rows"]:
        """Where a row stands after its newest token; what has ended stays ended, whatever pads it."""
        is_end = (tokens[:, None] == end_ids).any(-1)
        # A string holds no end id, so there an end id leads to `dead` by itself.
        ends = (node == trie.ended) | (is_end & trie.complete.index_select(0, node))
        return torch.where(ends, trie.ended, trie.child(node, tokens))

    def __repr__(self) -> str:
        whole = int(self.trie.complete.sum()) - 1
        each = ", each_prompt=True" if self.each_prompt else ""
        return f"TrieConstraint({whole} strings, end_ids={self.end_ids}{each})"
