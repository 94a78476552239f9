"""A second model that reads along: what guidance, fusion and ensembles of models share.

The session of a model is the one mutable thing in the library. Here it stands in a processor's memory
beside a column that says which of its rows each row continues. When beams are reordered the loop moves
that column, as it moves all memory, and the next step hands it to the session: so the second model's
cache follows its beams.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History, rows_of
from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError
from decodekit.models.protocols import DescribedModel, Model, Session, ShrinkingSession


class CountedSession:
    """A session that knows how many tokens it has read after the prompt."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.read = 0

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        self.read += 1
        return self._session.advance(tokens, source_rows)

    @property
    def shrinks(self) -> bool:
        """Whether prompts can leave."""
        return isinstance(self._session, ShrinkingSession) and self._session.shrinks

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some prompts only."""
        if isinstance(self._session, ShrinkingSession):
            self._session.keep_prompts(prompts)


class SecondModelState(NamedTuple):
    """How far a second model has read, on every row.

    Attributes:
        session: Its run; shared by all memories of this run of the processor.
        read: How many tokens it had read after the prompt when this was remembered.
        rows: The session's row that each row continues; on the device of the history.
        logits: After the prompt, before anything was said; None from then on.
    """

    session: CountedSession
    read: int
    rows: Int64[Tensor, " rows"]
    logits: Float32[Tensor, "rows vocab"] | None

    @property
    def batch_independent(self) -> bool:
        """Whether it can go on with some prompts only: whether the session can."""
        return self.session.shrinks

    def for_prompts(self, prompts: Int64[Tensor, " kept"], batch: int) -> "SecondModelState":
        """How far it has read for some prompts; the session goes on with those from now on."""
        self.session.keep_prompts(prompts)
        beams = len(self.rows) // batch
        kept = rows_of(prompts, beams)
        # Every row goes on from one of its own prompt, which stands elsewhere now.
        first = rows_of(torch.arange(len(prompts), device=prompts.device), beams) // beams * beams
        return self._replace(
            rows=first + self.rows.index_select(0, kept) % beams,
            logits=None if self.logits is None else self.logits.index_select(0, kept),
        )


def check_model(who: str, name: str, model: object) -> None:
    """Raises a TypeError unless a parameter is a model."""
    if isinstance(model, type) or not isinstance(model, Model):
        raise TypeError(
            f"{who}: {name} must be a decodekit.Model, got {type(model).__name__}. "
            "Wrap a transformers model: use dk.HFModel(model, tokenizer)."
        )


def read_second_prompts(who: str, model: Model, prompts: Any) -> Prompt:  # noqa: ANN401 - see Prompt.of
    """What the second model reads instead of the run's prompts, as a batch."""
    check_model(who, "model", model)
    return Prompt.of(prompts, _vocabulary(model))


def check_has_prompts(who: str, model: Model, prompts: Prompt | None) -> None:
    """Raises where an encoder-decoder would have to read the last token of a prompt."""
    if prompts is None and _vocabulary(model).decoder_start_id is not None:
        raise ValueError(
            f"{who}: an encoder-decoder must be told what it reads, got no prompts. "
            "Pass prompts=, one for each prompt or one for all: what its encoder reads instead."
        )


def last_tokens(history: History) -> Prompt:
    """Each prompt's last token: the least that a decoder-only model can begin with."""
    last = history.last()[:: history.rows_per_prompt, None]
    return Prompt(last, torch.ones_like(last, dtype=torch.bool))


def start_second_model(
    who: str, model: Model, history: History, prompt: Prompt | None = None
) -> SecondModelState:
    """Starts the second model on the run's own prompts, or on others.

    Args:
        who: The processor, for the error.
        model: The second model.
        history: The run's, before the first step.
        prompt: What the model reads instead of the run's prompts: one for each, or one for all.
    """
    rows, capacity = history.tokens.shape
    texts, length = rows // history.rows_per_prompt, int(history.position)
    prompt = _own(who, model, history, length) if prompt is None else prompt.to(history.tokens.device)
    if len(prompt.tokens) == 1:
        prompt = prompt.take(torch.zeros(texts, dtype=torch.long))
    elif len(prompt.tokens) == history.batch:
        prompt = prompt.take(_whose(history))
    if len(prompt.tokens) != texts:
        raise DecodekitError(
            f"{who}: there must be one prompt for the second model for each prompt of the run, got "
            f"{len(prompt.tokens)} for {history.batch}. Pass as many, or one for all."
        )
    session, logits = model.start(
        prompt,
        rows_per_prompt=history.rows_per_prompt,
        capacity=prompt.tokens.shape[1] + capacity - length,
    )
    return SecondModelState(CountedSession(session), 0, _rows(history), logits)


def advance_second_model(
    who: str, reading: SecondModelState, history: History, like: Float32[Tensor, "rows vocab"]
) -> tuple[Float32[Tensor, "rows vocab"], SecondModelState]:
    """The second model's logits for the next token, and how far it has read then.

    Args:
        who: The processor, for the error.
        reading: How far the model has read: everything but the newest token.
        history: What was said.
        like: The run's own scores, whose vocabulary and device the logits must have.
    """
    session, logits = reading.session, reading.logits
    if reading.read != session.read:
        raise DecodekitError(
            f"{who}: a second model can only read on, and had read {session.read} tokens when asked to go "
            f"on after {reading.read}. Use each memory once, or begin again with init."
        )
    if logits is None:
        moved = reading.rows if history.rows_per_prompt > 1 else None  # a single row continues itself
        logits = session.advance(history.last(), moved)
    if logits.shape != like.shape:
        raise DecodekitError(
            f"{who}: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
            f"{like.shape[-1]}. Use a model with the same tokenizer."
        )
    return logits.to(like.device), SecondModelState(session, session.read, _rows(history), None)


def _own(who: str, model: Model, history: History, length: int) -> Prompt:
    """The run's own prompts; of the source only what the model can read."""
    own = slice(None, None, history.rows_per_prompt)  # the rows of a prompt are alike before the first step
    vocabulary, source = _vocabulary(model), history.source
    if source is not None:
        source = source.take(_whose(history))
    if isinstance(model, DescribedModel):
        if vocabulary.decoder_start_id is None:
            source = None  # a language model reads what the decoder says, and no source
        elif source is None:
            raise DecodekitError(
                f"{who}: an encoder-decoder as second model must read the source of the run, and there "
                "is none. Use a decoder-only model."
            )
        return Prompt.of(
            Prompt(history.tokens[own, :length], history.valid[own, :length], source), vocabulary
        )
    return Prompt(history.tokens[own, :length], history.valid[own, :length], source)


def _vocabulary(model: Model) -> Vocabulary:
    return model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()


def _rows(history: History) -> Int64[Tensor, " rows"]:
    return torch.arange(len(history.tokens), device=history.tokens.device)


def _whose(history: History) -> Int64[Tensor, " texts"]:
    """The prompts in the run that the texts of a part of it continue."""
    return history.spread(torch.arange(history.batch, device=history.tokens.device))[
        :: history.rows_per_prompt
    ]
