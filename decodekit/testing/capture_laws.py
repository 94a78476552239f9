"""The laws of steps that can be captured as graphs, checked without a GPU."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from decodekit.core.history import History, RowOwners
from decodekit.core.limits import Limits
from decodekit.core.pytrees import parts_of
from decodekit.core.request import Stop
from decodekit.decoders.base import Decoder
from decodekit.decoders.greedy import Greedy
from decodekit.engine.decode import as_processor, decode, read_criteria
from decodekit.engine.step import decode_step
from decodekit.errors import DecodekitError
from decodekit.models.protocols import ModelOutputs, ModelOutputsSpec
from decodekit.processors.base import LogitsProcessor
from decodekit.testing.checking import check, name_of
from decodekit.testing.toy_models import HashModel


def check_captures(
    decoder: Decoder[Any] | None = None,
    processor: LogitsProcessor | Sequence[LogitsProcessor] = (),
    *,
    stop: Stop = (),
    vocab: int = 61,
    batch: int = 3,
) -> None:
    """Check that a step can be captured: it reads no device, and no shape depends on data.

    Takes two steps on tensors that have shapes and no contents (`device="meta"`), where every read raises,
    and compares the shapes of state and memory before and after. Then decodes with a toy model, with and
    without `capture=True`: a replayed step must give the same results.

    Args:
        decoder: The decoder; None is greedy search.
        processor: The processors, in order.
        stop: Stopping criteria, as in `decode`.
        vocab: Size of the vocabulary.
        batch: Number of prompts.

    Raises:
        AssertionError: If a step reads the device, a shape or dtype changes, or a replay differs.

    Example:
        >>> check_captures(dk.BeamSearch(4), [dk.NoRepeatNGram(2), dk.TopP(0.9)])
    """
    decoder, chain = Greedy() if decoder is None else decoder, as_processor(processor)
    names = f"{name_of(decoder)} with {name_of(chain)}"
    rows, prompt_length, new = batch * decoder.rows_per_prompt, 7, 20
    limits = Limits(
        end_ids=(0, 1),
        pad_id=0,
        prompt_length=prompt_length,
        max_new_tokens=new,
        vocab=vocab,
        criteria=read_criteria(stop),
    )
    with torch.device("meta"):
        tokens = torch.zeros(rows, prompt_length + new, dtype=torch.long)
        history = History(
            tokens,
            torch.zeros_like(tokens, dtype=torch.bool),
            torch.zeros((), dtype=torch.long),
            RowOwners.of(rows, decoder.rows_per_prompt, torch.device("meta")),
        )
        logits, nonfinite = torch.empty(rows, vocab), torch.zeros(rows, dtype=torch.bool)
        state, memory = decoder.init(history, limits), chain.init(history)
        spec = decoder.outputs_spec
        before: list[tuple[Any, ...]] | None = None if spec else shapes((state, memory))
        for _ in range(2):
            if spec:
                outputs = _empty_outputs(spec, history, vocab, is_first=before is None)
                state = decoder.on_model_outputs(outputs, state)
            try:
                state, _, memory, _, nonfinite = decode_step(decoder, chain, logits, state, memory, nonfinite)
            except (RuntimeError, NotImplementedError) as error:
                criteria = f" and {limits.criteria}" if limits.criteria else ""
                raise AssertionError(
                    f"check_captures: a step of {names}{criteria} reads the device: {error}"
                ) from error
            after = shapes((state, memory))
            law = f"check_captures: shapes must not change in a step of {names}"
            check(before in (None, after), law, changed=changes(before or [], after))
            before = after
    if not spec:
        _check_replays(decoder, chain, stop, vocab, batch, names)


def _check_replays(
    decoder: Decoder[Any], chain: LogitsProcessor, stop: Stop, vocab: int, batch: int, names: str
) -> None:
    """Check that a captured run gives the results of a plain one."""
    prompts = [[(5 * number + place) % vocab for place in range(number + 1)] for number in range(batch)]
    for seed in range(3):
        model = HashModel(vocab, seed, end_ids=(1,))
        generators = [part for part in parts_of(decoder, chain) if isinstance(part, torch.Generator)]
        states = [generator.get_state() for generator in generators]
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            try:
                plain = decode(model, prompts, decoder, chain, max_new_tokens=9, stop=stop)
            except DecodekitError:
                continue  # with these scores every token may be banned
            torch.manual_seed(seed)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            captured = decode(model, prompts, decoder, chain, max_new_tokens=9, stop=stop, capture=True)
        law = f"check_captures: a replayed step of {names} must give the same results"
        for name in ("tokens", "lengths", "token_log_probs", "score", "parents"):
            expected, actual = getattr(plain, name), getattr(captured, name)
            check(torch.equal(expected, actual), law, field=name, plain=expected, captured=actual)


def _empty_outputs(spec: ModelOutputsSpec, history: History, vocab: int, *, is_first: bool) -> ModelOutputs:
    """Outputs of a model, as tensors without contents."""
    rows, length, width = len(history.tokens), 7, 5
    batch = rows // history.rows_per_prompt
    layers = 2 if isinstance(spec.layers, str) else len(spec.layers)
    return ModelOutputs(
        hidden=torch.empty(rows, width) if spec.hidden else None,
        prompt_hidden=torch.empty(batch, length, width) if spec.hidden and is_first else None,
        layer_logits=torch.empty(rows, layers, vocab) if spec.layers else None,
        attention=torch.empty(rows, length) if spec.attention else None,
    )


def shapes(tree: object) -> list[tuple[Any, ...]]:
    """Shape and dtype of every tensor in a state or memory, in order."""
    return [(*tensor.shape, tensor.dtype) for tensor in tensors(tree)]


def changes(before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]) -> list[str]:
    """The shapes and dtypes that differ, as text."""
    return [f"{old} -> {new}" for old, new in zip_longest(before, after) if old != new]


def tensors(tree: object) -> list[Tensor]:
    """Every tensor in a state or memory, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
