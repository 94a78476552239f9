"""Chain-of-thought decoding."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History, write_column
from decodekit.core.limits import LENGTH, Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, is_count, shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.rows import RowState
from decodekit.errors import DecodekitError
from decodekit.processors.base import Scores

Span = tuple[int, int]


class Branches(NamedTuple):
    """The memory of rows that begin with different tokens, in the `memory` of a `RowState`."""

    # The probability of the likeliest token less that of the next, at every step.
    margins: Float32[Tensor, "rows new"]
    exists: Bool[Tensor, " rows"]  # False for a row whose first token does not exist, or was banned


class CoTAnswer(NamedTuple):
    """The answer of a hypothesis, and the model's confidence in it."""

    content: str | tuple[int, ...] | None
    confidence: float


@dataclass(frozen=True)
class CoTAnswers:
    """The answers of chain-of-thought decoding, in the order of the hypotheses: `Decoded.report`.

    Attributes:
        answers: The answer of each hypothesis, as text or ids; None if there is none.
        confidence: The mean margin of the tokens of each answer; minus infinity without an answer.
        total: The confidence summed over the hypotheses of the prompt that give this answer.
    """

    answers: list[list[str | tuple[int, ...] | None]]
    confidence: list[list[float]]
    total: list[list[float]]


@final
@dataclass(frozen=True)
class CoTDecoding(Decoder[RowState, CoTAnswers]):
    r"""Branches on the first token, continues greedily, and ranks by the confidence in the answer.

    Hypothesis $k$ of `branches` begins with the $k$-th likeliest token. Its confidence is
    $\frac{1}{|A|} \sum_{t \in A} P(y^1_t) - P(y^2_t)$, the margin between the two likeliest tokens, over the
    tokens $A$ of its answer. Probabilities are taken after the processors.

    Args:
        branches: First tokens, at least 1. Usual value: 10.
        answer: A function from the text of a hypothesis to the span of its answer, the first character and
            one past the last, or None if there is none. By default the whole text is the answer.
        ids: Gives `answer` token ids instead of text, and takes token positions from it.
        aggregate: True ranks by the confidence summed over all hypotheses that give the same answer.

    Raises:
        ValueError: If `branches` is not an integer of at least 1, or `ids` or `aggregate` not a boolean.
        TypeError: If `answer` cannot be called.
        DecodekitError: In a run, if `answer` needs text and there is no tokenizer, or returns no span.

    Example:
        >>> def number(text):
        ...     found = re.search(r"\d+", text)
        ...     return found and found.span()
        >>> decoder = CoTDecoding(10, answer=number, aggregate=True)

    Source:
        Wang & Zhou, 2024, https://arxiv.org/abs/2402.10200, section 2.2.

    Hugging Face:
        None.
    """

    branches: int = 10
    _: KW_ONLY
    answer: Callable[[Any], Span | None] | None = None
    ids: bool = False
    aggregate: bool = False

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, branches=at_least(1))
        if self.answer is not None and not callable(self.answer):
            raise TypeError(f"CoTDecoding: answer must be a function, got {shown(self.answer)}.")
        if not isinstance(self.ids, bool) or not isinstance(self.aggregate, bool):
            raise ValueError(  # noqa: TRY004 - as every argument out of range
                f"CoTDecoding: ids and aggregate must be True or False, got {shown(self.ids)} and "
                f"{shown(self.aggregate)}."
            )

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.branches

    @override
    def init(self, history: History, limits: Limits) -> RowState:
        state = RowState.start(history, limits)
        memory = Branches(torch.zeros_like(state.token_log_probs), torch.ones_like(state.all_banned))
        return state._replace(memory=memory)

    def step(self, scores: Scores, state: RowState) -> tuple[RowState, Selection]:
        """The token of the branch at first, then the argmax."""
        before: Branches = state.memory
        is_first = state.step == 0
        likeliest = scores.topk(min(max(self.branches, 2), scores.shape[-1]))
        branch = torch.arange(len(scores), device=scores.device) % self.branches
        place = torch.where(is_first, branch, 0).clamp(max=likeliest.values.shape[1] - 1)[:, None]
        value = likeliest.values.gather(1, place)[:, 0]
        missing = (branch >= scores.shape[-1]) | ((value == -torch.inf) & (branch > 0))
        exists = before.exists & ~(is_first & missing)
        # A branch that does not exist is finished before it begins.
        finish_code = torch.where(exists, state.finish_code, LENGTH)
        probs = likeliest.values.sub(scores.logsumexp(-1, keepdim=True)).exp()
        margin = probs[:, 0] - (probs[:, 1] if probs.shape[1] > 1 else 0.0)
        margins = write_column(before.margins, state.step, margin, finish_code == 0)
        state = state._replace(finish_code=finish_code, memory=Branches(margins, exists))
        return state.emit(likeliest.indices.gather(1, place)[:, 0], scores)

    @override
    def finished(self, state: RowState) -> Bool[Tensor, " batch"]:
        return state.finished

    def finalize(self, state: RowState) -> Decoded[CoTAnswers]:
        """The hypotheses by the confidence of their answers, the highest first."""
        exists = state.memory.exists.view(-1, self.branches)
        decoded = replace(state.decoded(self.branches), valid=exists)
        order, ranked = [], []
        for prompt, there in enumerate(exists.tolist()):
            answers = self._answers(prompt, decoded, state)
            totals = [_total(answer, answers) for answer in answers]
            keys = [  # missing hypotheses come last
                (not is_there, -total if self.aggregate else 0.0, -answer.confidence)
                for is_there, answer, total in zip(there, answers, totals, strict=True)
            ]
            order.append(sorted(range(self.branches), key=keys.__getitem__))
            ranked.append([(answers[place], totals[place]) for place in order[-1]])
        report = CoTAnswers(
            answers=[[answer.content for answer, _ in hypotheses] for hypotheses in ranked],
            confidence=[[answer.confidence for answer, _ in hypotheses] for hypotheses in ranked],
            total=[[total for _, total in hypotheses] for hypotheses in ranked],
        )
        decoded = decoded.in_order(torch.tensor(order, device=exists.device))
        score = torch.tensor(report.total if self.aggregate else report.confidence, device=exists.device)
        return replace(decoded, score=score).with_report(report)

    def _answers(self, prompt: int, decoded: Decoded, state: RowState) -> list[CoTAnswer]:
        """The answers of the hypotheses of a prompt."""
        limits, first = state.limits, prompt * self.branches
        columns = state.history.valid[first, : limits.prompt_length]
        before = state.history.tokens[first, : limits.prompt_length][columns].tolist()
        lengths, exists = decoded.lengths[prompt].tolist(), decoded.valid[prompt].tolist()
        margins = state.memory.margins
        return [
            self._answer(before, tokens[: lengths[b]], margins[first + b], limits.context.vocabulary)
            if exists[b]
            else CoTAnswer(None, -math.inf)
            for b, tokens in enumerate(decoded.tokens[prompt].tolist())
        ]

    def _answer(
        self, prompt: list[int], tokens: list[int], margins: Float32[Tensor, " new"], vocabulary: Vocabulary
    ) -> CoTAnswer:
        """A hypothesis's answer, and how sure the model is of its tokens."""
        if self.answer is None:
            return CoTAnswer(tuple(tokens), float(margins[: len(tokens)].mean()))
        text = tokens if self.ids else vocabulary.text(prompt, tokens)
        if text is None:
            raise DecodekitError(
                "CoTDecoding: answer needs a text to look at, and the model has no tokenizer. Use ids=True."
            )
        span = self.answer(text)
        if span is None:
            return CoTAnswer(None, -math.inf)
        first, last = _checked(span, len(text))
        if isinstance(text, list):
            return CoTAnswer(tuple(text[first:last]), float(margins[first:last].mean()))
        # A token is part of the answer if it adds to the text between these characters.
        ends = [len(vocabulary.text(prompt, tokens[: place + 1]) or "") for place in range(len(tokens))]
        inside = [b < last and e > first for b, e in zip([0, *ends[:-1]], ends, strict=True)]
        return CoTAnswer(text[first:last], float(margins[: len(tokens)][torch.tensor(inside)].mean()))


def _total(answer: CoTAnswer, several: list[CoTAnswer]) -> float:
    """The confidence summed over hypotheses with the same answer."""
    if answer.content is None:
        return -math.inf
    return sum(other.confidence for other in several if other.content == answer.content)


def _checked(span: object, length: int) -> Span:
    """The span, if it holds at least one character or token of the hypothesis."""
    if isinstance(span, tuple) and len(span) == 2 and all(is_count(place, 0) for place in span):  # noqa: PLR2004
        first, last = span
        if first < last <= length:
            return first, last
    raise DecodekitError(
        f"CoTDecoding: answer must return the span of the answer, within {length}, or None, got "
        f"{shown(span)}."
    )
