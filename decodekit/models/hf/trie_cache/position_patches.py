"""Patches for models that count positions by the length of their cache.

In a trie the number of slots says nothing about positions. The patches replace functions of the model's
modules during a forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decodekit.models.hf.trie_cache.tree_mask import TreePositions


class Patch(NamedTuple):
    """A method of a module, and a factory for its replacement at given positions."""

    module: nn.Module
    name: str
    make: Callable[[Callable[..., Tensor], TreePositions], Callable[..., Tensor]]


def find_patches(model: nn.Module) -> list[Patch]:
    """The patches of all modules of a model, or of a decoder, that count positions by the cache's length."""
    patches = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "embed_positions":
            patches.append(Patch(module, "forward", _embed_by_query))
        if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias"):
            patches.append(Patch(module, "compute_bias", _relative_bias_by_slot))
        if hasattr(module, "build_alibi_tensor"):
            patches.append(Patch(module, "build_alibi_tensor", _linear_bias_by_slot))
    return patches


@contextmanager
def patched(patches: list[Patch], positions: TreePositions) -> Iterator[None]:
    """Give the modules these positions."""
    before = [vars(module).get(name) for module, name, _ in patches]
    with ExitStack() as stack:
        for (module, name, make), function in zip(patches, before, strict=True):
            stack.callback(_set_method, module, name, function)
            _set_method(module, name, make(getattr(module, name), positions))
        yield


def _set_method(module: nn.Module, name: str, function: Callable[..., Any] | None) -> None:
    """Set a method on an instance, or remove it, without `nn.Module`, which registers attributes."""
    if function is None:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = function


def _embed_by_query(embed: Callable[..., Tensor], positions: TreePositions) -> Callable[..., Tensor]:
    """An embedding of positions, called with rows of one token at the queries' positions."""
    batch, beams = positions.queries.shape
    queries = positions.queries.flatten()[:, None, None]  # [batch*beams 1 1]

    def embed_queries(*args: Any, **kwargs: Any) -> Tensor:
        first, *others = positions.maxima
        output = embed_at(first, *args, **kwargs)
        for position in others:  # merged prompts are at other positions
            output = torch.where(queries == position, embed_at(position, *args, **kwargs), output)
        # [batch*beams 1 width] -> [batch beams width]; some tables return one row for all
        return output.view(batch, beams, -1) if output.shape[:-1] == (batch * beams, 1) else output

    def embed_at(position: int, ids: Any, *args: Any, **kwargs: Any) -> Tensor:
        def as_rows(value: Any) -> Any:
            if isinstance(value, Tensor) and value.shape[:2] == (batch, beams):
                return value.reshape(batch * beams, 1, *value.shape[2:])
            if isinstance(value, Tensor) and value.shape == (beams,):  # positions from the cache's length on
                return value.new_full((1,), position)
            if isinstance(value, tuple) and tuple(value[:2]) == (batch, beams):
                return torch.Size((batch * beams, 1, *value[2:]))
            return position if type(value) is int else value

        named = {name: as_rows(value) for name, value in kwargs.items() if value is not None}
        return embed(as_rows(ids), *map(as_rows, args), **named)

    return embed_queries


def _relative_bias_by_slot(bias_of: Callable[..., Tensor], positions: TreePositions) -> Callable[..., Tensor]:
    """A relative bias of one sequence, gathered at the position of every slot."""
    last = positions.maxima[-1]

    def bias_of_slots(queries: int, keys: int, device: Any = None, past_seen_tokens: int = 0) -> Tensor:
        del keys, past_seen_tokens
        # [1 heads 1 last+1]: of a query at the last position
        table = bias_of(1, last + 1, device=device, past_seen_tokens=last)
        heads = table.shape[1]
        # Only distances matter: move every prompt so that its queries are at the last position.
        keys_at = (positions.slots + last - positions.queries[:, :1]).clamp(min=0)
        bias = table[0, :, 0].index_select(1, keys_at.flatten()).view(heads, *keys_at.shape).transpose(0, 1)
        return bias[:, :, None].expand(-1, -1, queries, -1)  # [batch heads beams slots]

    return bias_of_slots


def _linear_bias_by_slot(bias_of: Callable[..., Tensor], positions: TreePositions) -> Callable[..., Tensor]:
    """The linear biases (ALiBi) of one sequence, gathered at the position of every slot."""

    def bias_of_slots(mask: Tensor, heads: int, dtype: torch.dtype) -> Float[Tensor, "batch*heads 1 slots"]:
        sequence = torch.ones((1, positions.maxima[-1] + 1), dtype=torch.long, device=mask.device)
        table = bias_of(sequence, heads, dtype)[:, 0]  # [heads last+1]
        bias = table.index_select(1, positions.slots.flatten()).view(heads, *positions.slots.shape)
        return bias.transpose(0, 1).flatten(0, 1)[:, None]

    return bias_of_slots
