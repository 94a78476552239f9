"""A decoder with its processors, and what came of running it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.progress import Progress

import decodekit as dk
from decodekit.cli.trace_output import trace_document


class Hypothesis(NamedTuple):
    """One continuation: the fields of `Decoded`, of one hypothesis."""

    text: str
    tokens: list[int]
    length: int
    finish_reason: str
    log_prob: float
    score: float
    token_log_probs: list[float]


@dataclass(frozen=True)
class Strategy:
    """A way to decode.

    Attributes:
        name: What a person calls it.
        decoder: The algorithm.
        processors: What changes the scores before it, in order.
        stop: What finishes a hypothesis besides its end ids and its length.
    """

    name: str
    decoder: dk.Decoder[Any]
    processors: list[dk.LogitsProcessor]
    stop: Sequence[dk.StoppingCriterion] = ()

    def run(
        self,
        model: dk.HFModel,
        prompt: str,
        max_new_tokens: int,
        progress: Progress,
        *,
        trace: int | None = None,
    ) -> "Outcome":
        """Continues one prompt, a tick of the progress bar a step."""
        task = progress.add_task(self.name, total=max_new_tokens)
        start = time.perf_counter()
        decoded = dk.decode(
            model,
            prompt,
            self.decoder,
            self.processors,
            max_new_tokens=max_new_tokens,
            stop=self.stop,
            trace=trace,
            on_step=lambda number: progress.update(task, completed=number),
        )
        seconds = time.perf_counter() - start  # decode has read the result from the device
        progress.remove_task(task)
        return Outcome(self, decoded, seconds)


@dataclass(frozen=True)
class Outcome:
    """What a strategy gave.

    Attributes:
        strategy: How.
        decoded: What.
        seconds: How long the run took.
    """

    strategy: Strategy
    decoded: dk.Decoded
    seconds: float

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The prompt's valid hypotheses, best first."""
        decoded = self.decoded
        log_probs, scores = decoded.log_prob[0].tolist(), decoded.score[0].tolist()
        token_log_probs = decoded.token_log_probs[0].tolist()
        texts = [] if decoded.texts is None else decoded.texts[0]  # a string was read, so there are texts
        return [
            Hypothesis(
                text=texts[rank],
                tokens=tokens,
                length=len(tokens),
                finish_reason=decoded.finish_reason[0][rank],
                log_prob=log_probs[rank],
                score=scores[rank],
                token_log_probs=token_log_probs[rank][: len(tokens)],
            )
            for rank, tokens in enumerate(decoded.hypotheses()[0])  # those that are not valid stand last
        ]

    def document(self) -> dict[str, Any]:
        """The outcome for JSON."""
        trace = self.decoded.trace
        return {
            "decoder": repr(self.strategy.decoder),
            "processors": [repr(processor) for processor in self.strategy.processors],
            "hypotheses": [hypothesis._asdict() for hypothesis in self.hypotheses],
            "seconds": self.seconds,
        } | ({} if trace is None else {"trace": trace_document(trace)})
