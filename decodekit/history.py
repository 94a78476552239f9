"""What has been said so far, in a buffer of fixed shape."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class History:
    """The tokens of every row, prompt included, as processors and decoders see them.

    The shape never changes during a run, so that a step can be captured and replayed. All rows
    write the same column, because prompts are padded on the left.

    Attributes:
        tokens: Token ids; columns from `position` on hold junk.
        valid: False for left padding and for what is not yet written.
        position: The column the next token goes to.

    Example:
        >>> history = History(torch.tensor([[5, 7, 0]]), torch.tensor([[True, True, False]]),
        ...                   torch.tensor(2))
        >>> history.append(torch.tensor([9])).tokens
        tensor([[5, 7, 9]])
    """

    tokens: Int64[Tensor, "rows capacity"]
    valid: Bool[Tensor, "rows capacity"]
    position: Int64[Tensor, ""]

    def append(self, tokens: Int64[Tensor, " rows"]) -> "History":
        """The history with one more token on every row."""
        here = torch.arange(self.tokens.shape[1], device=tokens.device) == self.position
        return History(
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
        )
