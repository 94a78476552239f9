"""Text as soon as it is settled, under any decoder."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from decodekit.core.limits import Limits
from decodekit.core.request import Options, Stop
from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.base import Decoder, State
from decodekit.engine.inputs import IDENTITY
from decodekit.engine.loop import StepSnapshot, run
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of a part of a character


class TextChunk(NamedTuple):
    """A piece of text that no further step can change.

    Attributes:
        prompt: Which prompt it continues.
        hypothesis: Which of the prompt's hypotheses.
        text: What comes after the pieces before it.
    """

    prompt: int
    hypothesis: int
    text: str


class Stream(Iterator[TextChunk]):
    """A run that hands out its text piece by piece; `result` is what `decode` would have returned.

    The pieces of a hypothesis, joined, are its text in `result.texts`.

    Raises:
        DecodekitError: From `result`, if the run ended with an error or was closed. After the last piece,
            if the tokenizer took back what it had said, as one that cleans spaces up does.

    Example:
        >>> stream = dk.stream(dk.load(), "Once upon a time there was", dk.Greedy(), max_new_tokens=3)
        >>> [piece.text for piece in stream]
        [' a', ' man', ' who']
        >>> stream.result.texts
        [[' a man who']]
    """

    def __init__(self, steps: Generator[StepSnapshot[Any], None, Decoded], decoder: Decoder[Any]) -> None:
        self._pieces = self._read(steps, decoder)
        self._result: Decoded | None = None
        self._said: dict[tuple[int, int], str] = {}
        self._took_back = False

    @property
    def result(self) -> Decoded:
        """What `decode` would have returned; runs to the end if need be, without handing out the rest."""
        for _ in self._pieces:
            pass
        if self._result is None:
            raise DecodekitError(
                "Stream: there must be a result, and the run ended with an error or was closed."
            )
        return self._result

    def __next__(self) -> TextChunk:
        piece = next(self._pieces, None)
        if piece is not None:
            return piece
        if self._took_back:
            self._took_back = False
            raise DecodekitError(
                "stream: a text must only grow, and the tokenizer took back some of what it had said. "
                "The whole texts are in Stream.result."
            )
        raise StopIteration

    def close(self) -> None:
        """Ends the run here."""
        self._pieces.close()

    def _read(
        self, steps: Generator[StepSnapshot[Any], None, Decoded], decoder: Decoder[Any]
    ) -> Generator[TextChunk, None, None]:
        prompts: list[list[int]] | None = None
        while True:
            try:
                progress = next(steps)
            except StopIteration as finished:
                self._result = finished.value
                break
            if progress.vocabulary.tokenizer is None:
                raise DecodekitError(
                    "stream: text needs a tokenizer, and the model has none. Use decode, or "
                    "HFModel(model, tokenizer)."
                )
            prompts = progress.prompt.ids() if prompts is None else prompts
            for prompt, hypotheses in enumerate(decoder.stable_prefix(progress.state)):
                for number, tokens in enumerate(hypotheses):
                    text = stable_text(progress.vocabulary, progress.limits, prompts[prompt], tokens)
                    yield from self._new(prompt, number, text)
        for prompt, texts in enumerate(self._result.texts or []):
            for number, text in enumerate(texts):
                yield from self._new(prompt, number, text)

    def _new(self, prompt: int, hypothesis: int, text: str) -> Iterator[TextChunk]:
        """What of a text was not handed out yet."""
        said = self._said.get((prompt, hypothesis), "")
        if not text.startswith(said):
            self._took_back = self._took_back or self._result is not None
        elif len(text) > len(said):
            self._said[prompt, hypothesis] = text
            yield TextChunk(prompt, hypothesis, text[len(said) :])


def stable_text(vocabulary: Vocabulary, limits: Limits, prompt: list[int], tokens: list[int]) -> str:
    """How settled tokens read, without what the next token or a stopping criterion may still change."""
    if limits.criteria:  # the newest token may have finished the text, and part of it be cut away
        tokens = tokens[:-1]
    text = vocabulary.text(prompt, tokens) or ""
    while text.endswith(_UNFINISHED):
        text = text[:-1]
    held_back = max((criterion.held_back(text) for criterion in limits.criteria), default=0)
    return text[: len(text) - held_back]


def stream(  # noqa: PLR0913 - decode's arguments
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    *,
    max_new_tokens: int,
    end_ids: int | Sequence[int] | None = None,
    pad_id: int | None = None,
    stop: Stop = (),
    trace: int | None = None,
) -> Stream:
    """Continues every prompt as `decode` does, and hands out the text as soon as it is settled.

    Greedy search and sampling settle a token at every step. Beam search settles what all its live and
    finished hypotheses of a prompt begin with: whatever comes, the result begins so too.

    Args:
        model: As in `decode`, with a tokenizer.
        prompts: As in `decode`.
        decoder: As in `decode`.
        processor: As in `decode`.
        max_new_tokens: As in `decode`.
        end_ids: As in `decode`.
        pad_id: As in `decode`.
        stop: As in `decode`; what may be the beginning of a stop string is held back.
        trace: As in `decode`.

    Returns:
        An iterator of `TextChunk`, whose `result` is what `decode` returns.

    Raises:
        DecodekitError: As `decode`, or if the model has no tokenizer; at the first piece.

    Example:
        >>> stream = dk.stream(dk.load(), "Once upon a time there was", dk.BeamSearch(4), max_new_tokens=8)
        >>> "".join(piece.text for piece in stream) == stream.result.texts[0][0]
        True

    Hugging Face:
        `TextIteratorStreamer`, for one prompt and one sequence, not under beam search.
    """
    options = Options(max_new_tokens=max_new_tokens, end_ids=end_ids, pad_id=pad_id, stop=stop, trace=trace)
    return Stream(run(model, prompts, decoder, processor, options), decoder)
