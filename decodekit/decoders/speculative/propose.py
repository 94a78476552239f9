"""Tokens from a draft's logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decodekit.core.history import History, RowOwners
from decodekit.decoders.independent_row import IndependentRow
from decodekit.decoders.speculative.draws import Draws, Purpose
from decodekit.errors import DecodekitError, DecodingError
from decodekit.processors.base import Chain, LogitsProcessor, StatelessProcessor


def stateless_processors(processor: LogitsProcessor, *, greedy: bool) -> tuple[StatelessProcessor, ...]:
    """The stateless processors of a chain, in order; if greedy, only ones that may change the argmax.

    A processor with a memory would have to forget refused tokens.
    """
    if isinstance(processor, Chain):
        inner = (stateless_processors(one, greedy=greedy) for one in processor.processors)
        return tuple(one for several in inner for one in several)
    if not isinstance(processor, StatelessProcessor) or (greedy and processor.argmax_invariant):
        return ()
    return (processor,)


@dataclass(frozen=True)
class DraftSampler:
    """Chooses a draft's tokens as the run chooses its own, without processors that have a memory."""

    processors: tuple[StatelessProcessor, ...]  # applied to the draft's logits
    draws: Draws | None  # random numbers; None: the argmax
    rows: list[IndependentRow]

    def __call__(
        self, logits: Float32[Tensor, "rows vocab"], proposed: list[list[int]]
    ) -> tuple[Int64[Tensor, " rows"], Float32[Tensor, "rows vocab"] | None]:
        """The next token of every row, and the distribution that it was drawn from, if it was drawn."""
        limits, device = self.rows[0].state.limits, self.rows[0].state.history.tokens.device
        if logits.shape != (len(self.rows), limits.vocab):
            raise DecodekitError(
                "Speculative: the draft must have the model's vocabulary, got logits of shape "
                f"{tuple(logits.shape)} for {len(self.rows)} rows and {limits.vocab} tokens. Use a model "
                "with the same tokenizer."
            )
        if not bool((logits.amax(-1) < torch.inf).all()):
            raise DecodingError(
                "Speculative: the draft's logits must be numbers below infinity, and some were NaN or "
                "infinite. Half precision overflows; try float32."
            )
        logits = scores = logits.to(device)
        if self.processors:
            history = self._history(proposed)
            for processor in self.processors:
                scores = processor.process(history, scores)
            # Without the processors that were left out, the others may ban every token.
            scores = torch.where(scores.amax(-1, keepdim=True).isfinite(), scores, logits)
        if self.draws is None:
            return scores.argmax(-1), None
        probs = scores.softmax(-1)
        steps = [row.length + len(new) for row, new in zip(self.rows, proposed, strict=True)]
        return self.draws.tokens(probs, list(range(len(steps))), steps, Purpose.DRAFT), probs

    def _history(self, proposed: list[list[int]]) -> History:
        """The rows with their proposals, left-padded to one length."""
        tokens, valid = [], []
        for row, new in zip(self.rows, proposed, strict=True):
            length, history = row.state.limits.prompt_length + row.length, row.state.history
            tokens.append(torch.cat([history.tokens[0, :length], history.tokens.new_tensor(new)]))
            valid.append(torch.cat([history.valid[0, :length], history.valid.new_ones(len(new))]))
        first = self.rows[0].state.history
        return History(
            tokens=pad_sequence(tokens, batch_first=True, padding_side="left"),
            valid=pad_sequence(valid, batch_first=True, padding_side="left"),
            position=torch.full_like(first.position, max(map(len, tokens))),
            owners=RowOwners(
                prompts=torch.tensor([row.prompt for row in self.rows], device=first.tokens.device),
                slots=torch.zeros(len(self.rows), dtype=torch.long, device=first.tokens.device),
                rows_per_prompt=1,
                num_prompts=first.batch,
            ),
            source=first.source,
        )
