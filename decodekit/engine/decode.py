"""The front door: from a call to its result."""

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from numbers import Integral
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from typing_extensions import Unpack

from decodekit.core import trace as tracing
from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt, PromptSubset
from decodekit.core.request import BatchTokens, DecodeOptions, DecodeRequest, EachOptions, Stop, StreamOptions
from decodekit.core.result import Decoded, Report
from decodekit.core.stopping_criterion import StoppingCriterion, flatten
from decodekit.core.validation import shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.engine import advice
from decodekit.engine.batching.merging import merge_results, result_of_prompt
from decodekit.engine.batching.scheduler import queue_of
from decodekit.engine.loop import AdmitAll, BatchResult, ContinuousBatch, decode_loop
from decodekit.engine.progress_bar import counted
from decodekit.errors import DecodekitError
from decodekit.models.hf.model import HFModel
from decodekit.models.protocols import Model, ModelWithVocabulary, Session
from decodekit.processors.base import Chain, LogitsProcessor
from decodekit.stopping.stop_strings import StopStrings

IDENTITY = Chain()
DEFAULTS: dict[str, Any] = {"stop": (), "check_every": 1, "capture": False, "progress": False}  # else None
Function = TypeVar("Function", bound=Callable[..., Any])


def takes_options(options: type, **defaults: Any) -> Callable[[Function], Function]:  # noqa: ANN401 - any option
    """Decorator: show the options of a TypedDict in the signature, and refuse any other with advice."""
    annotations: dict[str, Any] = inspect.get_annotations(options)
    required: frozenset[str] = options.__required_keys__  # type: ignore[attr-defined]
    defaults = DEFAULTS | defaults

    def decorate(function: Function) -> Function:
        @wraps(function)
        def checked(*args: Any, **given: Any) -> Any:  # noqa: ANN401 - as the function
            allowed = parameters.keys()
            if not given.keys() <= allowed or not required <= given.keys():
                advice.refuse_options(function.__name__, given, allowed, required)
            return function(*args, **given)

        own = list(inspect.signature(function).parameters.values())[:-1]
        shown = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if name in required else defaults.get(name),
                annotation=annotation,
            )
            for name, annotation in annotations.items()
        ]
        parameters = {parameter.name: parameter for parameter in (*own, *shown)}
        checked.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        return cast("Function", checked)

    return decorate


@takes_options(DecodeOptions)
def decode(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[Any, Report] | CustomLoop[Report],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    **options: Unpack[DecodeOptions],
) -> Decoded[Report]:
    """Continue every prompt as the decoder decides.

    Finished prompts are evicted from the batch, and the others go on without them, where the model, the
    decoder and the processors allow it. The results are the same.

    Args:
        model: A `Model`, or a transformers model, which is wrapped in `HFModel`.
        prompts: A string or strings, ids or lists of ids of any lengths, a tensor with its mask: see
            `Prompt.of`. In a batch, each prompt gets the result it would get on its own.
        decoder: The algorithm.
        processor: The processor of the scores; one, or a sequence to be applied in order.
        **options: See `DecodeOptions`; only `max_new_tokens` is required.

    Returns:
        The continuations, with their log-probabilities and scores.

    Raises:
        DecodekitError: If the prompts, the limits or the model do not allow a correct result; the message
            says which. `PromptError`, `ModelError` and `DecodingError` are its subclasses.
        TypeError: If an argument is of another kind, or an option is unknown; the message has the right one.

    Example:
        >>> prompts = ["Once upon a time there was", "she was as beautiful as the"]
        >>> dk.decode(dk.load(), prompts, dk.Greedy(), max_new_tokens=1).texts
        [[' a'], [' sun']]

    Hugging Face:
        `model.generate(...)`; the equivalence page says what equals what.
    """
    model, processor = as_model(model), as_processor(processor)
    batch_tokens, progress = _batching(options)
    request = read_request(model, prompts, options)
    on_step, number = options.get("on_step"), 0
    steps: Generator[Any, None, Decoded[Report]]
    if isinstance(decoder, CustomLoop):
        if batch_tokens is not None or progress or {"trace", "check_every", "capture"} & options.keys():
            advice.refuse_custom_loop(decoder)
        steps = _run_custom_loop(model, decoder, processor, request)
    elif batch_tokens is not None or progress:
        parts = _run_queue(model, as_decoder(decoder), processor, request, batch_tokens, progress=progress)
        steps = _merged(parts, request)
    else:
        steps = _run(model, as_decoder(decoder), processor, request)
    while True:
        try:
            next(steps)  # a generator that pauses after every step, and returns the result
        except StopIteration as finished:
            result: Decoded[Report] = finished.value
            return result
        number += 1
        if on_step is not None:
            on_step(number)


