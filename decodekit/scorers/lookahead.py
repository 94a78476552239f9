"""Lookahead search for phrases that a text must contain."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain, pairwise
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
from decodekit.scorers.base import ExtendedHypotheses, Lengths, PathScorer, Values, check_scorer_type
from decodekit.scorers.log_prob import LogProb

LOWEST_HEURISTIC = -100.0  # nats; finite, so that a phrase out of reach does not end a hypothesis


@runtime_checkable
class Constraint(Protocol):
    """A constraint, such as `Phrase` and `OneOf`."""

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        """Phrases; a text must contain one of them."""


class LookaheadMemory(NamedTuple):
    """Memory of the base, and of `Lookahead`."""

    base: Memory
    unmet: Float[Tensor, " rows"]  # number of unmet constraints
    heuristic: Float[Tensor, " rows"]  # log-probability of the likeliest phrase of one of them, in nats
    limits: Limits  # the limits of the run


class Target(NamedTuple):
    """A phrase, or the rest of a begun one, and the texts that need it."""

    ids: tuple[int, ...]
    texts: Bool[Tensor, " texts"]
    begun: bool = False  # True: the target counts at the next position only


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
    or the text has ended, and at least -100. Phrases that no longer fit in `max_new_tokens`, or begin after
    the end of the continuation, do not count.

    At every step the model reads all candidates from the beginning, in one batch: one pass over whole texts
    and `steps - 1` passes of a token. At each position, each phrase of $n > 1$ ids takes another pass over
    whole texts and $n - 2$ passes of a token. Processors and stopping criteria do not apply to the greedy
    continuations. Only new tokens count, not the prompt. Not capturable: the host runs the model.

    Args:
        model: The model that looks ahead; usually the model of the run.
        constraints: `Phrase` and `OneOf` to meet; one list for all prompts, or one per prompt.
        weight: $\alpha$, at least 0. 0 disables lookahead. Usual values: 0.05-1.
        steps: $k$, positions to look at, at least 1. Usual values: 3-35.
        penalty: $\lambda$, nats per unmet constraint, at least 0. Usual values: large.
        base: $s$, the scorer to adjust.

    Raises:
        ValueError: If `weight`, `steps` or `penalty` is out of range.
        TypeError: If `model`, `constraints` or `base` is of another type.
        DecodekitError: In a run, if the number of lists of constraints differs from the batch size, an id is
            outside the vocabulary, the vocabularies differ, or the model needs a source and the run has none.

    Example:
        >>> model = dk.load()
        >>> wood = Lookahead(model, [dk.Phrase(model.tokenizer.encode(" wood"))], weight=1.0, steps=3)
        >>> search = dk.BeamSearch(4, scorer=wood)
        >>> dk.decode(model, "The old woman went into the", search, max_new_tokens=8).texts
        [[' wood, and said to her:\n']]

    Source:
        Lu et al., 2022, https://arxiv.org/abs/2112.08726, with greedy lookahead; the penalty is that of Lu et
        al., 2021, https://arxiv.org/abs/2010.12884. The papers also group the beams by the constraints they
        meet, and their code divides the log-probability of a phrase by its length.

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
    # The constraints of each prompt, or one list for all; every phrase with the number of its constraint.
    _lists: tuple[tuple[Constraint, ...], ...] = field(init=False, repr=False, compare=False)
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
        check_scorer_type("Lookahead", "base", self.base)
        set_fields(self, constraints=_read(self.constraints))
        lists: Any = self.constraints if self._is_per_prompt else (self.constraints,)
        numbered = enumerate(chain(*lists))
        phrases = tuple((number, ids) for number, constraint in numbered for ids in constraint.alternatives)
        set_fields(self, _lists=lists, _phrases=phrases)

    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        return self.base.outputs_spec

    @override
    def init(self, history: History, limits: Limits) -> LookaheadMemory:
        if self._is_per_prompt and len(self._lists) != history.batch:
            raise DecodekitError(
                "Lookahead: there must be one list of constraints, or one per prompt, got "
                f"{len(self._lists)} for {history.batch} prompts."
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
        unmet = self._constraints_of(history)
        for number, ids in self._phrases:
            unmet[:, number] &= ~_contains(new, ids)
        room = limits.max_new_tokens - new.shape[1]
        active = unmet.any(-1) & ~limits.is_end(history.last())
        heuristic = torch.zeros_like(memory.heuristic)
        if self.weight and room > 0 and active.any():
            rows = active.nonzero()[:, 0]
            texts = self._texts(history, rows, end)
            targets = self._targets(new.index_select(0, rows), unmet.index_select(0, rows))
            best = self._best_log_prob(texts, targets, room, limits)
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
        # A continuation may meet every constraint.
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
        device = history.tokens.device
        owners = [prompt for prompt, constraints in enumerate(self._lists) for _ in constraints]
        prompts = torch.arange(len(self._lists), device=device)
        mask = prompts[:, None] == torch.tensor(owners, dtype=torch.long, device=device)
        return history.to_rows(mask if self._is_per_prompt else mask.expand(history.batch, -1))

    def _texts(self, history: History, rows: Int64[Tensor, " texts"], end: int) -> Prompt:
        """Return some hypotheses, their prompts included, as prompts for the model."""
        source = history.source
        if isinstance(self.model, ModelWithVocabulary):
            if self.model.vocabulary.decoder_start_id is None:
                source = None  # a decoder-only model reads the decoder's side of an encoder-decoder
            elif source is None:
                raise DecodekitError(
                    "Lookahead: an encoder-decoder reads the source of the run, but the run has none. Use a "
                    "decoder-only model."
                )
        if source is not None:
            source = source.take(history.owners.prompts.index_select(0, rows))
        tokens = history.tokens[:, :end].index_select(0, rows)
        return Prompt(tokens, history.valid[:, :end].index_select(0, rows), source)

    def _targets(
        self, new: Int64[Tensor, "texts new"], unmet: Bool[Tensor, "texts constraints"]
    ) -> list[Target]:
        """Return the phrases of unmet constraints, and the rest of each phrase that a text has begun."""
        targets = []
        for number, ids in self._phrases:
            targets.append(Target(ids, unmet[:, number]))
            for split in range(1, min(len(ids), new.shape[1] + 1)):
                begun = unmet[:, number] & (new[:, -split:] == new.new_tensor(ids[:split])).all(-1)
                targets.append(Target(ids[split:], begun, begun=True))
        return [target for target in targets if target.texts.any()]

    def _best_log_prob(
        self, texts: Prompt, targets: list[Target], room: int, limits: Limits
    ) -> Float32[Tensor, " texts"]:
        """Return the log-probability of each text's likeliest target; minus infinity if no target fits."""
        rows, columns = texts.tokens.shape
        session, logits = self.model.start(texts, rows_per_prompt=1, capacity=columns + self.steps)
        if logits.shape[-1] != limits.vocab:
            raise DecodekitError(
                f"Lookahead: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
                f"{limits.vocab}. Use a model with the same tokenizer."
            )
        active = torch.ones(rows, dtype=torch.bool, device=logits.device)
        best = torch.full((rows,), -torch.inf, device=logits.device)
        steps = min(self.steps, room)
        for step in range(steps):
            log_probs = logits.log_softmax(-1)
            for target in targets:
                if len(target.ids) <= room - step and not (target.begun and step):
                    selected = target.texts.to(active.device) & active
                    best = best.maximum(self._log_prob(texts, log_probs, target.ids, selected))
            tokens = log_probs.argmax(-1)
            active = active & ~limits.is_end(tokens)
            if step + 1 == steps or not active.any():
                break
            texts = _append(texts, tokens)
            logits = session.advance(tokens, None)
        return best

    def _log_prob(
        self,
        texts: Prompt,
        log_probs: Float32[Tensor, "texts vocab"],
        ids: tuple[int, ...],
        selected: Bool[Tensor, " texts"],
    ) -> Float32[Tensor, " texts"]:
        """Return the log-probability of the ids after the selected texts; for other texts, minus infinity."""
        total = log_probs[:, ids[0]].masked_fill(~selected, -torch.inf)
        chosen = (total > -torch.inf).nonzero()[:, 0]
        if len(ids) == 1 or not len(chosen):
            return total
        # The session continues the greedy continuation, so the ids need another session.
        texts = _append(texts.take(chosen), torch.full_like(chosen, ids[0]))
        capacity = texts.tokens.shape[1] + len(ids) - 2
        session, logits = self.model.start(texts, rows_per_prompt=1, capacity=capacity)
        rest = logits.log_softmax(-1)[:, ids[1]]
        for last, following in pairwise(ids[1:]):
            logits = session.advance(torch.full_like(chosen, last), None)
            rest = rest + logits.log_softmax(-1)[:, following]
        return total.index_add(0, chosen, rest)


def _contains(new: Int64[Tensor, "texts new"], ids: tuple[int, ...]) -> Bool[Tensor, " texts"]:
    """True for texts that contain a phrase."""
    if new.shape[1] < len(ids):
        return torch.zeros(len(new), dtype=torch.bool, device=new.device)
    return (new.unfold(1, len(ids), 1) == new.new_tensor(ids)).all(-1).any(-1)


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


def _append(texts: Prompt, tokens: Int64[Tensor, " texts"]) -> Prompt:
    tokens = tokens.to(texts.tokens.device)[:, None]
    valid = torch.ones_like(tokens, dtype=torch.bool)
    return Prompt(torch.cat([texts.tokens, tokens], 1), torch.cat([texts.mask, valid], 1), texts.source)
