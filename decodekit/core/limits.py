"""Limits of a run: the ids, lengths and criteria that finish its hypotheses."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.request import DecodeRequest
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion
from decodekit.core.validation import shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError

# Finish codes: 0 for an unfinished hypothesis, then these, then the criteria in their order.
END, LENGTH, FIRST_CRITERION = 1, 2, 3


class Stopping(NamedTuple):
    """The memory of every stopping criterion of a run."""

    memories: tuple[Memory, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The conditions under which a run finishes a hypothesis.

    Attributes:
        end_ids: Ids that end a hypothesis; may be empty.
        pad_id: The id that a row emits once it has ended.
        prompt_length: Columns of the prompts, padding included.
        max_new_tokens: Limit of new tokens, at least 1.
        vocab: Number of tokens to choose from.
        criteria: Stopping criteria.
        context: The part of the run that criteria can read.
    """

    end_ids: tuple[int, ...]
    pad_id: int
    prompt_length: int
    max_new_tokens: int
    vocab: int
    criteria: tuple[StoppingCriterion, ...] = ()
    context: StoppingContext = field(default_factory=lambda: StoppingContext(Vocabulary(), time.monotonic()))

    @classmethod
    def of(cls, request: DecodeRequest, vocab: int) -> "Limits":
        """The limits of a request to a model with `vocab` logits; the caller's ids come first."""
        # A configuration may carry the default ids of another model, which this one cannot emit.
        model_ends = tuple(end for end in request.vocabulary.end_ids if end < vocab)
        ends = model_ends if request.end_ids is None else request.end_ids
        pad = request.vocabulary.pad_id if request.pad_id is None else request.pad_id
        if pad is None or (request.pad_id is None and not 0 <= pad < vocab):
            pad = ends[0] if ends else 0
        for name, token in (("pad_id", pad), *(("end_ids", end) for end in ends)):
            if not 0 <= token < vocab:
                raise DecodekitError(
                    f"decode: {name} must be an id of the model, in [0, {vocab}), got {token!r}."
                )
        return cls(
            end_ids=tuple(dict.fromkeys(ends)),
            pad_id=pad,
            prompt_length=request.prompt.tokens.shape[1],
            max_new_tokens=request.max_new_tokens,
            vocab=vocab,
            criteria=request.criteria,
            context=StoppingContext(request.vocabulary, request.started),
        )

    def is_end(self, tokens: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """True for tokens that are end ids."""
        # One comparison per id: a tensor of ids would have to be copied to the device.
        ends = torch.zeros_like(tokens, dtype=torch.bool)
        for end_id in self.end_ids:
            ends = ends | (tokens == end_id)
        return ends

    def start(self, history: History) -> Stopping:
        """The memory of the criteria before the first new token. The state of a decoder must hold it."""
        return Stopping(tuple(criterion.init(history, self.context) for criterion in self.criteria))

    def finish(
        self, history: History, log_probs: Float32[Tensor, " rows"], stopping: Stopping
    ) -> tuple[Int64[Tensor, " rows"], Stopping]:
        """The finish code of each row after its newest token, 0 for a row that goes on.

        `log_probs` are the model's log-probabilities of that token, in nats.
        """
        finish_code = self.finish_token(history.last(), history.position)
        memories = []
        for number, (criterion, memory) in enumerate(zip(self.criteria, stopping.memories, strict=True)):
            fired, after = criterion.apply(history, log_probs, memory)
            if not isinstance(fired, Tensor) or fired.shape != finish_code.shape or fired.dtype != torch.bool:
                given = (fired.dtype, tuple(fired.shape)) if isinstance(fired, Tensor) else fired
                raise DecodekitError(
                    f"decode: a stopping criterion must return one boolean per row ({len(finish_code)}), and "
                    f"{shown(criterion, 200)} returned {given}."
                )
            first = fired & ((finish_code == 0) | (finish_code == LENGTH))
            finish_code = torch.where(first, FIRST_CRITERION + number, finish_code)
            memories.append(after)
        return finish_code, Stopping(tuple(memories))

    def finish_token(
        self, tokens: Int64[Tensor, "*shape"], position: Int64[Tensor, ""]
    ) -> Int64[Tensor, "*shape"]:
        """The finish code by an end id or by the limit of new tokens; `position` is the column after them."""
        at_limit = position >= self.prompt_length + self.max_new_tokens
        finish_code = torch.where(at_limit, LENGTH, torch.zeros_like(tokens))
        return torch.where(self.is_end(tokens), END, finish_code)

    def reasons(self, finish_code: Int64[Tensor, "batch hyps"]) -> list[list[str]]:
        """The names of finish codes, as `Decoded.finish_reason` has them."""
        names = ["", "end", "length", *(criterion.reason for criterion in self.criteria)]
        return [[names[code] for code in row] for row in finish_code.tolist()]
