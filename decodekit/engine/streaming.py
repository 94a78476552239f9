"""Streaming: text as soon as no further step can change it."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Generic, NamedTuple

from torch import nn
from typing_extensions import Unpack

from decodekit.core.limits import Limits
from decodekit.core.request import StreamOptions
from decodekit.core.result import Decoded, Report
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.base import Decoder
from decodekit.engine.decode import IDENTITY, StepSnapshot, as_decoder, decode_steps, takes_options
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a tokenizer's text for an incomplete character


class TextChunk(NamedTuple):
    """New text of a hypothesis that no further step can change.

    Attributes:
        prompt: Index of the prompt.
        hypothesis: Index among the hypotheses of the prompt.
        text: The text after the earlier chunks.
    """

    prompt: int
    hypothesis: int
    text: str


class Stream(Iterator[TextChunk], Generic[Report]):
    """A run that yields its text in chunks; `result` is the result of `decode`.

    The joined chunks of a hypothesis are its text in `result.texts`.

    Raises:
        DecodekitError: From `result`, if the run ended with an error or was closed. After the last chunk, if
            the tokenizer removed text that was already yielded, as one that cleans up spaces does.

    Example:
        >>> stream = dk.stream(dk.load(), "Once upon a time there was", dk.Greedy(), max_new_tokens=3)
        >>> [chunk.text for chunk in stream]
        [' a', ' man', ' who']
        >>> stream.result.texts
        [[' a man who']]
    """

    def __init__(
        self, steps: Generator[StepSnapshot, None, Decoded[Report]], decoder: Decoder[Any, Report]
    ) -> None:
        self._chunks = self._read(steps, decoder)
        self._result: Decoded[Report] | None = None
        self._emitted: dict[tuple[int, int], str] = {}
        self._took_back = False

    @property
    def result(self) -> Decoded[Report]:
        """The result of `decode`. Finishes the run if necessary, and drops the remaining chunks."""
        for _ in self._chunks:
            pass
        if self._result is None:
            raise DecodekitError(
                "Stream: there is no result, because the run was closed or ended with an error."
            )
        return self._result

    def __next__(self) -> TextChunk:
        chunk = next(self._chunks, None)
        if chunk is not None:
            return chunk
        if self._took_back:
            self._took_back = False
            raise DecodekitError(
                "stream: the tokenizer removed text that was already yielded. The whole texts are "
                "in Stream.result."
            )
        raise StopIteration

    def close(self) -> None:
        """End the run here."""
        self._chunks.close()

    def _read(
        self, steps: Generator[StepSnapshot, None, Decoded[Report]], decoder: Decoder[Any, Report]
    ) -> Generator[TextChunk, None, None]:
        prompts: list[list[int]] | None = None
        while True:
            try:
                snapshot = next(steps)
            except StopIteration as finished:
                self._result = finished.value
                break
            if snapshot.vocabulary.tokenizer is None:
                raise DecodekitError(
                    "stream: text needs a tokenizer, and the model has none. Use decode, or "
                    "HFModel(model, tokenizer)."
                )
            prompts = snapshot.prompt.ids() if prompts is None else prompts
            for prompt, hypotheses in enumerate(decoder.stable_prefix(snapshot.state)):
                for number, tokens in enumerate(hypotheses):
                    text = stable_text(snapshot.vocabulary, snapshot.limits, prompts[prompt], tokens)
                    yield from self._new(prompt, number, text)
        for prompt, texts in enumerate(self._result.texts or []):
            for number, text in enumerate(texts):
                yield from self._new(prompt, number, text)

    def _new(self, prompt: int, hypothesis: int, text: str) -> Iterator[TextChunk]:
        """The part of a text that was not yielded yet."""
        emitted = self._emitted.get((prompt, hypothesis), "")
        if not text.startswith(emitted):
            self._took_back = self._took_back or self._result is not None
        elif len(text) > len(emitted):
            self._emitted[prompt, hypothesis] = text
            yield TextChunk(prompt, hypothesis, text[len(emitted) :])


def stable_text(vocabulary: Vocabulary, limits: Limits, prompt: list[int], tokens: list[int]) -> str:
    """The text of stable tokens, without the end that the next token or a criterion may still change."""
    if limits.criteria:  # if the newest token finishes the text, a part of the text may be cut
        tokens = tokens[:-1]
    text = vocabulary.text(prompt, tokens) or ""
    while text.endswith(_UNFINISHED):
        text = text[:-1]
    held_back = max((criterion.held_back(text) for criterion in limits.criteria), default=0)
    return text[: len(text) - held_back]


@takes_options(StreamOptions)
def stream(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - anything that Prompt.of reads
    decoder: Decoder[Any, Report],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    **options: Unpack[StreamOptions],
) -> Stream[Report]:
    """Continue every prompt as `decode` does, and yield the text as soon as it is stable.

    Greedy search and sampling fix a token at every step. Beam search fixes the common prefix of all live and
    finished hypotheses of a prompt. The beginning of a possible stop string is held back.

    Args:
        model: The model, with a tokenizer.
        prompts: The prompts, in any form that `decode` takes.
        decoder: The algorithm; it must be a `Decoder`.
        processor: Processors of the scores: one, or several in order.
        **options: See `StreamOptions`.

    Returns:
        An iterator of `TextChunk`, whose `result` is the result of `decode`.

    Raises:
        DecodekitError: At the first chunk: the errors of `decode`, or if the model has no tokenizer.

    Example:
        >>> stream = dk.stream(dk.load(), "Once upon a time there was", dk.BeamSearch(4), max_new_tokens=8)
        >>> "".join(chunk.text for chunk in stream) == stream.result.texts[0][0]
        True

    Hugging Face:
        `TextIteratorStreamer`, for one prompt and one sequence, not under beam search.
    """
    return Stream(decode_steps(model, prompts, decoder, processor, **options), as_decoder(decoder))
