"""What has been said so far, in a buffer of fixed shape."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor


class Source(NamedTuple):
    """What an encoder has read for every prompt.

    Attributes:
        tokens: Token ids.
        valid: False for padding.
    """

    tokens: Int64[Tensor, "batch source"]
    valid: Bool[Tensor, "batch source"]

    def take(self, prompts: Int64[Tensor, " new"]) -> "Source":
        """What was read for prompts `prompts`."""
        return Source(self.tokens.index_select(0, prompts), self.valid.index_select(0, prompts))

    def to(self, device: torch.device) -> "Source":
        """The same on another device."""
        return Source(self.tokens.to(device), self.valid.to(device))


@dataclass(frozen=True, eq=False)
class History:
    """The tokens of every row, prompt included, as processors and decoders see them.

    The shape never changes during a run, so that a step can be captured and replayed. All rows
    write the same column, because prompts are padded on the left.

    Attributes:
        tokens: Token ids; columns from `position` on hold junk.
        valid: False for left padding and for what is not yet written.
        position: The column the next token goes to.
        prompts: Which prompt each row continues; None: as many rows for each, in order.
        rows_per_prompt: Beams or samples of each prompt.
        source: What the encoder has read, for every prompt; None for decoder-only models.
        of_prompts: Prompts of the whole run, where these rows are a part of it; None: it is all here.
        places: Which of its prompt's rows each row is; None: in order.

    Example:
        >>> history = History(torch.tensor([[5, 7, 0]]), torch.tensor([[True, True, False]]),
        ...                   torch.tensor(2))
        >>> history.append(torch.tensor([9])).tokens
        tensor([[5, 7, 9]])
    """

    tokens: Int64[Tensor, "rows capacity"]
    valid: Bool[Tensor, "rows capacity"]
    position: Int64[Tensor, ""]
    prompts: Int64[Tensor, " rows"] | None = None
    rows_per_prompt: int = 1
    source: Source | None = None
    of_prompts: int | None = None
    places: Int64[Tensor, " rows"] | None = None

    @property
    def batch(self) -> int:
        """Prompts of the run."""
        whole = len(self.tokens) // self.rows_per_prompt
        return whole if self.of_prompts is None else self.of_prompts

    def append(self, tokens: Int64[Tensor, " rows"]) -> "History":
        """The history with one more token on every row."""
        here = torch.arange(self.tokens.shape[1], device=tokens.device) == self.position
        return replace(
            self,
            tokens=torch.where(here, tokens[:, None], self.tokens),
            valid=self.valid | here,
            position=self.position + 1,
        )

    def take(self, rows: Int64[Tensor, " new_rows"]) -> "History":
        """The history whose row `i` is this one's row `rows[i]`."""
        return replace(
            self,
            tokens=self.tokens.index_select(0, rows),
            valid=self.valid.index_select(0, rows),
            prompts=None if self.prompts is None else self.prompts.index_select(0, rows),
            places=None if self.places is None else self.places.index_select(0, rows),
        )

    def part(self, rows: Int64[Tensor, " part"]) -> "History":
        """Some rows on their own, each as if it were all its prompt has; they know whose they are."""
        prompts = self.spread(torch.arange(self.batch, device=self.tokens.device))
        whole = replace(
            self, prompts=prompts, rows_per_prompt=1, of_prompts=self.batch, places=self.own_places()
        )
        return whole.take(rows)

    def for_prompts(self, prompts: Int64[Tensor, " kept"], batch: int) -> "History":
        """The rows of some prompts; they know whose they are.

        Args:
            prompts: Which of those that are here.
            batch: How many those are.
        """
        whose = self.spread(torch.arange(self.batch, device=self.tokens.device))
        rows = rows_of(prompts, len(self.tokens) // batch)
        return replace(self, prompts=whose, of_prompts=self.batch).take(rows)

    def prompt(self, number: int) -> int:
        """Which prompt of the run it is that stands here as `number`."""
        return number if self.prompts is None else int(self.prompts[number * self.rows_per_prompt])

    def own(self, values: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "here *rest"]:
        """Of what was given for each prompt of the run, that for each that is here."""
        return self.spread(values)[:: self.rows_per_prompt]

    def own_places(self) -> Int64[Tensor, " rows"]:
        """Which of its prompt's rows each row is."""
        if self.places is not None:
            return self.places
        return torch.arange(len(self.tokens), device=self.tokens.device) % self.rows_per_prompt

    def last(self) -> Int64[Tensor, " rows"]:
        """The newest token of every row."""
        # A finished run may go on past the last column; what it says there does not count.
        newest = (self.position - 1).clamp(max=self.tokens.shape[1] - 1)
        return self.tokens.index_select(1, newest.view(1))[:, 0]

    def spread(self, values: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "rows *rest"]:
        """What was given for each prompt, for each row of it."""
        if self.prompts is not None:
            return values.index_select(0, self.prompts)
        return values.repeat_interleave(len(self.tokens) // len(values), 0)


def rows_of(prompts: Int64[Tensor, " prompts"], rows_per_prompt: int) -> Int64[Tensor, " rows"]:
    """The rows of some prompts, in a batch of as many rows for each."""
    places = torch.arange(rows_per_prompt, device=prompts.device)
    return (prompts[:, None] * rows_per_prompt + places).flatten()
