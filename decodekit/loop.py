"""The one loop: every decoder over every model, with every processor."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from decodekit import trace as tracing
from decodekit.decoders.base import Decoder, Limits, Selection, State
from decodekit.errors import DecodekitError, DecodingError
from decodekit.model import DescribedModel, Model
from decodekit.models.hf import HFModel
from decodekit.output import Decoded
from decodekit.processors.base import LogitsProcessor, Memory
from decodekit.processors.chain import Chain
from decodekit.prompt import Prompt
from decodekit.vocabulary import Vocabulary

IDENTITY = Chain()


@torch.no_grad()
def decode(  # noqa: PLR0913 - the library's front door; its options are keyword-only
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    *,
    max_new_tokens: int,
    end_ids: int | Sequence[int] | None = None,
    pad_id: int | None = None,
    trace: int | None = None,
    check_every: int = 1,
    on_step: Callable[[int], None] | None = None,
) -> Decoded:
    """Continues every prompt as the decoder decides.

    Args:
        model: A `Model`, or a decoder-only transformers model, which is wrapped in `HFModel`.
        prompts: A string or strings, ids or lists of ids of any lengths, a tensor with its mask: see
            `Prompt.of`. A batch gives what each prompt alone gives.
        decoder: The algorithm.
        processor: What changes the scores before it; one, or a sequence to be applied in order.
        max_new_tokens: New tokens at most, at least 1.
        end_ids: The ids that end a text; None: the model's own. `()` for none.
        pad_id: What fills `Decoded.tokens` past the end; None: the model's own, or an end id.
        trace: How many of the likeliest tokens to keep of every row and step, in `Decoded.trace`.
        check_every: Asks the device every so many steps whether all is done. More than 1 waits less
            and may compute steps too many, which do not change the result.
        on_step: Called with the number of steps taken, after every step.

    Returns:
        The continuations and what they are worth.

    Raises:
        DecodekitError: If the prompts, the limits or the model do not allow a right answer; the
            message says which. `PromptError`, `ModelError` and `DecodingError` are its kinds.

    Example:
        >>> prompts = ["Once upon a time there was", "she was as beautiful as the"]
        >>> dk.decode(dk.load(), prompts, dk.Greedy(), max_new_tokens=1).texts
        [[' a'], [' sun']]

    Hugging Face:
        `model.generate(...)`; the equivalence page says what equals what.
    """
    _check_options(max_new_tokens=max_new_tokens, check_every=check_every, trace=trace)
    if not isinstance(decoder, Decoder):
        raise TypeError(
            f"decode: decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5), got {decoder!r:.80}."
        )
    model = as_model(model)
    chain = as_processor(processor)
    vocabulary = model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()
    prompt = Prompt.of(prompts, vocabulary)
    length, rows = prompt.tokens.shape[1], decoder.rows_per_prompt
    session, logits = model.start(prompt, rows_per_prompt=rows, capacity=length + max_new_tokens)
    limits = _limits(vocabulary, end_ids, pad_id, length, max_new_tokens, logits.shape[-1])
    history = prompt.to(logits.device).history(length + max_new_tokens, rows)
    state, memory = decoder.init(history, limits), chain.init(history)
    broken = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    steps: list[tracing.Step] = []

    for number in range(1, max_new_tokens + 1):
        state, selection, memory, scores, broken = step(decoder, chain, logits, state, memory, broken)
        if trace is not None:
            steps.append(tracing.record(logits, scores, *selection, trace))
        if on_step is not None:
            on_step(number)
        if number == max_new_tokens or (number % check_every == 0 and bool(state.done | broken.any())):
            break
        logits = session.advance(selection.tokens, selection.source_rows)

    _raise_if_broken(broken, rows)
    traced = None if trace is None else tracing.Trace(prompt, rows, vocabulary, limits.end_ids, steps)
    return decoder.finalize(state).with_context(prompt, vocabulary, traced)


def step(
    decoder: Decoder[State],
    chain: LogitsProcessor,
    logits: Float32[Tensor, "rows vocab"],
    state: State,
    memory: Memory,
    broken: Bool[Tensor, " rows"],
) -> tuple[State, Selection, Memory, Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"]]:
    """One step, from logits to the next tokens; nothing in it reads the device.

    Returns:
        The state, the selection, every row's memory in its new place, the processed scores, and the
        rows on which some score so far was not a number (or infinite).
    """
    prepared = decoder.prepare(logits)
    state = decoder.observe(prepared, state)
    scores, memory = chain.apply(state.history, prepared, memory)
    if not isinstance(scores, Tensor) or scores.shape != prepared.shape:
        raise DecodekitError(
            f"decode: processors must return scores of the shape they were given, {tuple(prepared.shape)}, "
            f"and {chain!r:.200} returned {tuple(scores.shape) if isinstance(scores, Tensor) else scores!r}."
        )
    broken = broken | ~(scores.amax(-1) < torch.inf)
    state, selection = decoder.step(scores, state)
    if selection.source_rows is not None:
        memory = reorder_memory(memory, selection.source_rows)
    return state, selection, memory, scores, broken


def reorder_memory(memory: Memory, source_rows: Int64[Tensor, " rows"]) -> Memory:
    """The memory in which every tensor with a rows axis has followed its row."""

    def follow(leaf: object) -> object:
        return leaf.index_select(0, source_rows) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return tree_map(follow, memory)


def as_model(model: Model | nn.Module) -> Model:
    """The model itself, or a transformers model wrapped in `HFModel`."""
    if isinstance(model, Model) and not isinstance(model, type):
        return model
    if isinstance(model, nn.Module):
        return HFModel(model)
    raise DecodekitError(
        f"decode: model must be a Model or a transformers model, got {model!r:.80}. "
        "Use dk.load(name) or dk.HFModel(model, tokenizer)."
    )


def as_processor(processor: LogitsProcessor | Sequence[LogitsProcessor]) -> LogitsProcessor:
    """The processor itself, or a sequence of them as a chain."""
    if isinstance(processor, LogitsProcessor):
        return processor
    if not isinstance(processor, Sequence):
        raise TypeError(
            f"decode: processor must be a LogitsProcessor or a sequence of them, got {processor!r:.80}."
        )
    return Chain(*processor)


def _check_options(*, max_new_tokens: int, check_every: int, trace: int | None) -> None:
    for name, value in (
        ("max_new_tokens", max_new_tokens),
        ("check_every", check_every),
        ("trace", 1 if trace is None else trace),
    ):
        if type(value) is not int or value < 1:
            raise DecodekitError(f"decode: {name} must be an integer of at least 1, got {value!r}.")


def _limits(
    vocabulary: Vocabulary,
    end_ids: int | Sequence[int] | None,
    pad_id: int | None,
    length: int,
    max_new_tokens: int,
    vocab: int,
) -> Limits:
    """The run's limits; what the caller gives outranks the model's own."""
    # A configuration may carry another model's default ids, which this one cannot say.
    own = tuple(end for end in vocabulary.end_ids if end < vocab)
    ends = own if end_ids is None else _ids(end_ids)
    pad = vocabulary.pad_id if pad_id is None else next(iter(_ids(pad_id)), None)
    if pad is None or (pad_id is None and not 0 <= pad < vocab):
        pad = ends[0] if ends else 0
    for name, token in (("pad_id", pad), *(("end_ids", end) for end in ends)):
        if not 0 <= token < vocab:
            raise DecodekitError(
                f"decode: {name} must be below the {vocab} tokens the model can say, got {token!r}."
            )
    return Limits(
        end_ids=tuple(dict.fromkeys(ends)),
        pad_id=pad,
        prompt_length=length,
        max_new_tokens=max_new_tokens,
        vocab=vocab,
    )


def _ids(given: Any) -> tuple[int, ...]:  # noqa: ANN401 - an integer or several, of whatever kind
    """Ids as plain integers: from an integer, a sequence, a tensor or an array."""
    if isinstance(given, Tensor):
        given = given.tolist()
    several = (given,) if isinstance(given, Integral) else given
    if isinstance(several, str | Mapping) or not isinstance(several, Iterable):
        raise DecodekitError(f"decode: end_ids and pad_id must be integers, got {given!r:.80}.")
    ids = []
    for token in several:
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise DecodekitError(f"decode: end_ids and pad_id must be integers, got {token!r:.80}.")
        ids.append(int(token))
    return tuple(ids)


def _raise_if_broken(broken: Bool[Tensor, " rows"], rows_per_prompt: int) -> None:
    if broken.any():
        raise DecodingError(
            f"decode: scores must be numbers below infinity, and for prompt "
            f"{int(broken.int().argmax()) // rows_per_prompt} some were NaN or infinite. A processor "
            "made them, or the model: half precision overflows, and eager attention cannot mask padding in "
            "float64; try float32."
        )
