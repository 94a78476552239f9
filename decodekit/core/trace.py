"""Traces: the likeliest tokens of every row at every step."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd


class Candidate(NamedTuple):
    """One of the likeliest tokens of a row at one step."""

    token: int
    text: str | None  # None without a tokenizer
    log_prob: float  # the model's own, in nats
    score: float  # after the processors; minus infinity if they banned it


class Choice(NamedTuple):
    """One row at one step, with its candidates."""

    step: int  # 0 for the first new token
    prompt: int
    row: int  # among the rows of the prompt (beams or samples)
    tokens: list[int]  # the continuation before this step
    text: str | None  # of prompt and continuation; None without a tokenizer
    candidates: list[Candidate]  # the likeliest tokens under the model, best first


class RecordedStep(NamedTuple):
    """The tensors of one step, with rows in their order before the step."""

    candidates: Int64[Tensor, "rows choices"]
    log_probs: Float32[Tensor, "rows choices"]
    scores: Float32[Tensor, "rows choices"]
    tokens: Int64[Tensor, " rows"]  # the tokens of the rows after the step
    source_rows: Int64[Tensor, " rows"] | None


@dataclass(frozen=True, eq=False)
class Trace:
    """The likeliest tokens of every row at every step, and the row that each row continued.

    Iterate over it for `Choice` objects. `to_frame()` gives the trace as a table.

    Attributes:
        prompt: The prompts.
        rows_per_prompt: Rows (beams or samples) of each prompt.
        vocabulary: The vocabulary of the model.
        end_ids: Ids that end a row; later tokens are left out.
        steps: The tensors of every step.
        lengths: Number of tokens of each row, if rows never change places.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time there was", dk.Greedy(), max_new_tokens=2, trace=3)
        >>> [choice.candidates[0].text for choice in out.trace]
        [' a', ' man']
    """

    prompt: Prompt
    rows_per_prompt: int
    vocabulary: Vocabulary
    end_ids: tuple[int, ...]
    steps: list[RecordedStep] = field(repr=False)
    lengths: Int64[Tensor, "batch hyps"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Choice]:
        prompts = self.prompt.ids()
        emitted: list[list[int]] = [[] for _ in range(len(prompts) * self.rows_per_prompt)]
        lengths = [len(self.steps)] * len(emitted)
        if self.lengths is not None and all(step.source_rows is None for step in self.steps):
            lengths = self.lengths.flatten().tolist()
        for number, step in enumerate(self.steps):
            candidates, log_probs, scores = (t.tolist() for t in step[:3])
            for row, tokens in enumerate(emitted):
                if number >= lengths[row] or not set(self.end_ids).isdisjoint(tokens):
                    continue
                prompt = row // self.rows_per_prompt
                yield Choice(
                    step=number,
                    prompt=prompt,
                    row=row % self.rows_per_prompt,
                    tokens=tokens,
                    text=self.vocabulary.text([], prompts[prompt] + tokens),
                    candidates=[
                        Candidate(token, self.vocabulary.text(prompts[prompt] + tokens, [token]), *values)
                        for token, *values in zip(candidates[row], log_probs[row], scores[row], strict=True)
                    ],
                )
            sources = range(len(emitted)) if step.source_rows is None else step.source_rows.tolist()
            emitted = [
                [*emitted[source], token] for source, token in zip(sources, step.tokens.tolist(), strict=True)
            ]

    def records(self) -> list[dict[str, Any]]:
        """The rows of the table: a dictionary per step and row, with candidates as `' time (88.73%)'`."""
        prompts = self.prompt.ids()
        return [
            {
                "Step": choice.step,
                "Prompt": choice.prompt,
                "Row": choice.row,
                "Input": prompts[choice.prompt] + choice.tokens if choice.text is None else choice.text,
            }
            | {f"Choice {rank}": _cell(candidate) for rank, candidate in enumerate(choice.candidates, 1)}
            for choice in self
        ]

    def to_frame(self) -> "pd.DataFrame":
        """`records` as a pandas data frame. Needs the extra `decodekit[frames]`."""
        import pandas as pd  # noqa: PLC0415 - an extra

        return pd.DataFrame(self.records())


def record(
    logits: Float32[Tensor, "rows vocab"],
    scores: Float32[Tensor, "rows vocab"],
    tokens: Int64[Tensor, " rows"],
    source_rows: Int64[Tensor, " rows"] | None,
    choices: int,
) -> RecordedStep:
    """One step of a trace: the `choices` likeliest tokens of every row."""
    log_probs, candidates = logits.log_softmax(-1).topk(min(choices, logits.shape[-1]))
    return RecordedStep(
        candidates=candidates.cpu(),
        log_probs=log_probs.cpu(),
        scores=scores.gather(1, candidates).cpu(),
        tokens=tokens.cpu(),
        source_rows=None if source_rows is None else source_rows.cpu(),
    )


def _cell(candidate: Candidate) -> str:
    text = candidate.token if candidate.text is None else candidate.text
    return f"{text} ({torch.tensor(candidate.log_prob).exp():.2%})"
