"""Lookahead search for phrases that a text must contain."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.pytrees import Memory
from decodekit.core.validation import NON_NEGATIVE, at_least, check_fields, set_fields, shown
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model, ModelOutputsSpec, ModelWithVocabulary
from decodekit.scorers.base import ExtendedHypotheses, Lengths, PathScorer, Values, check_scorer
from decodekit.scorers.log_prob import LogProb

LOWEST_HEURISTIC = -100.0  # nats; finite, so that a phrase out of reach does not end a hypothesis


@runtime_checkable
class Constraint(Protocol):
    """A constraint, such as `Phrase` and `OneOf`."""

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        """Phrases; a text must contain one of them."""


class LookaheadMemory(NamedTuple):
    """Memory of `Lookahead`.

    Attributes:
        base: The base's memory.
        unmet: Number of unmet constraints.
        heuristic: Log-probability of the likeliest phrase of an unmet constraint, in nats.
        limits: Of the run.
    """

    base: Memory
    unmet: Float[Tensor, " rows"]
    heuristic: Float[Tensor, " rows"]
    limits: Limits


class Target(NamedTuple):
    """A phrase, or the rest of one, and the texts that need it."""

    ids: tuple[int, ...]
    texts: Bool[Tensor, " texts"]


@final
@dataclass(frozen=True)
class Lookahead(PathScorer):
    r"""Guides the search to texts that contain some phrases, with the model's own greedy continuations.

    The score of a text is $s(y) - \lambda u$, where $u$ is the number of unmet constraints. Until it is
    finished the search ranks it by $\log P(y) - \lambda u + \alpha h$ (the base's `partial_score` in place of
    $\log P$), with the heuristic $h = \max_{a}\max_{0 \le i < k} \log P(a \mid x, y, g_{\le i})$ over the
    phrases $a$ of the unmet constraints and the model's greedy continuation $g$ of the text: the
    log-probability of the likeliest phrase at the next $k$ positions. If a text ends in the middle of a
    phrase, the rest of that phrase counts too, at the next position only. $h$ is 0 if no constraint is unmet
    or the text has ended, and at least -100. Phrases that no longer fit in `max_new_tokens`, or come after
    the end of the continuation, do not count.

    The model reads every candidate of the search anew, in one batch: a step takes one more pass over whole
    texts and `steps - 1` passes of a token. Each phrase of $n > 1$ ids takes at each position one more pass
    over whole texts and $n - 2$ of a token. Processors and stopping criteria do not apply to the greedy
    continuations. Only new tokens count, not the prompt. Not capturable: the host runs the model.

    Args:
        model: Looks ahead; usually the run's own model.
        constraints: `Phrase` and `OneOf` to meet; one list for all prompts, or one per prompt.
        weight: $\alpha$, at least 0. 0 does not look ahead. Usual values: 0.05-1.
        steps: $k$, positions to look at, at least 1. Usual values: 3-35.
        penalty: $\lambda$, nats per unmet constraint, at least 0. With `weight=0` too, 0 is the base alone.
            Usual values: large.
        base: $s$, the scorer to adjust.

    Raises:
        ValueError: If `weight`, `steps` or `penalty` is out of range.
        TypeError: If `model`, `constraints` or `base` is of another type.
        DecodekitError: In a run, if the number of lists of constraints is not that of the prompts, an id is
            outside the vocabulary, or the model has another vocabulary or needs a source and there is none.

    Example:
        >>> model = dk.load()
        >>> wood = Lookahead(model, [dk.Phrase(model.tokenizer.encode(" wood"))], weight=1.0, steps=3)
        >>> search = dk.BeamSearch(4, scorer=wood)
        >>> dk.decode(model, "The old woman went into the", search, max_new_tokens=8).texts
        [[' wood, and said to her:\n']]

    Source:
        Lu et al., 2022, https://arxiv.org/abs/2112.08726, with greedy lookahead; the penalty is that of
        Lu et al., 2021, https://arxiv.org/abs/2010.12884. Theirs also groups the beams by the constraints
        they meet, and their code divides the log-probability of a phrase by its length.

    Hugging Face:
        None.
    """

    model: Model
    constraints: Sequence[Constraint] | Sequence[Sequence[Constraint]]
    _: KW_ONLY
    weight: float
    steps: int
    penalty: float = 10.0
    base: PathScorer = LogProb()
    # The constraints of all prompts in one list: per prompt, True for its own; per phrase, the number of its
    # constraint.
    _membership: tuple[tuple[bool, ...], ...] = field(init=False, repr=False, compare=False)
    _phrases: tuple[tuple[int, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)

    batch_independent = True
    capturable = False
    stepwise = True

    def __post_init__(self) -> None:
        if isinstance(self.model, type) or not isinstance(self.model, Model):
            raise TypeError(
                f"Lookahead: model must be a decodekit.Model, got {type(self.model).__name__}. "
                "Wrap a transformers model: use dk.HFModel(model, tokenizer)."
            )
        check_fields(self, weight=NON_NEGATIVE, penalty=NON_NEGATIVE, steps=at_least(1))
        check_scorer("Lookahead", "base", self.base)
        constraints = _read(self.constraints)
        lists = constraints if constraints and isinstance(constraints[0], tuple) else (constraints,)
        pairs = [(prompt, constraint) for prompt, several in enumerate(lists) for constraint in several]
        set_fields(
            self,
            constraints=constraints,
            _membership=tuple(tuple(prompt == owner for owner, _ in pairs) for prompt in range(len(lists))),
            _phrases=tuple(
                (number, ids)
                for number, (_, constraint) in enumerate(pairs)
                for ids in constraint.alternatives  # type: ignore[union-attr]
            ),
        )

    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        return self.base.outputs_spec

    @override
    def init(self, history: History, limits: Limits) -> LookaheadMemory:
        if self._is_per_prompt and len(self._membership) != history.batch:
            raise DecodekitError(
                "Lookahead: there must be one list of constraints, or one per prompt, got "
                f"{len(self._membership)} for {history.batch} prompts."
            )
        highest = max((max(ids) for _, ids in self._phrases), default=0)
        if highest >= limits.vocab:
            raise DecodekitError(
                f"Lookahead: token ids must be below the vocabulary size {limits.vocab}, got {highest}."
            )
        unmet = self._constraints_of(history).sum(-1).float()
        return LookaheadMemory(self.base.init(history, limits), unmet, torch.zeros_like(unmet), limits)

    @override
    def update(self, extended: ExtendedHypotheses, memory: LookaheadMemory) -> LookaheadMemory:
        limits, history = memory.limits, extended.history()
        end = min(int(history.position), history.tokens.shape[1])
        new = history.tokens[:, limits.prompt_length : end]
        unmet = self._constraints_of(extended.parents).index_select(0, extended.source_rows)
        for number, ids in self._phrases:
            unmet[:, number] &= ~_contains(new, ids)
        room = limits.max_new_tokens - new.shape[1]
        active = unmet.any(-1) & ~limits.is_end(history.last())
        heuristic = torch.zeros_like(memory.heuristic)
        if self.weight and room > 0 and active.any():
            rows = active.nonzero()[:, 0]
            texts = self._texts(extended, history, rows, end)
            targets = self._targets(new.index_select(0, rows), unmet.index_select(0, rows))
            best = _best_log_prob(self.model, texts, *targets, steps=self.steps, room=room, limits=limits)
            heuristic = heuristic.index_copy(0, rows, best.clamp(min=LOWEST_HEURISTIC).to(heuristic))
        base = self.base.update(extended, memory.base)
        return LookaheadMemory(base, unmet.sum(-1).float(), heuristic, limits)

    @override
    def score(self, log_probs: Values, lengths: Lengths, memory: LookaheadMemory) -> Values:
        return self.base.score(log_probs, lengths, memory.base) - self.penalty * memory.unmet

    @override
    def upper_bound(
        self, log_probs: Values, lengths: Lengths, max_length: int, memory: LookaheadMemory
    ) -> Values:
        # In the end every constraint may be met.
        return self.base.upper_bound(log_probs, lengths, max_length, memory.base)

    @override
    def partial_score(self, log_probs: Values, lengths: Lengths, memory: LookaheadMemory) -> Values:
        base = self.base.partial_score(log_probs, lengths, memory.base)
        return base - self.penalty * memory.unmet + self.weight * memory.heuristic

    @property
    def _is_per_prompt(self) -> bool:
        return bool(self.constraints) and isinstance(self.constraints[0], tuple)

    def _constraints_of(self, history: History) -> Bool[Tensor, "rows constraints"]:
        """Return a mask of the constraints of each row's prompt."""
        membership = torch.tensor(self._membership, dtype=torch.bool, device=history.tokens.device)
        return history.to_rows(membership if self._is_per_prompt else membership.expand(history.batch, -1))

    def _texts(
        self, extended: ExtendedHypotheses, history: History, rows: Int64[Tensor, " texts"], end: int
    ) -> Prompt:
        """Return some hypotheses, their prompts included, as prompts for the model."""
        source = history.source
        vocabulary = self.model.vocabulary if isinstance(self.model, ModelWithVocabulary) else None
        if vocabulary is not None and vocabulary.decoder_start_id is None:
            source = (
                None  # a decoder-only model reads the decoder's side of an encoder-decoder, and no source
            )
        elif vocabulary is not None and source is None:
            raise DecodekitError(
                "Lookahead: an encoder-decoder must read the source of the run, and there is none. Use a "
                "decoder-only model."
            )
        if source is not None:
            batch = torch.arange(extended.parents.batch, device=rows.device)
            prompts = extended.parents.to_rows(batch).index_select(0, extended.source_rows)
            source = source.take(prompts.index_select(0, rows))
        tokens = history.tokens[:, :end].index_select(0, rows)
        return Prompt(tokens, history.valid[:, :end].index_select(0, rows), source)

    def _targets(
        self, new: Int64[Tensor, "texts new"], unmet: Bool[Tensor, "texts constraints"]
    ) -> tuple[list[Target], list[Target]]:
        """Return the phrases of unmet constraints, and the rest of each phrase that a text has begun."""
        phrases, rests = [], []
        for number, ids in self._phrases:
            texts = unmet[:, number]
            if not texts.any():
                continue
            phrases.append(Target(ids, texts))
            for split in range(1, min(len(ids), new.shape[1] + 1)):
                begun = texts & (new[:, -split:] == _row(ids[:split], new)).all(-1)
                if begun.any():
                    rests.append(Target(ids[split:], begun))
        return phrases, rests


