"""Prompts: strings, lists of ids or tensors, parsed to one left-padded batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from decodekit.core.history import History, RowOwners, Source
from decodekit.core.validation import set_fields, shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import PromptError

# Ids of any lengths, or a tensor of ids and its mask; None: every id is a token.
Read = list[list[int]] | tuple[Shaped[Tensor, "batch length"], Shaped[Tensor, "batch length"] | None]
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts, padded on the left.

    Padding on the left makes all rows write the same column, so one position serves the batch.

    Attributes:
        tokens: Token ids; arbitrary where `mask` is False.
        mask: True where there is a token; zeros and ones are accepted too. In every row, any number of False
            values precede at least one True.
        source: The texts for the encoder of an encoder-decoder; `tokens` are then the decoder's first
            tokens. None for decoder-only models.
        states: The encoder's states of the source, if they are known already.

    Raises:
        PromptError: If tokens and mask do not both have shape `[batch, length]`, the tokens are not integers,
            the mask holds anything but zeros and ones, or a row is empty or has a False after a True (right
            padding, or a hole).

    Example:
        >>> Prompt.from_ids([[7], [5, 6, 7]]).mask
        tensor([[False, False,  True],
                [ True,  True,  True]])
    """

    tokens: Int64[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]
    source: Source | None = None
    states: Float[Tensor, "batch source width"] | None = None

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
            raise PromptError("Prompt: a mask must hold zeros and ones only, got other values.")
        set_fields(self, tokens=self.tokens.long(), mask=self.mask.bool())
        rising = (self.mask[:, 1:] | ~self.mask[:, :-1]).all(-1) & self.mask[:, -1]
        if not rising.all():
            row = int((~rising).int().argmax())
            raise PromptError(
                f"Prompt: padding must be on the left, and row {row} of the mask has a 0 after a 1 "
                "or no 1 at all. Pad on the left (padding_side='left'), or pass lists of ids."
            )
        if self.source is not None and len(self.source.tokens) != len(self.tokens):
            raise PromptError(
                f"Prompt: there must be one source per prompt, got {len(self.source.tokens)} sources for "
                f"{len(self.tokens)} prompts."
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
        """Prompts in any form, as one batch.

        Args:
            prompts: A string or a sequence of strings; a list of ids or a sequence of such lists, of any
                lengths; a tensor of ids, alone (then every id is a token), as the pair `(tokens, mask)`, or
                in the mapping with `input_ids` and `attention_mask` that tokenizers return; a `Prompt`.
            vocabulary: The vocabulary of the model. An empty prompt becomes its `bos_id`.

        Raises:
            PromptError: If the prompts have none of these forms, hold ids outside the vocabulary, are empty
                and there is no BOS, are strings and there is no tokenizer, or are padded on the right.
        """
        prompt = prompts if isinstance(prompts, Prompt) else cls._read(prompts, vocabulary)
        if (prompt.source is None) != (vocabulary.decoder_start_id is None):
            raise PromptError(
                "Prompt: a decoder-only model reads no source. Put the source in front of the prompt."
                if prompt.source
                else "Prompt: an encoder-decoder needs a source. Pass the text itself."
            )
        _check_ids(prompt.tokens, prompt.mask, vocabulary)
        if prompt.source is not None:
            _check_ids(prompt.source.tokens, prompt.source.valid, vocabulary)
        return prompt

    @classmethod
    def _read(cls, prompts: Any, vocabulary: Vocabulary) -> "Prompt":  # noqa: ANN401
        read = read_prompts(prompts, vocabulary)
        if vocabulary.decoder_start_id is not None:
            source = _source(read)
            return cls.from_ids([[vocabulary.decoder_start_id]] * len(source.tokens)).with_source(source)
        if isinstance(read, list):
            return cls.from_ids(read, vocabulary.pad_id)
        tokens, mask = read
        return cls(tokens, torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)

    def with_source(self, source: Source) -> "Prompt":
        """The same prompts of the decoder, with texts for the encoder."""
        return Prompt(self.tokens, self.mask, source)

    def to(self, device: torch.device) -> "Prompt":
        """The same prompts on another device."""
        source = None if self.source is None else self.source.to(device)
        states = None if self.states is None else self.states.to(device)
        return Prompt(self.tokens.to(device), self.mask.to(device), source, states)

    def take(self, rows: Int64[Tensor, " new"]) -> "Prompt":
        """The batch whose prompt `i` is prompt `rows[i]` of `self`."""
        rows = rows.to(self.tokens.device)
        source = None if self.source is None else self.source.take(rows)
        states = None if self.states is None else self.states.index_select(0, rows)
        return Prompt(self.tokens.index_select(0, rows), self.mask.index_select(0, rows), source, states)

    def ids(self) -> list[list[int]]:
        """The token ids of every prompt, without padding."""
        return [row[mask].tolist() for row, mask in zip(self.tokens.cpu(), self.mask.cpu(), strict=True)]

    def history(self, capacity: int, rows_per_prompt: int) -> History:
        """The history at the start: the prompt of every row, with room up to `capacity` columns."""
        batch, length = self.tokens.shape
        tokens = self.tokens.new_zeros((batch, capacity))
        valid = self.mask.new_zeros((batch, capacity))
        tokens[:, :length] = self.tokens
        valid[:, :length] = self.mask
        return History(
            tokens=tokens.repeat_interleave(rows_per_prompt, 0),
            valid=valid.repeat_interleave(rows_per_prompt, 0),
            position=torch.full((), length, device=tokens.device),
            owners=RowOwners.of(batch * rows_per_prompt, rows_per_prompt, tokens.device),
            source=self.source,
        )


class PromptSubset(NamedTuple):
    """Some prompts of a call, decoded as a batch of their own."""

    numbers: list[int]  # their indices
    whole: Prompt  # all prompts

    def prompt(self, *, trims_source: bool = True) -> Prompt:
        """The prompts, without columns of padding only; with `trims_source`, sources too."""
        some = self.whole.take(torch.tensor(self.numbers))
        first = some.tokens.shape[1] - int(some.mask.sum(-1).max())
        source = some.source
        if source is not None and trims_source and some.states is None:
            needed = source.valid.any(0).nonzero()[:, 0]
            source = Source(source.tokens.index_select(1, needed), source.valid.index_select(1, needed))
        return replace(some, tokens=some.tokens[:, first:], mask=some.mask[:, first:], source=source)

    def of_run(self, history: History) -> History:
        """Their history, with the owners of its rows counted through all prompts of the call."""
        source = self.whole.source
        numbers = torch.tensor(self.numbers, device=history.tokens.device)
        owners = history.owners
        prompts = numbers.index_select(0, owners.prompts)
        return replace(
            history,
            owners=owners._replace(prompts=prompts, num_prompts=len(self.whole.tokens)),
            source=None if source is None else source.to(history.tokens.device),
        )


def _source(read: Read) -> Source:
    """The texts for an encoder."""
    if isinstance(read, list):
        return Source.from_ids(read)
    tokens, mask = read
    if tokens.dtype not in _INTEGERS:
        raise PromptError(f"Prompt: token ids must be integers, got a tensor of {tokens.dtype}.")
    if mask is None:
        return Source(tokens.long(), torch.ones_like(tokens, dtype=torch.bool))
    if mask.shape != tokens.shape or not ((mask == 0) | (mask == 1)).all() or not mask.bool().any(-1).all():
        raise PromptError(
            f"Prompt: an encoder's mask must be zeros and ones of the shape of its tokens, "
            f"{tuple(tokens.shape)}, with a 1 in every row, got {shown(mask)}."
        )
    return Source(tokens.long(), mask.bool())


def _check_ids(
    tokens: Int64[Tensor, "batch length"], mask: Bool[Tensor, "batch length"], vocabulary: Vocabulary
) -> None:
    most = vocabulary.size or 2**63 - 1
    outside = mask & ((tokens < 0) | (tokens >= most))
    if outside.any():
        row, column = divmod(int(outside.int().argmax()), outside.shape[1])
        raise PromptError(
            f"Prompt: ids must be in [0, {most}), and prompt {row} has "
            f"{int(tokens[row, column])}. Is this the model's own tokenizer?"
        )


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
        raise PromptError(f"Prompt: a mask must hold zeros and ones, got {shown(mask)}.") from error


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
        raise PromptError(f"Prompt: a prompt must be a string or a list of integers, got {shown(row)}.")
    for token in ids:
        if not _is_id(token):
            raise PromptError(
                f"Prompt: a prompt must be a string or a list of integers, got {shown(token)} in one."
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
