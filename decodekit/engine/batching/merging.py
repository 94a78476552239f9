"""Results of parts of a batch: merged into the result of the whole, or taken from it."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from decodekit.core.result import Decoded
from decodekit.core.validation import shown
from decodekit.errors import DecodekitError


def merge_results(parts: Sequence[tuple[Sequence[int], Decoded[Any]]]) -> Decoded[Any]:
    """The result of all prompts, in their order.

    Args:
        parts: Indices of prompts with their result, without its context. Every index occurs once.
    """
    if len(parts) == 1:
        return parts[0][1]
    numbers = [number for several, _ in parts for number in several]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    results = [result for _, result in parts]
    first, device = results[0], results[0].tokens.device
    new = max(result.tokens.shape[-1] for result in results)
    index = torch.tensor(order, device=device)

    def together(read: Callable[[Decoded[Any]], Tensor], fill: float | None = None) -> Tensor:
        tensors = [read(result) for result in results]
        if fill is not None:
            tensors = [pad(tensor, (0, new - tensor.shape[-1]), value=fill) for tensor in tensors]
        return torch.cat(tensors).index_select(0, index)

    reasons = [row for result in results for row in result.finish_reason]
    return Decoded(
        tokens=together(lambda result: result.tokens, first.pad_id),
        lengths=together(lambda result: result.lengths),
        finish_reason=[reasons[place] for place in order],
        valid=together(lambda result: result.valid),
        token_log_probs=together(lambda result: result.token_log_probs, 0.0),
        score=together(lambda result: result.score),
        parents=together(lambda result: result.parents, -1),
        pad_id=first.pad_id,
        finish_code=None
        if first.finish_code is None
        else together(lambda result: _known(result.finish_code)),
        report=_join_reports([result.report for result in results], [len(s) for s, _ in parts], order),
    )


def with_run_parents(result: Decoded[Any], prompts: Sequence[int], rows_per_prompt: int) -> Decoded[Any]:
    """The result with its parents counted through the rows of the whole call.

    Args:
        result: The result of some prompts.
        prompts: Indices of the prompts.
        rows_per_prompt: Beams or samples of each prompt.
    """
    first = torch.tensor(prompts, device=result.parents.device)[:, None, None] * rows_per_prompt
    parents = (first + result.parents % rows_per_prompt).where(result.parents >= 0, -1)
    return replace(result, parents=parents)


def result_of_prompt(result: Decoded[Any], place: int) -> Decoded[Any]:
    """The result of the prompt at a place, without its context, as wide as its longest hypothesis."""
    batch, one = len(result.tokens), slice(place, place + 1)
    new = max(int(result.lengths[one].max()), 1)
    report = result.report
    if is_dataclass(report) and not isinstance(report, type):
        values = {field.name: getattr(report, field.name) for field in fields(report) if field.init}
        report = replace(
            report,
            **{
                name: value[one] if isinstance(value, Tensor | list) and len(value) == batch else value
                for name, value in values.items()
                if not isinstance(value, Tensor) or value.ndim
            },
        )
    return replace(
        result,
        tokens=result.tokens[one, :, :new],
        lengths=result.lengths[one],
        finish_reason=result.finish_reason[one],
        valid=result.valid[one],
        token_log_probs=result.token_log_probs[one, :, :new],
        score=result.score[one],
        parents=result.parents[one, :, :new],
        finish_code=None if result.finish_code is None else result.finish_code[one],
        report=report,
    )


def _known(finish_code: Tensor | None) -> Tensor:
    if finish_code is None:
        raise DecodekitError("decode: finish codes must be given for all prompts or for none.")
    return finish_code


def _join_reports(reports: Sequence[Any], batches: Sequence[int], order: Sequence[int]) -> Any:  # noqa: ANN401
    first = reports[0]
    if first is None:
        return None
    if not is_dataclass(first) or isinstance(first, type):
        raise DecodekitError(
            "decode: the report of a decoder with batch_independent = True must be a dataclass, got "
            f"{shown(first)}. Set it to False in the decoder."
        )
    names = [field.name for field in fields(first) if field.init]
    columns = {name: [getattr(report, name) for report in reports] for name in names}
    return replace(first, **{name: _join_values(column, batches, order) for name, column in columns.items()})


def _join_values(values: Sequence[Any], batches: Sequence[int], order: Sequence[int]) -> Any:  # noqa: ANN401
    """Tensors and lists with an entry per prompt are joined; any other value must be equal in all."""
    first, sizes = values[0], zip(values, batches, strict=True)
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat(list(values)).index_select(0, torch.tensor(order, device=first.device))
    if isinstance(first, list) and all(len(value) == batch for value, batch in sizes):
        every = [entry for value in values for entry in value]
        return [every[place] for place in order]
    if all(value is first or value == first for value in values):
        return first
    raise DecodekitError(
        "decode: the report of a decoder with batch_independent = True must hold tensors or lists with an "
        f"entry per prompt, got {shown(first)}. Set it to False in the decoder."
    )
