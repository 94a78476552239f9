"""Prompts: strings, lists of ids or tensors, as one left-padded batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from decodekit.errors import PromptError
from decodekit.history import History
from decodekit.vocabulary import Vocabulary

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts, padded on the left.

    Padding on the left makes all rows write the same column, so one position serves the batch.

    Attributes:
        tokens: Token ids; where `mask` is False, anything.
        mask: True where there is a token. Every row is some False followed by at least one True. Zeros
            and ones will do.

    Raises:
        PromptError: If the two are not of one shape `[batch, length]`, hold other things than ids and
            zeros and ones, a row is empty, or has a False after a True (right padding, or a hole).

    Example:
        >>> Prompt.from_ids([[7], [5, 6, 7]]).mask
        tensor([[False, False,  True],
                [ True,  True,  True]])
    """

    tokens: Int64[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.mask.shape:  # noqa: PLR2004
            raise PromptError(
                f"Prompt: tokens and mask must both be [batch, length], got "
                f"{tuple(self.tokens.shape)} and {tuple(self.mask.shape)}."
            )
        if 0 in self.tokens.shape:
            raise PromptError(
                f"Prompt: there must be at least one prompt of one token, got shape "
                f"{tuple(self.tokens.shape)}. Start an empty prompt from the model's BOS."
            )
        if self.tokens.dtype not in _INTEGERS:
            raise PromptError(f"Prompt: token ids must be integers, got a tensor of {self.tokens.dtype}.")
        if not ((self.mask == 0) | (self.mask == 1)).all():
            raise PromptError("Prompt: a mask must hold zeros and ones only, and this one holds others.")
        object.__setattr__(self, "tokens", self.tokens.long())  # the way to set a frozen field
        object.__setattr__(self, "mask", self.mask.bool())
        rising = (self.mask[:, 1:] | ~self.mask[:, :-1]).all(-1) & self.mask[:, -1]
        if not rising.all():
            row = int((~rising).int().argmax())
            raise PromptError(
                f"Prompt: padding must be on the left, and row {row} of the mask has a 0 after a 1 "
                "or no 1 at all. Pad on the left (padding_side='left'), or pass lists of ids."
            )

    @classmethod
    def from_ids(cls, ids: Sequence[Sequence[int]], pad_id: int | None = None) -> "Prompt":
        """Prompts of any lengths, padded on the left with `pad_id` (0 if None)."""
        length = max((len(row) for row in ids), default=0)
        tokens = torch.full((len(ids), length), 0 if pad_id is None else pad_id)
        mask = torch.zeros((len(ids), length), dtype=torch.bool)
        for row, row_ids in enumerate(ids):
            if len(row_ids):
                tokens[row, length - len(row_ids) :] = torch.as_tensor(row_ids)
                mask[row, length - len(row_ids) :] = True
        return cls(tokens, mask)

    @classmethod
    def of(cls, prompts: Any, vocabulary: Vocabulary) -> "Prompt":  # noqa: ANN401 - see Args
        """Whatever a person calls prompts, as one batch.

        Args:
            prompts: A string or a sequence of strings; a list of ids or a sequence of such lists, of
                any lengths; a tensor of ids, alone (then every id is a token) or as the pair
                `(tokens, mask)` or the mapping with `input_ids` and `attention_mask` that tokenizers
                return; a `Prompt`.
            vocabulary: The model's. An empty prompt becomes its `bos_id`.

        Raises:
            PromptError: If the prompts are none of these, hold ids outside the vocabulary, are empty
                and there is no BOS, are strings and there is no tokenizer, or are padded on the right.
        """
        prompt = prompts if isinstance(prompts, Prompt) else cls._read(prompts, vocabulary)
        most = vocabulary.size or 2**63 - 1
        outside = prompt.mask & ((prompt.tokens < 0) | (prompt.tokens >= most))
        if outside.any():
            row, column = divmod(int(outside.int().argmax()), outside.shape[1])
            raise PromptError(
                f"Prompt: ids must be in [0, {most}), and prompt {row} has "
                f"{int(prompt.tokens[row, column])}. Is this the model's own tokenizer?"
            )
        return prompt

    @classmethod
    def _read(cls, prompts: Any, vocabulary: Vocabulary) -> "Prompt":  # noqa: ANN401
        if isinstance(prompts, Mapping):
            prompts = _from_mapping(prompts)
        if isinstance(prompts, np.ndarray):
            prompts = torch.as_tensor(prompts) if prompts.dtype.kind in "iuf" else prompts.tolist()
        if isinstance(prompts, tuple) and len(prompts) == 2 and isinstance(prompts[0], Tensor):  # noqa: PLR2004
            tokens, mask = prompts
            if mask is None or 0 in tokens.shape:
                return cls._from_tensor(_matrix(tokens), vocabulary)
            try:
                mask = torch.as_tensor(mask, device=tokens.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise PromptError(f"Prompt: a mask must hold zeros and ones, got {mask!r:.80}.") from error
            return cls(_matrix(tokens), _matrix(mask))
        if isinstance(prompts, Tensor):
            return cls._from_tensor(_matrix(prompts), vocabulary)
        ids = [_read_ids(row, vocabulary) for row in _rows(prompts)]
        if not ids:
            raise PromptError("Prompt: there must be at least one prompt, got none.")
        return cls.from_ids(ids, vocabulary.pad_id)

    @classmethod
    def _from_tensor(cls, tokens: Shaped[Tensor, "batch length"], vocabulary: Vocabulary) -> "Prompt":
        if tokens.shape[1] == 0:
            return cls.from_ids([_read_ids([], vocabulary)] * len(tokens))
        pad = vocabulary.pad_id
        if pad is not None and pad != vocabulary.bos_id and pad not in vocabulary.end_ids:
            padded = (tokens[:, :1] == pad) | (tokens[:, -1:] == pad)
            if padded.any():
                raise PromptError(
                    f"Prompt: a tensor without a mask must hold tokens only, and row "
                    f"{int(padded.int().argmax())} starts or ends with the pad id {pad}. "
                    "Pass (tokens, mask), or lists of ids."
                )
        return cls(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def to(self, device: torch.device) -> "Prompt":
        """The same prompts on another device."""
        return Prompt(self.tokens.to(device), self.mask.to(device))

    def ids(self) -> list[list[int]]:
        """The token ids of every prompt, without padding."""
        return [row[mask].tolist() for row, mask in zip(self.tokens.cpu(), self.mask.cpu(), strict=True)]

    def history(self, capacity: int, rows_per_prompt: int) -> History:
        """The history every row starts from: its prompt, and room up to `capacity` columns."""
        batch, length = self.tokens.shape
        tokens = self.tokens.new_zeros((batch, capacity))
        valid = self.mask.new_zeros((batch, capacity))
        tokens[:, :length] = self.tokens
        valid[:, :length] = self.mask
        return History(
            tokens=tokens.repeat_interleave(rows_per_prompt, 0),
            valid=valid.repeat_interleave(rows_per_prompt, 0),
            position=torch.full((), length, device=tokens.device),
        )


def _from_mapping(prompts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What a tokenizer returned, as a tensor, a pair of tensors, or lists of ids without padding."""
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
    """`prompts` as a list with one item a prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Sequence) and not isinstance(prompts, bytes | bytearray):
        # A flat list of ids is one prompt; the empty list is no prompt at all.
        return [prompts] if prompts and all(type(item) is int for item in prompts) else list(prompts)
    raise PromptError(
        f"Prompt: prompts must be a string, ids, a list of either, or a tensor, got {type(prompts).__name__}."
    )


def _read_ids(row: Any, vocabulary: Vocabulary) -> list[int]:  # noqa: ANN401
    """One prompt's ids, never empty."""
    if isinstance(row, str):
        row = vocabulary.ids(row)
    ids = row.tolist() if isinstance(row, Tensor | np.ndarray) else row
    if isinstance(ids, bytes | bytearray | str) or not isinstance(ids, Sequence):
        raise PromptError(f"Prompt: a prompt must be a string or a list of integers, got {row!r:.80}.")
    for token in ids:
        if type(token) is not int:
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
    return list(ids)


def _matrix(tensor: Tensor) -> Shaped[Tensor, "batch length"]:
    """A row as a batch of one."""
    if tensor.ndim not in {1, 2}:
        raise PromptError(
            f"Prompt: a tensor of ids must be [length] or [batch, length], got {tuple(tensor.shape)}."
        )
    return tensor[None] if tensor.ndim == 1 else tensor
