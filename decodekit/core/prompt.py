"""Prompts: strings, lists of ids or tensors, as one left-padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from decodekit.core.history import History, RowOwners, Source
from decodekit.core.prompt_parsing import Read, read_prompts
from decodekit.core.validation import set_fields
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import PromptError

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts, padded on the left.

    Padding on the left makes all rows write the same column, so one position serves the batch.

    Attributes:
        tokens: Token ids; arbitrary where `mask` is False.
        mask: True where there is a token. Every row is some False followed by at least one True. Zeros and
            ones will do.
        source: The texts for the encoder of an encoder-decoder; `tokens` then start the decoder's. None for
            decoder-only models.
        states: The encoder's states of the source, if they are known already.

    Raises:
        PromptError: If tokens and mask are not of one shape `[batch, length]`, are no ids or no zeros and
            ones, a row is empty, or has a False after a True (right padding, or a hole).

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
            raise PromptError("Prompt: a mask must hold zeros and ones only, got further values.")
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
                "Prompt: a source must be given for an encoder-decoder and no other model, and this model "
                f"{'reads none' if prompt.source else 'needs one'}. "
                f"{'Put the source in front of the prompt.' if prompt.source else 'Pass the text itself.'}"
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
        """The batch whose prompt `i` is this one's prompt `rows[i]`."""
        rows = rows.to(self.tokens.device)
        source = None if self.source is None else self.source.take(rows)
        states = None if self.states is None else self.states.index_select(0, rows)
        return Prompt(self.tokens.index_select(0, rows), self.mask.index_select(0, rows), source, states)

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
            owners=RowOwners.of(batch * rows_per_prompt, rows_per_prompt, tokens.device),
            source=self.source,
        )


class PromptSubset(NamedTuple):
    """Some prompts of a run, decoded as a batch of their own.

    Attributes:
        numbers: Their indices.
        whole: All prompts.
    """

    numbers: list[int]
    whole: Prompt

    def prompt(self, *, trims_source: bool = True) -> Prompt:
        """The prompts, without columns of padding only; sources likewise if `trims_source`."""
        some = self.whole.take(torch.tensor(self.numbers))
        first = some.tokens.shape[1] - int(some.mask.sum(-1).max())
        source = some.source
        if source is not None and trims_source and some.states is None:
            needed = source.valid.any(0).nonzero()[:, 0]
            source = Source(source.tokens.index_select(1, needed), source.valid.index_select(1, needed))
        return replace(some, tokens=some.tokens[:, first:], mask=some.mask[:, first:], source=source)

    def of_run(self, history: History) -> History:
        """Their history, with the owners of its rows counted through the whole run."""
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
    """The texts for an encoder, padded on the right: encoders count positions from the left."""
    if isinstance(read, list):
        length = max(len(row) for row in read)
        tokens = torch.tensor([[*row, *[0] * (length - len(row))] for row in read])
        lengths = torch.tensor([len(row) for row in read])
        return Source(tokens, torch.arange(length) < lengths[:, None])
    tokens, mask = read
    if tokens.dtype not in _INTEGERS:
        raise PromptError(f"Prompt: token ids must be integers, got a tensor of {tokens.dtype}.")
    if mask is None:
        return Source(tokens.long(), torch.ones_like(tokens, dtype=torch.bool))
    if mask.shape != tokens.shape or not ((mask == 0) | (mask == 1)).all() or not mask.bool().any(-1).all():
        raise PromptError(
            f"Prompt: an encoder's mask must be zeros and ones of the shape of its tokens, "
            f"{tuple(tokens.shape)}, with a 1 in every row, got {mask!r:.80}."
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
