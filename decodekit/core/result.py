"""Results: the hypotheses of every prompt, with their log-probabilities."""

from dataclasses import dataclass, replace
from typing import Any, Generic, cast

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import TypeVar

from decodekit.core.limits import FIRST_CRITERION
from decodekit.core.prompt import Prompt
from decodekit.core.stopping_criterion import StoppingCriterion
from decodekit.core.trace import Trace
from decodekit.core.validation import shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError

NewReport = TypeVar("NewReport")
Report = TypeVar("Report", default=Any)
"""The type of `Decoded.report`: None for row decoders, `Certificate` for beam search."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoded(Generic[Report]):
    """The continuations of every prompt, with their log-probabilities and scores.

    Log-probabilities are the model's own, before any processor, even if the decoder chooses by other scores.

    Attributes:
        tokens: New tokens, the end id included; filled with `pad_id` after it.
        lengths: New tokens of each hypothesis, the end id included.
        finish_reason: For every hypothesis `"end"` (it emitted an end id), `"length"`, `"missing"` (it is not
            valid), or the reason of the stopping criterion that finished it.
        valid: False where a prompt has fewer hypotheses than requested.
        token_log_probs: The model's log-probability of each new token, in nats; 0 past the end.
        score: The value that ranks the hypotheses: `log_prob`, or the value that the decoder documents (in a
            search with a scorer, its score). Reranking replaces it.
        parents: The row that each token was chosen on (Hugging Face's `beam_indices`), -1 past the
            end. Row `prompt * rows_per_prompt + beam`.
        pad_id: The id that fills `tokens` past the end.
        finish_code: The number of each finish reason: see `Limits`.
        prompt: The prompts.
        texts: For every prompt its valid hypotheses as text, special tokens and stop strings left out;
            None without a tokenizer.
        trace: The candidates of every step, if requested.
        report: Further results of the decoder, such as a `Certificate` from beam search; often None.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time", dk.BeamSearch(3, num_return=2),
        ...                 max_new_tokens=8)
        >>> out.tokens.shape, out.log_prob.shape
        (torch.Size([1, 2, 8]), torch.Size([1, 2]))
    """

    tokens: Int64[Tensor, "batch hyps new"]
    lengths: Int64[Tensor, "batch hyps"]
    finish_reason: list[list[str]]
    valid: Bool[Tensor, "batch hyps"]
    token_log_probs: Float32[Tensor, "batch hyps new"]
    score: Float32[Tensor, "batch hyps"]
    parents: Int64[Tensor, "batch hyps new"]
    pad_id: int
    finish_code: Int64[Tensor, "batch hyps"] | None = None
    prompt: Prompt | None = None
    texts: list[list[str]] | None = None
    trace: Trace | None = None
    report: Report = None  # type: ignore[assignment]  # the default of the type variable

    @property
    def log_prob(self) -> Float32[Tensor, "batch hyps"]:
        """The model's log-probability of each whole continuation, in nats; minus infinity if not valid."""
        return sum_log_probs(self.token_log_probs).masked_fill(~self.valid, -torch.inf)

    @property
    def sequences(self) -> Int64[Tensor, "sequences length"]:
        """Prompts and continuations in Hugging Face's layout, `batch * hyps` rows."""
        if self.prompt is None:
            raise DecodekitError(
                "Decoded: sequences need the prompts, which a result of finalize() lacks. Use decode()."
            )
        prompts = self.prompt.tokens.to(self.tokens.device)
        return torch.cat([prompts.repeat_interleave(self.tokens.shape[1], 0), self.tokens.flatten(0, 1)], 1)

    def with_report(self, report: NewReport) -> "Decoded[NewReport]":
        """The same result with another report."""
        return cast("Decoded[NewReport]", replace(self, report=cast("Any", report)))

    def hypotheses(self) -> list[list[list[int]]]:
        """The token ids of every prompt's valid hypotheses, without padding."""
        prompts = zip(self.tokens.tolist(), self.lengths.tolist(), self.valid.tolist(), strict=True)
        return [[row[:length] for row, length, valid in zip(*one, strict=True) if valid] for one in prompts]

    def in_order(self, places: Int64[Tensor, "batch hyps"]) -> "Decoded[Report]":
        """The same hypotheses in another order: `places` are their old columns, invalid ones last."""
        index = places[..., None].expand_as(self.tokens)
        order = places.tolist()
        valid = self.valid.gather(1, places)
        named = zip(self.finish_reason, order, valid.tolist(), strict=True)
        texts = self.texts
        if texts is not None:
            # Only valid hypotheses have a text, in their order.
            numbers = (self.valid.long().cumsum(1) - 1).gather(1, places).tolist()
            texts = [
                [row[number] for number, is_valid in zip(several, is_there, strict=True) if is_valid]
                for row, several, is_there in zip(texts, numbers, valid.tolist(), strict=True)
            ]
        return replace(
            self,
            tokens=self.tokens.gather(1, index),
            lengths=self.lengths.gather(1, places),
            finish_reason=[
                [
                    row[place] if is_valid else "missing"
                    for place, is_valid in zip(several, is_there, strict=True)
                ]
                for row, several, is_there in named
            ],
            valid=valid,
            token_log_probs=self.token_log_probs.gather(1, index),
            score=self.score.gather(1, places),
            parents=self.parents.gather(1, index),
            finish_code=None if self.finish_code is None else self.finish_code.gather(1, places),
            texts=texts,
        )

    def with_context(
        self,
        prompt: Prompt,
        vocabulary: Vocabulary,
        trace: Trace | None,
        criteria: tuple[StoppingCriterion, ...] = (),
    ) -> "Decoded[Report]":
        """The same result with its prompts, its texts if there is a tokenizer, and its trace.

        The criteria of the run may cut the texts.
        """
        texts = None
        if vocabulary.tokenizer is not None:
            finish_code = torch.zeros_like(self.lengths) if self.finish_code is None else self.finish_code
            rows = zip(prompt.ids(), self.hypotheses(), finish_code.tolist(), strict=True)
            texts = [
                [
                    read_text(vocabulary, ids, tokens, criteria, number - FIRST_CRITERION)
                    for tokens, number in zip(hypotheses, numbers, strict=False)  # invalid ones are last
                ]
                for ids, hypotheses, numbers in rows
            ]
        return replace(self, prompt=prompt, texts=texts, trace=trace)

    def __repr__(self) -> str:
        batch, hyps, new = self.tokens.shape
        ids = self.hypotheses()
        log_probs, lengths = self.log_prob.tolist(), self.lengths.tolist()
        lines = [f"Decoded(prompts={batch}, hypotheses={hyps}, new tokens≤{new})"]
        for prompt, row in enumerate(ids):
            for rank, tokens in enumerate(row):  # without the invalid ones, which are last
                text = tokens if self.texts is None else self.texts[prompt][rank]
                lines.append(
                    f"  [{prompt}][{rank}] log-prob {log_probs[prompt][rank]:9.2f}  "
                    f"{lengths[prompt][rank]:4d} tokens  {self.finish_reason[prompt][rank]:6}  "
                    f"{shown(text, 100)}"
                )
        return "\n".join(lines)


def read_text(
    vocabulary: Vocabulary,
    prompt: list[int],
    tokens: list[int],
    criteria: tuple[StoppingCriterion, ...],
    fired: int,
) -> str:
    """A hypothesis's text, cut by the criterion that finished it, or by another one that holds.

    `fired` is the index of the criterion that finished it, below 0 if none did.
    """
    text = vocabulary.text(prompt, tokens) or ""
    if not criteria or not tokens:
        return text
    before = vocabulary.text(prompt, tokens[:-1]) or ""
    numbers = sorted(range(len(criteria)), key=lambda number: number != fired)
    cuts = (criteria[number].trim(text, before, fired=number == fired) for number in numbers)
    return next((cut for cut in cuts if cut is not None), text)


def sum_log_probs(log_probs: Float32[Tensor, "*shape new"]) -> Float32[Tensor, "*shape"]:
    """Sums in double precision: a thousand single-precision terms drift in the third decimal."""
    return log_probs.sum(-1, dtype=torch.float64).to(log_probs.dtype)
