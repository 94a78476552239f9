"""A second model besides the run's own: its state in guidance, fusion and ensembles of models.

A model's session is mutable. A processor's memory holds the session and a tensor: for each row, the row of
the session that it continues. When beams are reordered, the loop reorders this tensor with the memory, and
the next step passes it to the session. So the second model's cache follows its beams.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History, rows_of
from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model, ModelWithVocabulary, Session, ShrinkingSession
from decodekit.processors.base import LogitsProcessor, Scores, check_per_prompt


@dataclass
class CountedSession:
    """A session, and the number of tokens that it has read after the prompt."""

    session: Session
    read: int = 0


class SecondModelState(NamedTuple):
    """The position of every row in a second model's session."""

    counted: CountedSession  # shared by all memories of the processor in a run
    read: int  # tokens that the session had read at this state
    rows: Int64[Tensor, " rows"]  # the session's row that each row continues
    logits: Float32[Tensor, "rows vocab"] | None  # after the prompt; None after the first step

    @classmethod
    def start(
        cls, who: str, model: Model, history: History, prompt: Prompt | None = None
    ) -> "SecondModelState":
        """Start the second model on the call's prompts, or on `prompt`: one per prompt, or one for all."""
        rows, capacity = history.tokens.shape
        batch, length = rows // history.rows_per_prompt, int(history.position)
        prompt = (
            _run_prompt(who, model, history, length) if prompt is None else prompt.to(history.tokens.device)
        )
        if len(prompt.tokens) == 1:
            prompt = prompt.take(torch.zeros(batch, dtype=torch.long))
        elif len(prompt.tokens) == history.batch:
            prompt = prompt.take(history.owners.prompts[:: history.rows_per_prompt])
        if len(prompt.tokens) != batch:
            raise DecodekitError(
                f"{who}: there must be one prompt for the second model for each prompt of the call, got "
                f"{len(prompt.tokens)} for {history.batch}. Pass one for each, or one for all."
            )
        session, logits = model.start(
            prompt,
            rows_per_prompt=history.rows_per_prompt,
            capacity=prompt.tokens.shape[1] + capacity - length,
        )
        return cls(CountedSession(session), 0, torch.arange(rows, device=history.tokens.device), logits)

    def advance(self, who: str, history: History, scores: Scores) -> tuple[Scores, "SecondModelState"]:
        """Return the second model's logits for the next token, and its new state.

        The logits must have the vocabulary of the run's scores, and are moved to their device.
        """
        counted, logits = self.counted, self.logits
        if self.read != counted.read:
            raise DecodekitError(
                f"{who}: the memory of a second model must be the newest one, got one after {self.read} of "
                f"{counted.read} tokens. Use each memory once, or begin again with init."
            )
        if logits is None:
            # A prompt's only row continues itself.
            source_rows = self.rows if history.rows_per_prompt > 1 else None
            counted.read += 1
            logits = counted.session.advance(history.last(), source_rows)
        if logits.shape != scores.shape:
            raise DecodekitError(
                f"{who}: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
                f"{scores.shape[-1]}. Use a model with the same tokenizer."
            )
        in_order = torch.arange(len(self.rows), device=self.rows.device)
        return logits.to(scores.device), SecondModelState(counted, counted.read, in_order, None)

    @property
    def batch_independent(self) -> bool:
        """True if prompts can be evicted from the session."""
        session = self.counted.session
        return isinstance(session, ShrinkingSession) and session.can_evict

    def for_prompts(self, prompts: Int64[Tensor, " kept"], batch: int) -> "SecondModelState":
        """Evict all but some of `batch` prompts from the session, and return the state of the rest."""
        if isinstance(self.counted.session, ShrinkingSession):
            self.counted.session.keep_prompts(prompts)
        beams = len(self.rows) // batch
        kept = rows_of(prompts, beams)
        # Every row continues a row of its own prompt, and the first row of the prompt has moved.
        first = rows_of(torch.arange(len(prompts), device=prompts.device), beams) // beams * beams
        return self._replace(
            rows=first + self.rows.index_select(0, kept) % beams,
            logits=None if self.logits is None else self.logits.index_select(0, kept),
        )


