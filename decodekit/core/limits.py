"""Where a run's hypotheses end."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError

# What has finished a hypothesis: 0 nothing yet, then these, then the criteria in their order.
END, LENGTH, FIRST_CRITERION = 1, 2, 3


class Stopping(NamedTuple):
    """What the stopping criteria of a run remember about every row."""

    memories: tuple[Memory, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a run's hypotheses end.

    Attributes:
        end_ids: Ids that end a hypothesis; may be none.
        pad_id: What a row says once it has ended.
        prompt_length: Columns of the prompts, padding included.
        max_new_tokens: New tokens at most, at least 1.
        vocab: Tokens to choose from.
        criteria: What else finishes a hypothesis.
        run: What the criteria may know.
    """

    end_ids: tuple[int, ...]
    pad_id: int
    prompt_length: int
    max_new_tokens: int
    vocab: int
    criteria: tuple[StoppingCriterion, ...] = ()
    run: StoppingContext = field(default_factory=lambda: StoppingContext(Vocabulary(), time.monotonic()))

    def is_end(self, tokens: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Which tokens are end ids."""
        # One comparison an id: a tensor of ids would have to be copied to the device.
        ends = torch.zeros_like(tokens, dtype=torch.bool)
        for end_id in self.end_ids:
            ends = ends | (tokens == end_id)
        return ends

    def start(self, history: History) -> Stopping:
        """What the criteria remember before the first new token. A decoder's state must hold it."""
        return Stopping(tuple(criterion.init(history, self.run) for criterion in self.criteria))

    def finish(
        self, history: History, log_probs: Float32[Tensor, " rows"], stopping: Stopping
    ) -> tuple[Int64[Tensor, " rows"], Stopping]:
        """What has finished each row with its newest token; 0: nothing has, it goes on.

        Args:
            history: What every row has said, its newest token included.
            log_probs: The model's own log-probability of that token, in nats.
            stopping: What the criteria remember.
        """
        finish_code = self.finish_token(history.last(), history.position)
        memories = []
        for number, (criterion, memory) in enumerate(zip(self.criteria, stopping.memories, strict=True)):
            fired, after = criterion.apply(history, log_probs, memory)
            if not isinstance(fired, Tensor) or fired.shape != finish_code.shape or fired.dtype != torch.bool:
                given = (fired.dtype, tuple(fired.shape)) if isinstance(fired, Tensor) else fired
                raise DecodekitError(
                    f"decode: stopping criteria must return one boolean per row ({len(finish_code)}), and "
                    f"{criterion!r:.200} returned {given}."
                )
            first = fired & ((finish_code == 0) | (finish_code == LENGTH))
            finish_code = torch.where(first, FIRST_CRITERION + number, finish_code)
            memories.append(after)
        return finish_code, Stopping(tuple(memories))

    def finish_token(
        self, tokens: Int64[Tensor, "*shape"], position: Int64[Tensor, ""]
    ) -> Int64[Tensor, "*shape"]:
        """What finishes a hypothesis whatever else it said: an end id, or the limit of the run.

        Args:
            tokens: Newest tokens.
            position: The column after them.
        """
        at_limit = position >= self.prompt_length + self.max_new_tokens
        finish_code = torch.where(at_limit, LENGTH, torch.zeros_like(tokens))
        return torch.where(self.is_end(tokens), END, finish_code)

    def reasons(self, finish_code: Int64[Tensor, "batch hyps"]) -> list[list[str]]:
        """What `Decoded.finish_reason` says."""
        names = ["", "end", "length", *(criterion.reason for criterion in self.criteria)]
        return [[names[code] for code in row] for row in finish_code.tolist()]