@takes_options(EachOptions, batch_tokens="auto")
def decode_each(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[Any, Report],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    **options: Unpack[EachOptions],
) -> Iterator[tuple[int, Decoded[Report]]]:
    """Continue every prompt as `decode` does, and hand out each result as soon as it is finished.

    Args:
        model, prompts, processor: As in `decode`; any number of prompts.
        decoder: The algorithm, one that goes step by step.
        **options: See `EachOptions`; `batch_tokens` is `"auto"` by default.

    Yields:
        The index of a prompt and its result, each once, in no particular order: the result of `decode` for it
        alone, with `parents` counted through the rows of all prompts.

    Raises:
        DecodekitError: As `decode`, at the first result.

    Example:
        >>> prompts = ["Once upon a time there was", "she was as beautiful as the"]
        >>> results = dk.decode_each(dk.load(), prompts, dk.Greedy(), max_new_tokens=1)
        >>> sorted((number, result.texts[0][0]) for number, result in results)
        [(0, ' a'), (1, ' sun')]

    Hugging Face:
        `pipeline("text-generation")` over a dataset, in batches of a fixed number of prompts.
    """
    model, processor, decoder = as_model(model), as_processor(processor), as_decoder(decoder)
    batch_tokens, progress = _batching({"batch_tokens": "auto", **options})
    request = read_request(model, prompts, options)
    parts = _run_queue(model, decoder, processor, request, batch_tokens, progress=progress)
    return _results_of_prompts(parts, request)


class StepSnapshot(NamedTuple):
    """A run after a step, for observers.

    Attributes:
        number: Steps taken.
        state: State of the decoder, after the step.
        logits: Logits of the model, before the step.
        scores: Scores after the processors.
        selection: The decision of the step.
        limits: Limits of hypotheses.
        prompt: The prompts.
        vocabulary: The meaning of the model's ids.
        session: The session of the model.
    """

    number: int
    state: Any
    logits: Float32[Tensor, "rows vocab"]
    scores: Float32[Tensor, "rows vocab"]
    selection: Selection
    limits: Limits
    prompt: Prompt
    vocabulary: Vocabulary
    session: Session | None


def decode_steps(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[Any, Report],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    **options: Unpack[StreamOptions],
) -> Generator[StepSnapshot, None, Decoded[Report]]:
    """Continue every prompt as `decode` does, and yield a snapshot after every step."""
    model, processor = as_model(model), as_processor(processor)
    request = read_request(model, prompts, options, watched=True)
    return _run(model, as_decoder(decoder), processor, request)


def _run(
    model: Model, decoder: Decoder[Any, Report], processor: LogitsProcessor, request: DecodeRequest
) -> Generator[StepSnapshot, None, Decoded[Report]]:
    """All prompts in one batch: a snapshot after every step, and the result."""
    batch = ContinuousBatch(model, decoder, processor, request)
    steps: list[tracing.RecordedStep] = []
    parts: list[BatchResult] = []
    limits = None
    for runs in decode_loop(batch, AdmitAll(len(request.prompt.tokens))):
        for run in runs:
            limits = run.limits
            if request.trace is not None:
                steps.append(tracing.record(run.logits, run.scores, *run.selection, request.trace))
            context = (limits, request.prompt, request.vocabulary, run.session)
            yield StepSnapshot(run.number, run.state, run.logits, run.scores, run.selection, *context)
        parts += batch.take_finished()
    result, trace = parts[0].result if len(parts) == 1 else merge_results(parts), None
    if request.trace is not None and limits is not None:
        rows = decoder.rows_per_prompt
        trace = tracing.Trace(request.prompt, rows, request.vocabulary, limits.end_ids, steps, result.lengths)
    return result.with_context(request.prompt, request.vocabulary, trace, request.criteria)


def _run_queue(
    model: Model,
    decoder: Decoder[Any, Any],
    processor: LogitsProcessor,
    request: DecodeRequest,
    batch_tokens: BatchTokens,
    *,
    progress: bool,
) -> Generator[list[BatchResult], None, None]:
    """A long list of prompts: the results that a step has finished, after every step."""
    queue = queue_of(model, decoder, processor, request, batch_tokens)
    batch = ContinuousBatch(model, decoder, processor, request)
    with counted(len(request.prompt.tokens), shown=progress) as count:
        for _ in decode_loop(batch, queue):
            parts = batch.take_finished()
            count(sum(len(part.prompts) for part in parts))
            yield parts


def _merged(
    parts: Iterable[list[BatchResult]], request: DecodeRequest
) -> Generator[None, None, Decoded[Any]]:
    """Pause after every step, and return the result of all prompts."""
    finished: list[BatchResult] = []
    for several in parts:
        finished += several
        yield
    result = merge_results(finished)
    return result.with_context(request.prompt, request.vocabulary, None, request.criteria)