def _contains(new: Int64[Tensor, "texts new"], ids: tuple[int, ...]) -> Bool[Tensor, " texts"]:
    """True for texts that contain a phrase."""
    if new.shape[1] < len(ids):
        return torch.zeros(len(new), dtype=torch.bool, device=new.device)
    return (new.unfold(1, len(ids), 1) == _row(ids, new)).all(-1).any(-1)


def _row(ids: tuple[int, ...], like: Int64[Tensor, "texts new"]) -> Int64[Tensor, " ids"]:
    return torch.tensor(ids, device=like.device)


def _read(given: Any) -> tuple[Constraint, ...] | tuple[tuple[Constraint, ...], ...]:  # noqa: ANN401 - not checked yet
    """Return the constraints of all prompts, or of each, as tuples."""
    if _is_list(given):
        if all(map(_is_constraint, given)):
            return tuple(given)
        if all(_is_list(part) and all(map(_is_constraint, part)) for part in given):
            return tuple(map(tuple, given))
    raise TypeError(
        "Lookahead: constraints must be a list of Phrase and OneOf, such as [Phrase([5, 7])], or such a list "
        f"for each prompt, got {shown(given, 200)}."
    )


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _is_constraint(given: object) -> bool:
    return isinstance(given, Constraint) and not isinstance(given, type)


