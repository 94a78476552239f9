"""A hypothesis that is continued on its own, by rows of different lengths."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.result import Decoded
from decodekit.decoders.rows import RowState, raise_if_all_banned
from decodekit.processors.apply import apply_processor, nonfinite_rows, not_numbers
from decodekit.processors.base import LogitsProcessor


class SpeculativeRow(NamedTuple):
    """One hypothesis, and what the processors remember of it.

    Each token takes the chain once, in order, as in the main loop: nothing is ever taken back here, so that
    processors which only read on, such as those with a second model, do.

    Attributes:
        prompt: Its prompt's number.
        state: What it has said, a state of one row.
        memory: The processors'.
        finished: Whether it has ended.
    """

    prompt: int
    state: RowState
    memory: Memory
    finished: bool = False

    @classmethod
    def start(cls, history: History, processor: LogitsProcessor, limits: Limits) -> list["SpeculativeRow"]:
        """Every row of a history, by itself."""
        rows = torch.arange(len(history.tokens), device=history.tokens.device)
        parts = [history.part(row) for row in rows[:, None]]
        return [
            cls(number // history.rows_per_prompt, RowState.start(part, limits), processor.init(part))
            for number, part in enumerate(parts)
        ]

    @property
    def said(self) -> int:
        """How many new tokens it has."""
        return int(self.state.step)

    @property
    def left(self) -> int:
        """How many it may have yet."""
        return self.state.limits.max_new_tokens - self.said

    def new(self, since: int) -> list[int]:
        """Its new tokens from the `since`-th on."""
        first, last = (self.state.limits.prompt_length + number for number in (since, self.said))
        tokens: list[int] = self.state.history.tokens[0, first:last].tolist()
        return tokens

    def score(
        self, processor: LogitsProcessor, logits: Float32[Tensor, "1 vocab"]
    ) -> tuple["SpeculativeRow", Float32[Tensor, "1 vocab"]]:
        """The processed scores of the next token.

        Raises:
            DecodingError: If they are not numbers below infinity.
        """
        scores, memory = apply_processor(processor, self.state.history, logits, self.memory)
        if nonfinite_rows(scores).any():
            raise not_numbers(self.prompt)
        return self._replace(state=self.state._replace(model_scores=logits), memory=memory), scores

    def emit(self, tokens: Int64[Tensor, " 1"], scores: Float32[Tensor, "1 vocab"]) -> "SpeculativeRow":
        """The line with one more token.

        Raises:
            DecodingError: If every token was banned.
        """
        state, _ = self.state.emit(tokens, scores)
        if bool(state.all_banned):
            raise_if_all_banned(torch.arange(self.prompt + 1) == self.prompt)
        return self._replace(state=state, finished=bool(state.done))


def decoded(lines: list[SpeculativeRow], hypotheses: int) -> Decoded:
    """All lines as the result, `hypotheses` of them a prompt."""
    states = [line.state for line in lines]
    together = states[0]._replace(
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
    return together.decoded(hypotheses)
