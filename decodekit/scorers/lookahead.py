"""Looks a few tokens ahead for what a text must contain."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.pytrees import Memory
from decodekit.core.validation import is_count, is_finite
from decodekit.errors import DecodekitError
from decodekit.models.model_outputs import ModelOutputsSpec
from decodekit.models.protocols import DescribedModel, Model
from decodekit.scorers._shared.rollouts import Hope, likeliest_ahead
from decodekit.scorers.base import ExtendedHypotheses, PathScorer
from decodekit.scorers.log_prob import LogProb

LEAST = -100.0  # nats; so that what is out of sight is not out of the search


@runtime_checkable
class Wanted(Protocol):
    """A constraint: `Phrase` and `OneOf` are."""

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        """The phrases of which a text must contain one."""


class Foresight(NamedTuple):
    """What is remembered of every row.

    Attributes:
        base: What the base remembers.
        unmet: How many constraints the text lacks.
        ahead: How near the nearest of them is, in nats, at most 0.
        limits: Where texts end.
    """

    base: Memory
    unmet: Float[Tensor, " rows"]
    ahead: Float[Tensor, " rows"]
    limits: Limits


@final
@dataclass(frozen=True)
class Lookahead(PathScorer):
    r"""Guides the search to texts that contain some phrases, by a look at what the model would say next.

    A text is worth $s(y) - \lambda u$, where $u$ is the number of constraints that it lacks. Until it is
    finished it is ranked by $\log P(y) - \lambda u + \alpha h$ (the base's `partial_score` for $\log P$), where
    $h = \max_{a}\max_{0 \le i < k} \log P(a \mid x, y, g_{\le i})$
    over the phrases $a$ of the constraints that it lacks and the model's greedy continuation $g$ of it: how
    likely the likeliest of them is to come soon. The rest of a phrase that a text has begun counts too, as
    what comes next. $h$ is 0 where nothing is lacking or the text has ended, and at least -100. Phrases that
    no longer fit in `max_new_tokens`, or come after the continuation has ended, do not count.

    Every continuation that the search looks at is read anew, in one batch: a step takes one more pass over
    whole texts and `steps - 1` passes of a token, and for each phrase of $n > 1$ ids at each place one
    more over whole texts and $n - 2$ of a token. Processors and stopping criteria do not touch the greedy
    continuations. Only new tokens count, not the prompt. Not capturable: the host runs the model.

    Args:
        model: The model that looks ahead; as a rule the run's own.
        constraints: What texts should contain: `Phrase` and `OneOf`; one list, or one for each prompt.
        weight: $\alpha$, at least 0. 0 does not look ahead. Usual values: 0.05-1.
        steps: $k$, places to look at, at least 1. Usual values: 3-35.
        penalty: $\lambda$, nats a constraint, at least 0. 0 and `weight=0`: the base. Usual values: large.
        base: What a text is worth otherwise, $s$.

    Raises:
        ValueError: If `weight`, `steps` or `penalty` is out of range.
        TypeError: If `model`, `constraints` or `base` is something else.
        DecodekitError: In a run, if there are not as many lists of constraints as prompts, an id is outside
            the vocabulary, or the model has another vocabulary or needs a source and there is none.

    Example:
        >>> model = dk.load()
        >>> wood = Lookahead(model, [dk.Phrase(model.tokenizer.encode(" wood"))], weight=1.0, steps=3)
        >>> search = dk.BeamSearch(4, scorer=wood)
        >>> dk.decode(model, "The old woman went into the", search, max_new_tokens=8).texts
        [[' wood, and said to her:\n']]

    Source:
        Lu et al., 2022, https://arxiv.org/abs/2112.08726, with greedy lookahead; what is lacking counts as in
        Lu et al., 2021, https://arxiv.org/abs/2010.12884. Theirs also groups the beams by the constraints
        they meet, and their code divides the log-probability of a phrase by its length.

    Hugging Face:
        None.
    """

    model: Model
    constraints: Sequence[Wanted] | Sequence[Sequence[Wanted]]
    _: KW_ONLY
    weight: float
    steps: int
    penalty: float = 10.0
    base: PathScorer = LogProb()
    # Of all prompts together: which constraints each has, and which constraint each phrase meets.
    _has: tuple[tuple[bool, ...], ...] = field(init=False, repr=False, compare=False)
    _phrases: tuple[tuple[int, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)

    batch_independent = True
    capturable = False

    def __post_init__(self) -> None:
        if isinstance(self.model, type) or not isinstance(self.model, Model):
            raise TypeError(
                f"Lookahead: model must be a decodekit.Model, got {type(self.model).__name__}. "
                "Wrap a transformers model: use dk.HFModel(model, tokenizer)."
            )
        for name in ("weight", "penalty"):
            value = getattr(self, name)
            if not is_finite(value) or value < 0:
                raise ValueError(f"Lookahead: {name} must be a finite number of at least 0, got {value!r}.")
        if not is_count(self.steps, 1):
            raise ValueError(f"Lookahead: steps must be an integer of at least 1, got {self.steps!r}.")
        if not isinstance(self.base, PathScorer):
            raise TypeError(f"Lookahead: base must be a Scorer or PathScorer, got {self.base!r:.80}.")
        given = _read(self.constraints)
        each = given if given and isinstance(given[0], tuple) else (given,)
        wanted = [(prompt, one) for prompt, several in enumerate(each) for one in several]
        has = [tuple(prompt == of for of, _ in wanted) for prompt in range(len(each))]
        phrases = [(number, ids) for number, (_, one) in enumerate(wanted) for ids in one.alternatives]  # type: ignore[union-attr]
        object.__setattr__(self, "constraints", given)  # frozen fields
        object.__setattr__(self, "_has", tuple(has))
        object.__setattr__(self, "_phrases", tuple(phrases))

    @property
    def stepwise(self) -> bool:
        """Yes."""
        return True

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What the base asks for."""
        return self.base.outputs_spec

    def init(self, history: History, limits: Limits) -> Foresight:
        """Everything is lacking."""
        if self._is_per_prompt and len(self._has) != history.batch:
            raise DecodekitError(
                "Lookahead: there must be one list of constraints, or one a prompt, got "
                f"{len(self._has)} for {history.batch} prompts."
            )
        highest = max((max(ids) for _, ids in self._phrases), default=0)
        if highest >= limits.vocab:
            raise DecodekitError(
                f"Lookahead: token ids must be below the vocabulary size {limits.vocab}, got {highest}."
            )
        unmet = self._wanted(history).sum(-1).float()
        return Foresight(self.base.init(history, limits), unmet, torch.zeros_like(unmet), limits)

    def update(self, extended: ExtendedHypotheses, memory: Foresight) -> Foresight:
        """See what is there by now, and look ahead for the rest."""
        limits, history = memory.limits, extended.history()
        end = min(int(history.position), history.tokens.shape[1])
        said = history.tokens[:, limits.prompt_length : end]
        lacking = self._wanted(extended.parents).index_select(0, extended.source_rows)
        for number, ids in self._phrases:
            lacking[:, number] &= ~_contains(said, ids)
        room = limits.max_new_tokens - said.shape[1]
        looks = lacking.any(-1) & ~limits.is_end(history.last())
        ahead = torch.zeros_like(memory.ahead)
        if self.weight and room > 0 and looks.any():
            rows = looks.nonzero()[:, 0]
            texts = self._texts(extended, history, rows, end)
            hopes, begun = self._hopes(said.index_select(0, rows), lacking.index_select(0, rows))
            seen = likeliest_ahead(
                self.model, texts, hopes, begun, steps=self.steps, room=room, limits=limits
            )
            ahead = ahead.index_copy(0, rows, seen.clamp(min=LEAST).to(ahead))
        return Foresight(self.base.update(extended, memory.base), lacking.sum(-1).float(), ahead, limits)

    def score(
        self, log_probs: Float[Tensor, " hyps"], lengths: Int64[Tensor, " hyps"], memory: Foresight
    ) -> Float[Tensor, " hyps"]:
        """The base's score, less what is lacking."""
        return self.base.score(log_probs, lengths, memory.base) - self.penalty * memory.unmet

    def upper_bound(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        max_length: int,
        memory: Foresight,
    ) -> Float[Tensor, " hyps"]:
        """The base's bound: nothing may be lacking in the end."""
        return self.base.upper_bound(log_probs, lengths, max_length, memory.base)

    def partial_score(
        self, log_probs: Float[Tensor, " hyps"], lengths: Int64[Tensor, " hyps"], memory: Foresight
    ) -> Float[Tensor, " hyps"]:
        """The base's guide, less what is lacking, and how near it is."""
        guide = self.base.partial_score(log_probs, lengths, memory.base)
        return guide - self.penalty * memory.unmet + self.weight * memory.ahead

    @property
    def _is_per_prompt(self) -> bool:
        return bool(self.constraints) and isinstance(self.constraints[0], tuple)

    def _wanted(self, history: History) -> Bool[Tensor, "rows constraints"]:
        """Which constraints are those of each row's prompt."""
        has = torch.tensor(self._has, dtype=torch.bool, device=history.tokens.device)
        return history.spread(has if self._is_per_prompt else has.expand(history.batch, -1))

    def _texts(
        self, extended: ExtendedHypotheses, history: History, rows: Int64[Tensor, " texts"], end: int
    ) -> Prompt:
        """What some hypotheses have said, the prompt included, as the model reads it."""
        source = history.source
        vocabulary = self.model.vocabulary if isinstance(self.model, DescribedModel) else None
        if vocabulary is not None and vocabulary.decoder_start_id is None:
            source = None  # a language model reads what the decoder says, and no source
        elif vocabulary is not None and source is None:
            raise DecodekitError(
                "Lookahead: an encoder-decoder must read the source of the run, and there is none. Use a "
                "decoder-only model."
            )
        if source is not None:
            batch = torch.arange(extended.parents.batch, device=rows.device)
            prompts = extended.parents.spread(batch).index_select(0, extended.source_rows)
            source = source.take(prompts.index_select(0, rows))
        tokens = history.tokens[:, :end].index_select(0, rows)
        return Prompt(tokens, history.valid[:, :end].index_select(0, rows), source)

    def _hopes(
        self, said: Int64[Tensor, "texts new"], lacking: Bool[Tensor, "texts constraints"]
    ) -> tuple[list[Hope], list[Hope]]:
        """The phrases that texts lack, and the rest of those that they end in the middle of."""
        hopes, begun = [], []
        for number, ids in self._phrases:
            texts = lacking[:, number]
            if not texts.any():
                continue
            hopes.append(Hope(ids, texts))
            for there in range(1, min(len(ids), said.shape[1] + 1)):
                ends = texts & (said[:, -there:] == _row(ids[:there], said)).all(-1)
                if ends.any():
                    begun.append(Hope(ids[there:], ends))
        return hopes, begun


def _contains(said: Int64[Tensor, "texts new"], ids: tuple[int, ...]) -> Bool[Tensor, " texts"]:
    """Which texts contain a phrase."""
    if said.shape[1] < len(ids):
        return torch.zeros(len(said), dtype=torch.bool, device=said.device)
    return (said.unfold(1, len(ids), 1) == _row(ids, said)).all(-1).any(-1)


def _row(ids: tuple[int, ...], like: Int64[Tensor, "texts new"]) -> Int64[Tensor, " ids"]:
    return torch.tensor(ids, device=like.device)


def _read(given: Any) -> tuple[Wanted, ...] | tuple[tuple[Wanted, ...], ...]:  # noqa: ANN401 - it may be anything
    """The constraints of all prompts, or of each, as they are kept."""
    if _is_list(given):
        if all(_is_constraint(one) for one in given):
            return tuple(given)
        if all(_is_list(one) and all(map(_is_constraint, one)) for one in given):
            return tuple(tuple(one) for one in given)
    raise TypeError(
        "Lookahead: constraints must be a list of Phrase and OneOf, such as [Phrase([5, 7])], or such a list "
        f"for each prompt, got {given!r:.200}."
    )


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _is_constraint(given: object) -> bool:
    return isinstance(given, Wanted) and not isinstance(given, type)
