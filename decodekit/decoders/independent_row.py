"""Rows that advance independently of each other."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.result import Decoded
from decodekit.decoders.rows import RowState, raise_if_all_banned
from decodekit.processors.base import LogitsProcessor, apply_processor, nonfinite_error, nonfinite_rows


class IndependentRow(NamedTuple):
    """One hypothesis with the state and the processor memory of its own row.

    The processors see every token once, in order. No token is ever removed, because a second model cannot go
    back.
    """

    prompt: int
    state: RowState  # of one row
    memory: Memory  # of the processors
    finished: bool = False

    @classmethod
    def start(cls, history: History, processor: LogitsProcessor, limits: Limits) -> list["IndependentRow"]:
        """The rows of a history, each on its own."""
        rows = torch.arange(len(history.tokens), device=history.tokens.device)
        parts = [history.part(row) for row in rows[:, None]]
        return [
            cls(number // history.rows_per_prompt, RowState.start(part, limits), processor.init(part))
            for number, part in enumerate(parts)
        ]

    @property
    def length(self) -> int:
        """Number of new tokens."""
        return int(self.state.step)

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be emitted."""
        return self.state.limits.max_new_tokens - self.length

    def tokens_from(self, start: int) -> list[int]:
        """The new tokens with index `start` or more."""
        first, last = (self.state.limits.prompt_length + number for number in (start, self.length))
        tokens: list[int] = self.state.history.tokens[0, first:last].tolist()
        return tokens

    def process(
        self, processor: LogitsProcessor, logits: Float32[Tensor, "1 vocab"]
    ) -> tuple["IndependentRow", Float32[Tensor, "1 vocab"]]:
        """The processed scores of the next token. Raises if they are NaN or infinite."""
        scores, memory = apply_processor(processor, self.state.history, logits, self.memory)
        if nonfinite_rows(scores).any():
            raise nonfinite_error(self.prompt)
        return self._replace(state=self.state._replace(model_scores=logits), memory=memory), scores

    def emit(self, tokens: Int64[Tensor, " 1"], scores: Float32[Tensor, "1 vocab"]) -> "IndependentRow":
        """The row with one more token. Raises if every token was banned."""
        state, _ = self.state.emit(tokens, scores)
        if bool(state.all_banned):
            raise_if_all_banned(torch.arange(self.prompt + 1) == self.prompt)
        return self._replace(state=state, finished=bool(state.done))


def decoded(rows: list[IndependentRow], hypotheses: int) -> Decoded[None]:
    """The result, `hypotheses` rows per prompt."""
    states = [row.state for row in rows]
    joined = states[0]._replace(
        history=History(
            torch.cat([state.history.tokens for state in states]),
            torch.cat([state.history.valid for state in states]),
            states[0].history.position,
        ),
        token_log_probs=torch.cat([state.token_log_probs for state in states]),
        lengths=torch.cat([state.lengths for state in states]),
        finish_code=torch.cat([state.finish_code for state in states]),
        all_banned=torch.cat([state.all_banned for state in states]),
    )
    return joined.decoded(hypotheses)
