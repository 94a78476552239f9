"""What greedy search and sampling share: a hypothesis is a row."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.device import chosen_log_probs
from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import reorder_memory
from decodekit.core.result import Decoded
from decodekit.decoders.base import Selection, write_column
from decodekit.errors import DecodingError


class RowState(NamedTuple):
    """The state of a decoder whose hypotheses are rows, which stay in their places unless it takes others.

    Attributes:
        history: What every row has said.
        limits: Where hypotheses end.
        observed: The model's scores of the current step; None between steps.
        token_log_probs: The model's log-probability of every new token; 0 past the end.
        parents: The row that each new token was chosen on.
        lengths: New tokens, the end id included.
        why: What has finished each row; 0 while it goes on.
        stopping: What the stopping criteria remember.
        stuck: Rows on which every token was banned.
        done: Every row is finished, or one is stuck.
    """

    history: History
    limits: Limits
    model_scores: Float32[Tensor, "rows vocab"] | None
    token_log_probs: Float32[Tensor, "rows new"]
    parents: Int64[Tensor, "rows new"]
    lengths: Int64[Tensor, " rows"]
    finish_code: Int64[Tensor, " rows"]
    stopping: Stopping
    all_banned: Bool[Tensor, " rows"]
    done: Bool[Tensor, ""]

    @classmethod
    def start(cls, history: History, limits: Limits) -> "RowState":
        """The state before the first token."""
        rows, device = history.tokens.shape[0], history.tokens.device
        return cls(
            history=history,
            limits=limits,
            model_scores=None,
            token_log_probs=torch.zeros(rows, limits.max_new_tokens, dtype=torch.float32, device=device),
            parents=torch.zeros(rows, limits.max_new_tokens, dtype=torch.long, device=device),
            lengths=torch.zeros(rows, dtype=torch.long, device=device),
            finish_code=torch.zeros(rows, dtype=torch.long, device=device),
            stopping=limits.start(history),
            all_banned=torch.zeros(rows, dtype=torch.bool, device=device),
            done=torch.zeros((), dtype=torch.bool, device=device),
        )

    @property
    def step(self) -> Int64[Tensor, ""]:
        """How many new tokens every unfinished row has."""
        return self.history.position - self.limits.prompt_length

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """The prompts all of whose rows are finished."""
        return (self.finish_code > 0).view(-1, self.history.rows_per_prompt).all(-1)

    def take(self, rows: Int64[Tensor, " rows"]) -> "RowState":
        """The state whose row `i` goes on from this one's row `rows[i]`.

        The decoder's `Selection` must then say so too: its `source_rows` are these. Once all rows of a prompt
        are finished, they stay as they are, whatever further steps for other prompts ask.
        """
        finished = ((self.finish_code > 0) | self.all_banned).view(-1, self.history.rows_per_prompt).all(-1)
        is_over = finished.repeat_interleave(self.history.rows_per_prompt)
        rows = torch.where(is_over, torch.arange(len(rows), device=rows.device), rows)
        return self._replace(
            history=self.history.take(rows),
            model_scores=None if self.model_scores is None else self.model_scores.index_select(0, rows),
            token_log_probs=self.token_log_probs.index_select(0, rows),
            parents=self.parents.index_select(0, rows),
            lengths=self.lengths.index_select(0, rows),
            finish_code=self.finish_code.index_select(0, rows),
            stopping=reorder_memory(self.stopping, rows),
            all_banned=self.all_banned.index_select(0, rows),
        )

    def emit(
        self, tokens: Int64[Tensor, " rows"], scores: Float32[Tensor, "rows vocab"]
    ) -> tuple["RowState", Selection]:
        """Every unfinished row says its token; finished rows say the pad id.

        Args:
            tokens: The chosen tokens.
            scores: What they were chosen by; a row whose token is banned is stuck.
        """
        finished = (self.finish_code > 0) | self.all_banned
        # A decoder takes a banned token only where there is no other.
        all_banned = self.all_banned | (~finished & (scores.gather(1, tokens[:, None])[:, 0] == -torch.inf))
        speaks = ~finished & ~all_banned
        tokens = torch.where(speaks, tokens, self.limits.pad_id)
        token_log_probs = self.token_log_probs
        chosen = token_log_probs.new_zeros(len(tokens))
        if self.model_scores is not None:
            chosen = chosen_log_probs(self.model_scores, tokens)
            token_log_probs = write_column(token_log_probs, self.step, chosen, speaks)
        history = self.history.append(tokens)
        fired, stopping = self.limits.finish(history, chosen, self.stopping)
        finish_code = torch.where(speaks, fired, self.finish_code)
        own = torch.arange(len(tokens), device=tokens.device)
        state = self._replace(
            history=history,
            model_scores=None,
            token_log_probs=token_log_probs,
            parents=write_column(self.parents, self.step, own, speaks),
            lengths=self.lengths + speaks,
            finish_code=finish_code,
            stopping=stopping,
            all_banned=all_banned,
            done=(finish_code > 0).all() | all_banned.any(),
        )
        return state, Selection(tokens)

    def stable_prefix(self, hypotheses: int) -> list[list[list[int]]]:
        """What every row has said, `hypotheses` of them a prompt."""
        new = self.history.tokens[:, self.limits.prompt_length :].tolist()
        rows = [tokens[:length] for tokens, length in zip(new, self.lengths.tolist(), strict=True)]
        return [rows[first : first + hypotheses] for first in range(0, len(rows), hypotheses)]

    def decoded(self, hypotheses: int) -> Decoded:
        """The rows as hypotheses, `hypotheses` of them a prompt.

        Raises:
            DecodingError: If a row is stuck.
        """
        raise_if_all_banned(self.all_banned.view(-1, hypotheses).any(-1), self.history)
        new = max(int(self.lengths.max()), 1)
        first, shape = self.limits.prompt_length, (-1, hypotheses)
        said = torch.arange(new, device=self.lengths.device) < self.lengths[:, None]
        token_log_probs = self.token_log_probs[:, :new]
        return Decoded(
            tokens=torch.where(said, self.history.tokens[:, first : first + new], self.limits.pad_id).view(
                *shape, new
            ),
            lengths=self.lengths.view(shape),
            finish_reason=self.limits.reasons(self.finish_code.view(shape)),
            valid=torch.ones_like(self.all_banned).view(shape),
            token_log_probs=token_log_probs.view(*shape, new),
            score=token_log_probs.double().sum(-1).float().view(shape),
            parents=self.parents[:, :new].masked_fill(~said, -1).view(*shape, new),
            pad_id=self.limits.pad_id,
            finish_code=self.finish_code.view(shape),
        )


def raise_if_all_banned(all_banned: Bool[Tensor, " batch"], history: History | None = None) -> None:
    """Raises a `DecodingError` that names the first stuck prompt, if there is one.

    Args:
        stuck: Which prompts are.
        history: Knows which they are of the whole run, where they are a part of it.
    """
    if all_banned.any():
        first = int(all_banned.int().argmax())
        number = first if history is None else history.prompt(first)
        raise DecodingError(
            f"decode: at every step some token must be allowed, and for prompt {number} the processors (or "
            "the model) banned every one, or a scorer of minus infinity every text that ends. Loosen them, "
            "or allow an end id."
        )
