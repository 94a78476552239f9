"""How a draft's logits become tokens: as the run's own would, as far as that is pure."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History, RowOwners
from decodekit.decoders.speculative.draws import Draws, Purpose
from decodekit.decoders.speculative.speculative_row import SpeculativeRow
from decodekit.errors import DecodekitError, DecodingError
from decodekit.processors.base import LogitsProcessor, StatelessProcessor
from decodekit.processors.chain import Chain


def stateless(processor: LogitsProcessor, *, greedy: bool) -> tuple[StatelessProcessor, ...]:
    """The processors in a chain that remember nothing, in order, and may change what is chosen.

    What a processor remembers of tokens that were only proposed would have to be taken back.
    """
    if isinstance(processor, Chain):
        return tuple(one for inner in processor.processors for one in stateless(inner, greedy=greedy))
    useful = isinstance(processor, StatelessProcessor) and not (greedy and processor.argmax_invariant)
    return (processor,) if useful else ()  # type: ignore[return-value] # useful says so


@dataclass(frozen=True)
class DraftSampler:
    """Chooses a draft's tokens.

    Attributes:
        processors: What the draft's logits go through.
        draws: Random numbers; None: the likeliest token.
        lines: What has been said.
    """

    processors: tuple[StatelessProcessor, ...]
    draws: Draws | None
    lines: list[SpeculativeRow]

    def __call__(
        self, logits: Float32[Tensor, "rows vocab"], drafted: list[list[int]]
    ) -> tuple[Int64[Tensor, " rows"], Float32[Tensor, "rows vocab"] | None]:
        """The next token of every row, and the distribution it was drawn from if it was.

        Raises:
            DecodekitError: If the draft has another vocabulary than the model.
            DecodingError: If its logits are not numbers below infinity.
        """
        limits, device = self.lines[0].state.limits, self.lines[0].state.history.tokens.device
        if logits.shape != (len(self.lines), limits.vocab):
            raise DecodekitError(
                "Speculative: the draft must have the model's vocabulary, got logits of shape "
                f"{tuple(logits.shape)} for {len(self.lines)} rows and {limits.vocab} tokens. Use a model "
                "with the same tokenizer."
            )
        if not bool((logits.amax(-1) < torch.inf).all()):
            raise DecodingError(
                "Speculative: the draft's logits must be numbers below infinity, and some were NaN or "
                "infinite. Half precision overflows; try float32."
            )
        logits = scores = logits.to(device)
        if self.processors:
            history = self._history(drafted)
            for processor in self.processors:
                scores = processor.process(history, scores)
            # Without those that remember, the others may ban everything; a draft must say something.
            scores = torch.where(scores.amax(-1, keepdim=True).isfinite(), scores, logits)
        if self.draws is None:
            return scores.argmax(-1), None
        probs = scores.softmax(-1)
        steps = [line.said + len(new) for line, new in zip(self.lines, drafted, strict=True)]
        return self.draws.tokens(probs, list(range(len(steps))), steps, Purpose.DRAFT), probs

    def _history(self, drafted: list[list[int]]) -> History:
        """What each row would have said, pushed to the right: rows are at different lengths."""
        texts, valid = [], []
        for line, new in zip(self.lines, drafted, strict=True):
            one = line.state.history
            length = line.state.limits.prompt_length + line.said
            texts.append(torch.cat([one.tokens[0, :length], one.tokens.new_tensor(new)]))
            valid.append(torch.cat([one.valid[0, :length], one.valid.new_ones(len(new))]))
        width = max(map(len, texts))
        one = self.lines[0].state.history
        return History(
            tokens=torch.stack([_pushed(text, width) for text in texts]),
            valid=torch.stack([_pushed(some, width) for some in valid]),
            position=torch.full_like(one.position, width),
            owners=RowOwners(
                prompts=torch.tensor([line.prompt for line in self.lines], device=one.tokens.device),
                slots=torch.zeros(len(self.lines), dtype=torch.long, device=one.tokens.device),
                rows_per_prompt=1,
                num_prompts=one.batch,
            ),
            source=one.source,
        )


def _pushed(row: Tensor, width: int) -> Tensor:
    return torch.cat([row.new_zeros(width - len(row)), row])
