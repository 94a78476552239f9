"""Families that count positions by the length of their cache, made to count them by depth in the tree.

In a trie the number of slots says nothing about positions. What is patched here are functions of the model's
modules, for a forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Places(NamedTuple):
    """Where the slots and the queries of a step are in their texts.

    Attributes:
        depths: The position of every slot.
        positions: Those of the queries, the same for all of a prompt.
        depth: The greatest of them.
        tops: All that there are, and maybe others that there were.
    """

    depths: Int64[Tensor, "batch slots"]
    positions: Int64[Tensor, "batch beams"]
    depth: int
    max_positions: tuple[int, ...]


class PositionPatches:
    """Finds what counts by the cache's length in a model, and patches it for a forward pass.

    Args:
        model: The model, or of an encoder-decoder its decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._tables = [
            module for name, module in model.named_modules() if name.rpartition(".")[2] == "embed_positions"
        ]
        self._relative: list[Any] = [
            module
            for module in modules
            if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias")
        ]
        self._sloped: list[Any] = [module for module in modules if hasattr(module, "build_alibi_tensor")]

    @property
    def is_needed(self) -> bool:
        """Whether the model counts by its cache's length anywhere."""
        return bool(self._tables or self._relative or self._sloped)

    @contextmanager
    def counted(self, places: Places) -> Iterator[None]:
        """Inside, positions are those of `places`."""
        with ExitStack() as patches:
            for module in self._tables:
                patches.enter_context(_patched(module, "forward", _rows_for_queries(module.forward, places)))
            for module in self._relative:
                patches.enter_context(
                    _patched(module, "compute_bias", _bias_by_depth(module.compute_bias, places))
                )
            for module in self._sloped:
                slopes = _slopes_by_depth(module.build_alibi_tensor, places)
                patches.enter_context(_patched(module, "build_alibi_tensor", slopes))
            yield


@contextmanager
def _patched(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get(name)
    vars(module)[name] = function  # around nn.Module's own bookkeeping
    try:
        yield
    finally:
        if own is None:
            del vars(module)[name]
        else:
            vars(module)[name] = own


def _rows_for_queries(embed: Callable[..., Tensor], places: Places) -> Callable[..., Tensor]:
    """A table of positions that is asked about rows of one token after `depth` others."""
    batch, beams = places.positions.shape
    own = places.positions.flatten()[:, None, None]  # [batch*beams 1 1]

    def asked(*given: Any, **named: Any) -> Tensor:  # noqa: ANN401 - ids, embeddings or a shape
        first, *others = places.max_positions
        found = asked_at(first, *given, **named)
        for top in others:  # prompts that joined later are not as far
            found = torch.where(own == top, asked_at(top, *given, **named), found)
        # [batch*beams 1 width] -> [batch beams width]; a table may answer for all rows at once
        return found.view(batch, beams, -1) if found.shape[:-1] == (batch * beams, 1) else found

    def asked_at(depth: int, ids: Any, *rest: Any, **named: Any) -> Tensor:  # noqa: ANN401
        def as_rows(given: Any) -> Any:  # noqa: ANN401
            if isinstance(given, Tensor) and given.shape[:2] == (batch, beams):
                return given.reshape(batch * beams, 1, *given.shape[2:])
            if isinstance(given, Tensor) and given.shape == (beams,):  # positions from the cache's length on
                return given.new_full((1,), depth)
            if isinstance(given, tuple) and tuple(given[:2]) == (batch, beams):
                return torch.Size((batch * beams, 1, *given[2:]))
            return depth if type(given) is int else given

        named = {name: as_rows(value) for name, value in named.items() if value is not None}
        return embed(as_rows(ids), *(as_rows(value) for value in rest), **named)

    return asked


def _bias_by_depth(bias_of: Callable[..., Tensor], places: Places) -> Callable[..., Tensor]:
    """A relative bias that is asked about one text, and picked by the depth of every slot."""

    def asked(queries: int, keys: int, device: Any = None, past_seen_tokens: int = 0) -> Tensor:  # noqa: ANN401
        del keys, past_seen_tokens
        # [1 heads 1 depth+1]: a query at `depth` of one text
        table = bias_of(1, places.depth + 1, device=device, past_seen_tokens=places.depth)
        heads = table.shape[1]
        # Only distances count: what is as far from the query as the slot is from its own.
        depths = (places.depths + places.depth - places.positions[:, :1]).clamp(min=0)
        picked = table[0, :, 0].index_select(1, depths.flatten()).view(heads, *depths.shape).transpose(0, 1)
        return picked[:, :, None].expand(-1, -1, queries, -1)  # [batch heads beams slots]

    return asked


def _slopes_by_depth(slopes_of: Callable[..., Tensor], places: Places) -> Callable[..., Tensor]:
    """Linear biases of one text, picked by the depth of every slot."""

    def asked(mask: Tensor, heads: int, dtype: torch.dtype) -> Float[Tensor, "batch*heads 1 slots"]:
        text = torch.ones((1, places.depth + 1), dtype=torch.long, device=mask.device)
        table = slopes_of(text, heads, dtype)[:, 0]  # [heads depth+1]
        picked = table.index_select(1, places.depths.flatten()).view(heads, *places.depths.shape)
        return picked.transpose(0, 1).flatten(0, 1)[:, None]

    return asked
