"""Decoders whose hypotheses are rows, such as greedy search and sampling."""

from abc import abstractmethod
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.device import chosen_log_probs
from decodekit.core.history import History, write_column
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.core.result import Decoded
from decodekit.core.validation import shown
from decodekit.decoders.base import Decoder, Selection
from decodekit.errors import DecodekitError, DecodingError
from decodekit.processors.base import Scores


class RowState(NamedTuple):
    """The state of a decoder whose hypotheses are rows, which keep their places unless it reorders them.

    Attributes:
        history: Tokens of every row.
        limits: Limits of the run.
        model_scores: The model's scores of the current step; None between steps.
        token_log_probs: The model's log-probability of every new token; 0 past the end.
        parents: The row that each new token was chosen on.
        lengths: Number of new tokens, the end id included.
        finish_code: Finish code of each row; 0 while it goes on.
        stopping: Memory of the stopping criteria.
        all_banned: True for rows on which every token was banned.
        done: True if every row is finished, or one has every token banned.
        memory: Memory of the decoder: any pytree; the first axis of its tensors is rows, or they are 0-d.
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
    memory: Memory = ()

    @classmethod
    def start(cls, history: History, limits: Limits, memory: Memory = ()) -> "RowState":
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
            memory=memory,
        )

    @property
    def step(self) -> Int64[Tensor, ""]:
        """Number of new tokens of every unfinished row."""
        return self.history.position - self.limits.prompt_length

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """True for prompts all of whose rows are finished."""
        return (self.finish_code > 0).view(-1, self.history.rows_per_prompt).all(-1)

    def take(self, rows: Int64[Tensor, " rows"]) -> "RowState":
        """The state whose row `i` continues row `rows[i]` of `self`.

        The `source_rows` of the decoder's `Selection` must be the same rows. Once all rows of a prompt are
        finished, later calls leave them in place.
        """
        finished = ((self.finish_code > 0) | self.all_banned).view(-1, self.history.rows_per_prompt).all(-1)
        stays = finished.repeat_interleave(self.history.rows_per_prompt)
        rows = torch.where(stays, torch.arange(len(rows), device=rows.device), rows)
        taken: RowState = reorder_memory(self, rows)
        return taken

    def emit(self, tokens: Int64[Tensor, " rows"], scores: Scores) -> tuple["RowState", Selection]:
        """Append a token to every unfinished row, and the pad id to finished rows.

        Args:
            tokens: The chosen tokens.
            scores: The scores they were chosen by; minus infinity marks a row with every token banned.
        """
        finished = (self.finish_code > 0) | self.all_banned
        # A decoder chooses a banned token only if every token is banned.
        all_banned = self.all_banned | (~finished & (scores.gather(1, tokens[:, None])[:, 0] == -torch.inf))
        emits = ~finished & ~all_banned
        tokens = torch.where(emits, tokens, self.limits.pad_id)
        token_log_probs = self.token_log_probs
        chosen = token_log_probs.new_zeros(len(tokens))
        if self.model_scores is not None:
            chosen = chosen_log_probs(self.model_scores, tokens)
            token_log_probs = write_column(token_log_probs, self.step, chosen, emits)
        history = self.history.append(tokens)
        fired, stopping = self.limits.finish(history, chosen, self.stopping)
        finish_code = torch.where(emits, fired, self.finish_code)
        rows = torch.arange(len(tokens), device=tokens.device)
        state = self._replace(
            history=history,
            model_scores=None,
            token_log_probs=token_log_probs,
            parents=write_column(self.parents, self.step, rows, emits),
            lengths=self.lengths + emits,
            finish_code=finish_code,
            stopping=stopping,
            all_banned=all_banned,
            done=(finish_code > 0).all() | all_banned.any(),
        )
        return state, Selection(tokens)

    def stable_prefix(self, hypotheses: int) -> list[list[list[int]]]:
        """The tokens of every row so far, `hypotheses` rows per prompt."""
        new = self.history.tokens[:, self.limits.prompt_length :].tolist()
        rows = [tokens[:length] for tokens, length in zip(new, self.lengths.tolist(), strict=True)]
        return [rows[first : first + hypotheses] for first in range(0, len(rows), hypotheses)]

    def decoded(self, hypotheses: int) -> Decoded[None]:
        """The rows as hypotheses, `hypotheses` per prompt.

        Raises:
            DecodingError: If on a row every token was banned.
        """
        raise_if_all_banned(self.all_banned.view(-1, hypotheses).any(-1), self.history)
        new = max(int(self.lengths.max()), 1)
        first, shape = self.limits.prompt_length, (-1, hypotheses)
        emitted = torch.arange(new, device=self.lengths.device) < self.lengths[:, None]
        tokens = torch.where(emitted, self.history.tokens[:, first : first + new], self.limits.pad_id)
        token_log_probs = self.token_log_probs[:, :new]
        return Decoded(
            tokens=tokens.view(*shape, new),
            lengths=self.lengths.view(shape),
            finish_reason=self.limits.reasons(self.finish_code.view(shape)),
            valid=torch.ones_like(self.all_banned).view(shape),
            token_log_probs=token_log_probs.view(*shape, new),
            score=token_log_probs.double().sum(-1).float().view(shape),
            parents=self.parents[:, :new].masked_fill(~emitted, -1).view(*shape, new),
            pad_id=self.limits.pad_id,
            finish_code=self.finish_code.view(shape),
        )


class RowDecoder(Decoder[RowState, None]):
    """A decoder whose hypotheses are rows: every step emits one token on each.

    Write `choose`; `rows_per_prompt` is 1 by default. The class handles end ids, criteria and streaming.

    Example:
        A decoder that emits the second-likeliest token at every step:

        >>> class SecondBest(dk.RowDecoder):
        ...     def choose(self, scores, state): return scores.topk(2).indices[:, 1]
        >>> dk.decode(dk.load(), "Once upon a", SecondBest(), max_new_tokens=2).lengths
        tensor([[2]])
    """

    batch_independent = True

    @property
    def rows_per_prompt(self) -> int:
        """Rows of each prompt."""
        return 1

    def start(self, history: History) -> Memory:  # noqa: ARG002 - a default
        """The memory of the decoder before the first token, as `RowState.memory` keeps it."""
        return ()

    @abstractmethod
    def choose(self, scores: Float32[Tensor, "rows vocab"], state: RowState) -> Int64[Tensor, " rows"]:
        """The next token of every row.

        Args:
            scores: Scores after the processors; minus infinity for banned tokens.
            state: The state before the step.
        """

    @final
    @override
    def init(self, history: History, limits: Limits) -> RowState:
        return RowState.start(history, limits, self.start(history))

    @final
    @override
    def step(self, scores: Float32[Tensor, "rows vocab"], state: RowState) -> tuple[RowState, Selection]:
        tokens: object = self.choose(scores, state)
        if isinstance(tokens, Tensor):
            if tokens.dtype == torch.long and tokens.shape == scores.shape[:1]:
                return state.emit(tokens, scores)
            found = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        else:
            found = shown(tokens)
        raise DecodekitError(
            f"decode: {type(self).__name__}.choose must return one int64 token per row ({len(scores)} rows), "
            f"got {found}."
        )

    @final
    @override
    def stable_prefix(self, state: RowState) -> list[list[list[int]]]:
        return state.stable_prefix(self.rows_per_prompt)

    @final
    @override
    def finished(self, state: RowState) -> Bool[Tensor, " batch"]:
        return state.finished

    @final
    @override
    def finalize(self, state: RowState) -> Decoded[None]:
        return state.decoded(self.rows_per_prompt)


def raise_if_all_banned(all_banned: Bool[Tensor, " batch"], history: History | None = None) -> None:
    """Raise a `DecodingError` that names the first prompt with every token banned, if there is one.

    Args:
        all_banned: True for such prompts.
        history: Gives the indices of the prompts in the call; None: these are all prompts of the call.
    """
    if all_banned.any():
        first = int(all_banned.int().argmax())
        number = first if history is None else history.prompt(first)
        raise DecodingError(
            f"decode: every token is banned for prompt {number}, by the processors or the model, or "
            "the scorer forbids every hypothesis that ends. Loosen the processors or the scorer, or allow an "
            "end id."
        )
