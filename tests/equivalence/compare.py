"""The same question, put to `generate` and to decodekit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import decodekit as dk
from tests.equivalence.families import ENDS, FIRST_TEXT_ID, PAD, VOCAB, build, wrap

NEW = 12  # with a prompt of 9 columns more than twice a sliding window


class Batch(NamedTuple):
    """Prompts as tokenizers return them."""

    tokens: Tensor
    mask: Tensor

    def alone(self, row: int) -> "Batch":
        """One prompt, without its padding."""
        tokens = self.tokens[row][self.mask[row].bool()]
        return Batch(tokens[None], torch.ones_like(tokens)[None])


def batch(padding: Sequence[int] = (0, 2, 5), *, seed: int = 0, length: int = 9, pad_id: int = PAD) -> Batch:
    """Random prompts, each with so many columns of padding to its left."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(FIRST_TEXT_ID, VOCAB, (len(padding), length), generator=generator)
    mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()
    return Batch(tokens.masked_fill(mask == 0, pad_id), mask)


def theirs(
    family: str,
    prompts: Batch,
    *,
    new: int = NEW,
    end_ids: Sequence[int] = ENDS,
    pad_id: int = PAD,
    **options: Any,  # noqa: ANN401 - generate's own
) -> Any:  # noqa: ANN401 - what generate returns depends on its options
    """What `generate` says."""
    return build(family).generate(
        prompts.tokens,
        attention_mask=prompts.mask,
        max_new_tokens=new,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        **options,
    )


def ours(  # noqa: PLR0913 - what both sides need
    family: str,
    prompts: Batch | list[list[int]],
    decoder: dk.Decoder[Any],
    processors: Sequence[dk.LogitsProcessor] = (),
    *,
    new: int = NEW,
    end_ids: Sequence[int] = ENDS,
    pad_id: int = PAD,
) -> dk.Decoded:
    """What decodekit says."""
    return dk.decode(
        wrap(family),
        prompts,
        decoder,
        processors,
        max_new_tokens=new,
        end_ids=end_ids,
        pad_id=pad_id,
    )
