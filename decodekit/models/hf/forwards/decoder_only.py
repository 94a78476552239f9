"""Decoder-only models: a forward pass over a text."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.accelerate.packed_linear import Packing
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.eval_mode import eval_mode
from decodekit.models.hf.forward_lock import lock_of
from decodekit.models.hf.forward_signature import forward_signature
from decodekit.models.hf.forwards.compiled import Compiled
from decodekit.models.hf.sessions import Columns, as_given
from decodekit.models.hf.trie_cache.tree_mask import Mask


class DecoderOnly:
    """A model that continues a text, with what its family accepts: what a session drives.

    Args:
        model: A decoder-only model of transformers.
        config: Of its text.
        cache_name: What its forward calls its cache; None: it has none.
        packing: Of its linear layers.
        can_join: Whether its cache can be joined with another.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        config: Any,  # noqa: ANN401
        cache_name: str | None,
        packing: Packing,
        can_join: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._config, self._cache_name, self._packing = model, config, cache_name, packing
        self._can_join = can_join
        self._accepts = forward_signature(model)
        self._compiled: Compiled | None = None

    def by(self, compiled: Compiled) -> "DecoderOnly":
        """The same, with passes over branches by a compiled model."""
        self._compiled = compiled
        return self

    def forward(
        self,
        tokens: Int64[Tensor, "rows columns"],
        mask: Columns | Mask | None,
        position_ids: Int64[Tensor, "rows columns"],
        *,
        cache: Cache | None,
        keep: int = 1,
    ) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        """The model's own forward pass."""
        given: dict[str, Any] = {}
        if "use_cache" in self._accepts:
            given["use_cache"] = cache is not None
        # A recurrent model has read its padding once the prompt is in, and wants a mask no more.
        recurrent = cache is not None and cache.recurrent
        if mask is not None and (not recurrent or (isinstance(mask, Tensor) and mask.shape == tokens.shape)):
            given["attention_mask"] = as_given(mask)
        if "position_ids" in self._accepts:
            given["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            given["logits_to_keep"] = keep
        if cache is not None and self._cache_name is not None:
            given[self._cache_name] = cache.content
        # Inference mode keeps no books for autograd, which is several per cent of a small model's step.
        with (
            lock_of(self._model),
            torch.inference_mode(),
            eval_mode(self._model),
            self._packing.active(),
        ):
            over_branches = isinstance(mask, dict) or (mask is not None and mask.ndim > tokens.ndim)
            call = self._compiled if self._compiled is not None and over_branches else self._model
            output = call(input_ids=tokens, return_dict=True, **given)
        if cache is not None and self._cache_name is not None:
            # A model that keeps its state elsewhere returns none; the probe finds out what that means.
            cache.content = output.get(self._cache_name, cache.content)
        return output

    @property
    def wants_mask(self) -> bool:
        """Rows that have ended say the pad id, for which some models warn where there is no mask."""
        return self._config.pad_token_id is not None

    def can_join(self) -> bool:
        """Whether the model goes on right after its cache was joined with another."""
        return self._can_join()

    def join(self, other: object, batches: tuple[int, int], caches: tuple[Cache, Cache]) -> None:
        """Nothing: it knows nothing about its prompts."""

    def new_cache(self, *, whole: bool = False) -> Cache:
        """An empty cache, as this model wants it; `whole`: without the windows of its layers."""
        if not self._model._supports_default_dynamic_cache():  # noqa: SLF001 - as generate asks it
            return Cache(None)  # the model makes its own
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import, needed only here

        return Cache(DynamicCache() if whole else DynamicCache(config=self._config))
