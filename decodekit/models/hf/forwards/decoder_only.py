"""Forward pass of decoder-only models."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from typing_extensions import override

from decodekit.accelerate.packed_linear import Packing
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.forwards.forward import (
    AnyMask,
    Forward,
    MergeableForward,
    attention_mask,
    forward_signature,
    running,
)
from decodekit.models.protocols import Ids


class DecoderOnly(Forward, MergeableForward):
    """The forward pass of a decoder-only model; the compiled model, if given, runs the passes over a trie."""

    def __init__(
        self,
        model: Any,
        config: Any,
        cache_name: str | None,
        packing: Packing,
        can_merge: Callable[[], bool],
        compiled: Callable[..., Any] | None = None,
    ) -> None:
        self._model, self._config, self._cache_name, self._packing = model, config, cache_name, packing
        self._can_merge, self._compiled = can_merge, compiled
        self._accepts = forward_signature(model)

    @override
    def forward(
        self, tokens: Ids, mask: AnyMask, position_ids: Ids, *, cache: Cache | None, keep: int = 1
    ) -> Any:
        arguments: dict[str, Any] = {}
        if "use_cache" in self._accepts:
            arguments["use_cache"] = cache is not None
        # A recurrent model has read its padding with the prompt, and needs no mask afterwards.
        recurrent = cache is not None and cache.recurrent
        if mask is not None and (not recurrent or (isinstance(mask, Tensor) and mask.shape == tokens.shape)):
            arguments["attention_mask"] = attention_mask(mask)
        if "position_ids" in self._accepts:
            arguments["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            arguments["logits_to_keep"] = keep
        if cache is not None and self._cache_name is not None:
            arguments[self._cache_name] = cache.content
        with running(self._model, self._packing):
            over_trie = isinstance(mask, dict) or (mask is not None and mask.ndim > tokens.ndim)
            call = self._compiled if self._compiled is not None and over_trie else self._model
            output = call(input_ids=tokens, return_dict=True, **arguments)
        if cache is not None and self._cache_name is not None:
            # A model that keeps its state elsewhere returns no cache; a probe detects that it does.
            cache.content = output.get(self._cache_name, cache.content)
        return output

    @property
    @override
    def wants_mask(self) -> bool:
        # Rows that have ended emit the pad id, for which some models warn if there is no mask.
        return self._config.pad_token_id is not None

    @override
    def can_merge(self) -> bool:
        return self._can_merge()

    @override
    def merge(self, other: object, batches: tuple[int, int], caches: tuple[Cache, Cache]) -> None:
        pass  # it holds no state about its prompts

    @override
    def new_cache(self, *, whole: bool = False) -> Cache:
        if not self._model._supports_default_dynamic_cache():  # noqa: SLF001 - as generate asks it
            return Cache(None)  # the model makes its own
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import, needed only here

        return Cache(DynamicCache() if whole else DynamicCache(config=self._config))