class SecondModelProcessor(LogitsProcessor):
    """A processor that also reads the logits of other models, which run besides the run's own."""

    capturable = False  # the host runs the other models' sessions
    batch_independent = True

    @abstractmethod
    def second_models(self, history: History) -> Sequence[tuple[Model, Prompt | None]]:
        """Return the other models, each with one prompt per prompt, one for all, or None for the call's."""

    @abstractmethod
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        """Return the new scores, given the logits of the other models, in their order."""

    @final
    @override
    def init(self, history: History) -> tuple[SecondModelState, ...]:
        check_per_prompt(self, history)
        models = self.second_models(history)
        return tuple(
            SecondModelState.start(type(self).__name__, one, history, given) for one, given in models
        )

    @final
    @override
    def apply(
        self, history: History, scores: Scores, memory: tuple[SecondModelState, ...]
    ) -> tuple[Scores, tuple[SecondModelState, ...]]:
        outputs = [state.advance(type(self).__name__, history, scores) for state in memory]
        logits, states = [logits for logits, _ in outputs], tuple(state for _, state in outputs)
        return self.combine(history, scores, *logits), states


def check_model(who: str, name: str, model: object) -> None:
    """Raise a `TypeError` unless a parameter is a model."""
    if isinstance(model, type) or not isinstance(model, Model):
        raise TypeError(
            f"{who}: {name} must be a decodekit.Model, got {type(model).__name__}. "
            "Wrap a transformers model: use dk.HFModel(model, tokenizer)."
        )


def read_second_prompts(model: Model, prompts: Any) -> Prompt:  # noqa: ANN401 - see Prompt.of
    """Return the prompts that the second model reads in place of the call's prompts."""
    return Prompt.of(prompts, _vocabulary(model))


def read_prompts_or_last(who: str, model: Model, prompts: Any) -> Prompt | None:  # noqa: ANN401
    """Return the second model's prompts, or None for the last tokens; an encoder-decoder needs prompts."""
    if prompts is not None:
        return read_second_prompts(model, prompts)
    if _vocabulary(model).decoder_start_id is not None:
        raise ValueError(
            f"{who}: an encoder-decoder needs prompts for its encoder, got none. "
            "Pass prompts=, one for each prompt or one for all."
        )
    return None


def prompts_or_last(prompts: Prompt | None, history: History) -> Prompt:
    """Return the given prompts, or each prompt's last token: the shortest prompt of a decoder-only model."""
    if prompts is not None:
        return prompts
    last = history.last()[:: history.rows_per_prompt, None]
    return Prompt(last, torch.ones_like(last, dtype=torch.bool))


def _run_prompt(who: str, model: Model, history: History, length: int) -> Prompt:
    """Return the call's own prompts; the source only if the model can read it."""
    first_rows = slice(None, None, history.rows_per_prompt)  # equal rows at the first step
    vocabulary, source = _vocabulary(model), history.source
    if source is not None:
        source = source.take(history.owners.prompts[first_rows])
    is_described = isinstance(model, ModelWithVocabulary)
    if is_described and vocabulary.decoder_start_id is None:
        source = None  # a language model reads the decoder's tokens only
    elif is_described and source is None:
        raise DecodekitError(
            f"{who}: an encoder-decoder as second model reads the source of the run, but the run has "
            "none. Use a decoder-only model."
        )
    prompt = Prompt(history.tokens[first_rows, :length], history.valid[first_rows, :length], source)
    return Prompt.of(prompt, vocabulary) if is_described else prompt


def _vocabulary(model: Model) -> Vocabulary:
    return model.vocabulary if isinstance(model, ModelWithVocabulary) else Vocabulary()
