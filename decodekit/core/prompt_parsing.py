"""Parsing of prompts: strings, lists of ids, tensors and mappings, as ids."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import PromptError

# Ids of any lengths, or a tensor of ids and its mask; None: every id is a token.
Read = list[list[int]] | tuple[Shaped[Tensor, "batch length"], Shaped[Tensor, "batch length"] | None]


def read_prompts(prompts: Any, vocabulary: Vocabulary) -> Read:  # noqa: ANN401 - see Prompt.of
    """The prompts as ids, not padded yet; tensors stay as they were given."""
    if isinstance(prompts, Mapping):
        prompts = _from_mapping(prompts)
    if isinstance(prompts, np.ndarray):
        prompts = torch.as_tensor(prompts) if prompts.dtype.kind in "iuf" else prompts.tolist()
    mask = None
    if isinstance(prompts, tuple) and len(prompts) == 2 and isinstance(prompts[0], Tensor):  # noqa: PLR2004
        prompts, mask = prompts
    if isinstance(prompts, Tensor):
        return _read_tensor(_matrix(prompts), mask, vocabulary)
    ids = [_read_ids(row, vocabulary) for row in _rows(prompts)]
    if not ids:
        raise PromptError("Prompt: there must be at least one prompt, got none.")
    return ids


def _read_tensor(tokens: Shaped[Tensor, "batch length"], mask: Any, vocabulary: Vocabulary) -> Read:  # noqa: ANN401
    if tokens.shape[1] == 0:
        return [_read_ids([], vocabulary)] * len(tokens)
    if mask is None:
        _refuse_padding(tokens, vocabulary)
        return tokens, None
    try:
        return tokens, _matrix(torch.as_tensor(mask, device=tokens.device))
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"Prompt: a mask must hold zeros and ones, got {mask!r:.80}.") from error


def _refuse_padding(tokens: Shaped[Tensor, "batch length"], vocabulary: Vocabulary) -> None:
    pad = vocabulary.pad_id
    if pad is not None and pad != vocabulary.bos_id and pad not in vocabulary.end_ids:
        padded = (tokens[:, :1] == pad) | (tokens[:, -1:] == pad)
        if padded.any():
            raise PromptError(
                f"Prompt: a tensor without a mask must hold tokens only, and row "
                f"{int(padded.int().argmax())} starts or ends with the pad id {pad}. "
                "Pass (tokens, mask), or lists of ids."
            )


def _from_mapping(prompts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The output of a tokenizer, as a tensor, a pair of tensors, or lists of ids without padding."""
    if "input_ids" not in prompts:
        raise PromptError(f"Prompt: a mapping must have input_ids, got {sorted(prompts)}.")
    ids, mask = prompts["input_ids"], prompts.get("attention_mask")
    if mask is None:
        return ids
    if isinstance(ids, Tensor):
        return ids, mask
    rows, masks = _rows(ids), _rows(mask)
    if [len(row) for row in rows] != [len(row) for row in masks]:
        raise PromptError("Prompt: input_ids and attention_mask must have the same lengths.")
    if len({len(row) for row in rows}) == 1:
        return torch.as_tensor(rows), torch.as_tensor(masks)
    if not all(all(row) for row in masks):
        raise PromptError("Prompt: padded prompts must all have one length. Pad on the left, or not at all.")
    return rows


def _rows(prompts: Any) -> list[Any]:  # noqa: ANN401
    """`prompts` as a list with one item per prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Sequence) and not isinstance(prompts, bytes | bytearray):
        # A flat list of ids is one prompt; the empty list is no prompt at all.
        return [prompts] if prompts and all(map(_is_id, prompts)) else list(prompts)
    raise PromptError(
        f"Prompt: prompts must be a string, ids, a list of either, or a tensor, got {type(prompts).__name__}."
    )


def _read_ids(row: Any, vocabulary: Vocabulary) -> list[int]:  # noqa: ANN401
    """The ids of one prompt, never empty."""
    if isinstance(row, str):
        row = vocabulary.ids(row)
    ids = row.tolist() if isinstance(row, Tensor | np.ndarray) else row
    if isinstance(ids, bytes | bytearray | str) or not isinstance(ids, Sequence):
        raise PromptError(f"Prompt: a prompt must be a string or a list of integers, got {row!r:.80}.")
    for token in ids:
        if not _is_id(token):
            raise PromptError(
                f"Prompt: a prompt must be a string or a list of integers, got {token!r:.80} in one."
            )
        if not -(2**63) <= token < 2**63:
            raise PromptError(f"Prompt: ids must be in the model's vocabulary, and {token} fits no tensor.")
    if len(ids) == 0:
        if vocabulary.bos_id is None:
            raise PromptError(
                "Prompt: an empty prompt starts from the model's BOS, and the model has none. "
                "Give at least one token."
            )
        ids = [vocabulary.bos_id]
    return list(map(int, ids))


def _is_id(item: object) -> bool:
    """True for an integer of any kind, such as that of numpy."""
    return isinstance(item, Integral) and not isinstance(item, bool)


def _matrix(tensor: Tensor) -> Shaped[Tensor, "batch length"]:
    """A row as a batch of one."""
    if tensor.ndim not in {1, 2}:
        raise PromptError(
            f"Prompt: a tensor of ids must be [length] or [batch, length], got {tuple(tensor.shape)}."
        )
    return tensor[None] if tensor.ndim == 1 else tensor