def _best_log_prob(  # noqa: PLR0913 - two kinds of targets
    model: Model,
    texts: Prompt,
    anywhere: Sequence[Target],
    next_only: Sequence[Target],
    *,
    steps: int,
    room: int,
    limits: Limits,
) -> Float32[Tensor, " texts"]:
    """Return the log-probability of each text's likeliest target; minus infinity if no target fits.

    Args:
        model: Continues the texts greedily.
        texts: Hypotheses, prompts included.
        anywhere: Targets at any of the positions.
        next_only: Targets at the first position, directly after the text.
        steps: Positions to look at.
        room: Tokens that may still come.
        limits: Of the run.
    """
    rows, columns = texts.tokens.shape
    session, logits = model.start(texts, rows_per_prompt=1, capacity=columns + steps)
    if logits.shape[-1] != limits.vocab:
        raise DecodekitError(
            f"Lookahead: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
            f"{limits.vocab}. Use a model with the same tokenizer."
        )
    active = torch.ones(rows, dtype=torch.bool, device=logits.device)
    best = torch.full((rows,), -torch.inf, device=logits.device)
    for step in range(min(steps, room)):
        log_probs = logits.log_softmax(-1)
        for target in [*anywhere, *next_only] if step == 0 else anywhere:
            if len(target.ids) <= room - step:
                selected = target.texts.to(active.device) & active
                best = best.maximum(_log_prob(model, texts, log_probs, target.ids, selected))
        tokens = log_probs.argmax(-1)
        active = active & ~limits.is_end(tokens)
        if step + 1 == min(steps, room) or not active.any():
            break
        texts = _append(texts, tokens)
        logits = session.advance(tokens, None)
    return best


def _log_prob(
    model: Model,
    texts: Prompt,
    log_probs: Float32[Tensor, "texts vocab"],
    ids: tuple[int, ...],
    selected: Bool[Tensor, " texts"],
) -> Float32[Tensor, " texts"]:
    """Return the log-probability of the ids after the selected texts; minus infinity for other texts."""
    total = log_probs[:, ids[0]].masked_fill(~selected, -torch.inf)
    chosen = (total > -torch.inf).nonzero()[:, 0]
    if len(ids) == 1 or not len(chosen):
        return total
    # The session goes on with the greedy continuation, so the ids need a session of their own.
    texts = _append(texts.take(chosen), torch.full_like(chosen, ids[0]))
    session, logits = model.start(texts, rows_per_prompt=1, capacity=texts.tokens.shape[1] + len(ids) - 2)
    rest = logits.log_softmax(-1)[:, ids[1]]
    for last, following in pairwise(ids[1:]):
        logits = session.advance(torch.full_like(chosen, last), None)
        rest = rest + logits.log_softmax(-1)[:, following]
    return total.index_add(0, chosen, rest)


def _append(texts: Prompt, tokens: Int64[Tensor, " texts"]) -> Prompt:
    tokens = tokens.to(texts.tokens.device)[:, None]
    valid = torch.ones_like(tokens, dtype=torch.bool)
    return Prompt(torch.cat([texts.tokens, tokens], 1), torch.cat([texts.mask, valid], 1), texts.source)