def _results_of_prompts(
    parts: Iterable[list[BatchResult]], request: DecodeRequest
) -> Iterator[tuple[int, Decoded[Any]]]:
    """The index and result of every prompt."""
    for several in parts:
        for prompts, result in several:
            for place, number in enumerate(prompts):
                prompt = PromptSubset([number], request.prompt).prompt()
                one = result_of_prompt(result, place)
                yield number, one.with_context(prompt, request.vocabulary, None, request.criteria)


@torch.no_grad()
def _run_custom_loop(
    model: Model, algorithm: CustomLoop[Report], processor: LogitsProcessor, request: DecodeRequest
) -> Generator[None, None, Decoded[Report]]:
    result = yield from algorithm.run(model, processor, request)
    return result.with_context(request.prompt, request.vocabulary, None, request.criteria)


def as_model(model: Model | nn.Module) -> Model:
    """The model itself, or a transformers model wrapped in `HFModel`."""
    if isinstance(model, Model) and not isinstance(model, type):
        return model
    if isinstance(model, nn.Module):
        return HFModel(model, packed=False, recorded=False)  # for one call they do not pay
    raise advice.wrong_model(model)


def as_processor(processor: LogitsProcessor | Sequence[LogitsProcessor]) -> LogitsProcessor:
    """The processor itself, or a sequence of them as a chain."""
    if isinstance(processor, LogitsProcessor):
        return processor
    if not isinstance(processor, Sequence) or not all(isinstance(one, LogitsProcessor) for one in processor):
        raise advice.wrong_processor(processor)
    return Chain(*processor)


def as_decoder(decoder: Decoder[Any, Report]) -> Decoder[Any, Report]:
    """The decoder itself, if it is one that goes step by step."""
    if not isinstance(decoder, Decoder):
        raise advice.wrong_decoder(decoder)
    return decoder


def vocabulary_of(model: Model) -> Vocabulary:
    """The meaning of the model's ids, as far as it is known."""
    return model.vocabulary if isinstance(model, ModelWithVocabulary) else Vocabulary()


def read_request(
    model: Model,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    options: Mapping[str, Any],
    *,
    watched: bool = False,
) -> DecodeRequest:
    """The prompts and options of a call, read and checked."""
    vocabulary = vocabulary_of(model)
    pad_id = options.get("pad_id")
    request = DecodeRequest(
        prompt=Prompt.of(prompts, vocabulary),
        vocabulary=vocabulary,
        max_new_tokens=options["max_new_tokens"],
        end_ids=None if options.get("end_ids") is None else _ids(options["end_ids"]),
        pad_id=None if pad_id is None else next(iter(_ids(pad_id)), None),
        criteria=read_criteria(options.get("stop", ())),
        trace=options.get("trace"),
        check_every=options.get("check_every", 1),
        capture=options.get("capture", False),
        watched=watched,
    )
    for name in ("max_new_tokens", "check_every", "trace"):
        value = getattr(request, name)
        if (type(value) is not int or value < 1) and (name, value) != ("trace", None):
            raise DecodekitError(f"decode: {name} must be an integer of at least 1, got {shown(value)}.")
    if type(request.capture) is not bool:
        raise DecodekitError(f"decode: capture must be True or False, got {shown(request.capture)}.")
    return request


def read_criteria(stop: Stop) -> tuple[StoppingCriterion, ...]:
    """The criteria one by one, strings as `StopStrings`."""
    several = (stop,) if isinstance(stop, str | StoppingCriterion) else stop
    if not isinstance(several, Sequence):
        raise advice.wrong_criterion(stop)
    criteria: list[StoppingCriterion] = []
    for one in several:
        if not isinstance(one, str | StoppingCriterion):
            raise advice.wrong_criterion(one)
        criteria += flatten(StopStrings(one) if isinstance(one, str) else one)
    return tuple(criteria)


def _ids(given: Any) -> tuple[int, ...]:  # noqa: ANN401 - an integer or several, of whatever kind
    """Ids as plain integers: from an integer, a sequence, a tensor or an array."""
    if isinstance(given, Tensor):
        given = given.tolist()
    several = (given,) if isinstance(given, Integral) else given
    if isinstance(several, str | Mapping) or not isinstance(several, Iterable):
        raise DecodekitError(f"decode: end_ids and pad_id must be integers, got {shown(given)}.")
    ids = []
    for token in several:
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise DecodekitError(f"decode: end_ids and pad_id must be integers, got {shown(token)}.")
        ids.append(int(token))
    return tuple(ids)


def _batching(options: Mapping[str, Any]) -> tuple[BatchTokens, bool]:
    """The budget of a batch, and whether progress is shown."""
    tokens: BatchTokens = options.get("batch_tokens")
    if tokens not in (None, "auto") and (type(tokens) is not int or tokens < 1):
        raise DecodekitError(
            f"decode: batch_tokens must be an integer of at least 1, 'auto' or None, got {shown(tokens)}."
        )
    return tokens, bool(options.get("progress", False))
