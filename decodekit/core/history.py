"""Tokens emitted so far, in a buffer of fixed shape."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor
from torch.utils._pytree import register_pytree_node


class Source(NamedTuple):
    """Token ids of the texts that an encoder has read, one per prompt."""

    tokens: Int64[Tensor, "batch source"]
    valid: Bool[Tensor, "batch source"]  # False for padding

    @classmethod
    def from_ids(cls, ids: Sequence[Sequence[int]]) -> "Source":
        """Texts of any lengths, padded on the right: encoders count positions from the left."""
        length = max(map(len, ids))
        tokens = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids], dtype=torch.long)
        return cls(tokens, torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None])

    def take(self, prompts: Int64[Tensor, " new"]) -> "Source":
        """The sources of `prompts`."""
        return Source(self.tokens.index_select(0, prompts), self.valid.index_select(0, prompts))

    def to(self, device: torch.device) -> "Source":
        """The same sources on another device."""
        return Source(self.tokens.to(device), self.valid.to(device))


class RowOwners(NamedTuple):
    """Prompts that the rows of a history belong to."""

    prompts: Int64[Tensor, " rows"]  # index of each row's prompt, among all prompts of the call
    slots: Int64[Tensor, " rows"]  # index of each row among the rows of its prompt
    rows_per_prompt: int  # beams or samples
    num_prompts: int  # of the whole call; the rows may cover a part of them

    @classmethod
    def of(cls, rows: int, rows_per_prompt: int, device: torch.device) -> "RowOwners":
        """The owners of `rows` rows, as many for each prompt, in order."""
        number = torch.arange(rows, device=device)
        return cls(
            number // rows_per_prompt, number % rows_per_prompt, rows_per_prompt, rows // rows_per_prompt
        )

    def take(self, rows: Int64[Tensor, " new_rows"]) -> "RowOwners":
        """The owners of the chosen rows."""
        return self._replace(
            prompts=self.prompts.index_select(0, rows), slots=self.slots.index_select(0, rows)
        )


@dataclass(frozen=True, eq=False)
class History:
    """The tokens of every row, prompt included, as processors and decoders see them.

    The shape never changes during a run, so that a step can be captured and replayed. All rows write the same
    column, because prompts are padded on the left. A history is a node of `torch.utils._pytree` whose leaves
    are its tensors with a rows axis and `position`.

    Attributes:
        tokens: Token ids; the column `position` and later columns may hold anything.
        valid: False for left padding and for columns that are not yet written.
        position: The column of the next token.
        owners: The prompt of each row; by default every row is a prompt.
        source: The texts that the encoder has read; None for decoder-only models.

    Example:
        >>> history = History(torch.tensor([[5, 7, 0]]), torch.tensor([[True, True, False]]),
        ...                   torch.tensor(2))
        >>> history.append(torch.tensor([9])).tokens
        tensor([[5, 7, 9]])
    """

    tokens: Int64[Tensor, "rows capacity"]
    valid: Bool[Tensor, "rows capacity"]
    position: Int64[Tensor, ""]
    owners: RowOwners = None  # type: ignore[assignment]  # set below
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.owners is None:
            owners = RowOwners.of(len(self.tokens), 1, self.tokens.device)
            object.__setattr__(self, "owners", owners)

    @property
    def rows_per_prompt(self) -> int:
        """Beams or samples of each prompt."""
        return self.owners.rows_per_prompt

    @property
    def batch(self) -> int:
        """Number of prompts of the whole call."""
        return self.owners.num_prompts

    def append(self, tokens: Int64[Tensor, " rows"]) -> "History":
        """The history with another token on every row."""
        column = torch.arange(self.tokens.shape[1], device=tokens.device) == self.position
        return replace(
            self,
            tokens=torch.where(column, tokens[:, None], self.tokens),
            valid=self.valid | column,
            position=self.position + 1,
        )

    def take(self, rows: Int64[Tensor, " new_rows"]) -> "History":
        """The history whose row `i` is row `rows[i]` of `self`."""
        return replace(
            self,
            tokens=self.tokens.index_select(0, rows),
            valid=self.valid.index_select(0, rows),
            owners=self.owners.take(rows),
        )

    def part(self, rows: Int64[Tensor, " part"], rows_per_prompt: int = 1) -> "History":
        """The chosen rows, which are `rows_per_prompt` rows of each of their prompts."""
        part = self.take(rows)
        return replace(part, owners=part.owners._replace(rows_per_prompt=rows_per_prompt))

    def for_prompts(self, prompts: Int64[Tensor, " kept"], batch: int) -> "History":
        """The rows of some of the `batch` prompts that the history covers; indices ascend."""
        return self.take(rows_of(prompts, len(self.tokens) // batch))

    def prompt(self, number: int) -> int:
        """Index, among all prompts of the call, of the history's `number`-th prompt."""
        return int(self.owners.prompts[number * self.rows_per_prompt])

    def to_rows(self, values: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "rows *rest"]:
        """Values per prompt of the call, as values per row."""
        return values.index_select(0, self.owners.prompts)

    def to_prompts(self, values: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "active *rest"]:
        """Values per prompt of the call, as values per prompt that the history covers."""
        return values.index_select(0, self.owners.prompts[:: self.rows_per_prompt])

    def last(self) -> Int64[Tensor, " rows"]:
        """The newest token of every row."""
        # A finished run may go past the last column; its further tokens do not count.
        newest = (self.position - 1).clamp(max=self.tokens.shape[1] - 1)
        return self.tokens.index_select(1, newest.view(1))[:, 0]


def rows_of(prompts: Int64[Tensor, " prompts"], rows_per_prompt: int) -> Int64[Tensor, " rows"]:
    """The rows of some prompts, in a batch with `rows_per_prompt` rows for each."""
    slots = torch.arange(rows_per_prompt, device=prompts.device)
    return (prompts[:, None] * rows_per_prompt + slots).flatten()


def write_column(buffer: Tensor, column: Tensor, values: Tensor, where: Tensor | None = None) -> Tensor:
    """`buffer` with `values` in one column of its last axis, where `where` holds."""
    here = torch.arange(buffer.shape[-1], device=buffer.device) == column
    if where is not None:
        here = here & where[..., None]
    return torch.where(here, values[..., None], buffer)


def _flatten(history: History) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Leaves with a rows axis, and the other fields, such as sources, whose first axis is prompts."""
    owners = history.owners
    leaves = [history.tokens, history.valid, history.position, owners.prompts, owners.slots]
    return leaves, (owners.rows_per_prompt, owners.num_prompts, history.source)


def _unflatten(leaves: Any, context: tuple[Any, ...]) -> History:  # noqa: ANN401 - torch's protocol
    tokens, valid, position, prompts, slots = leaves
    rows_per_prompt, num_prompts, source = context
    return History(tokens, valid, position, RowOwners(prompts, slots, rows_per_prompt, num_prompts), source)


register_pytree_node(History, _flatten, _unflatten, serialized_type_name="decodekit.History")
