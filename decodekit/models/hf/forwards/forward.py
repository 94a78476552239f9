"""Forward passes: their contract and common parts, and the pass of decoder-only models."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn
from typing_extensions import override

from decodekit.accelerate.packed_linear import LinearLayer, Packable, Packing
from decodekit.core.prompt import Prompt
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.trie_cache.tree_mask import Mask
from decodekit.models.protocols import Columns, Ids, Logits, PerRow

AnyMask = Bool[Tensor, "rows length"] | Mask | None

_all_locks = Lock()
_locks: "WeakKeyDictionary[nn.Module, RLock]" = WeakKeyDictionary()


@runtime_checkable
class Forward(Protocol):
    """A model's forward pass and its empty cache, for use by a session."""

    def forward(
        self, tokens: Ids, mask: AnyMask, position_ids: Ids, *, cache: Cache | None, keep: int = 1
    ) -> Any:
        """The model's output, with the logits of the last `keep` columns; appends to the cache."""

    def new_cache(self, *, whole: bool = False) -> Cache:
        """An empty cache of the model's kind; `whole` keeps every column, even outside a sliding window."""

    @property
    def wants_mask(self) -> bool:
        """True if a mask must be passed even without padding."""


@runtime_checkable
class MergeableForward(Protocol):
    """A forward pass with state per prompt, from which prompts are evicted and to which prompts are added."""

    can_merge: Callable[[], bool]  # true if merged caches give the right logits: a numerical test

    def merge(self, other: Any, batches: tuple[int, int], caches: tuple[Cache, Cache]) -> None:
        """Takes over the prompts of another pass; `batches` are the numbers of prompts of both."""

    def keep_prompts(self, prompts: Int64[Tensor, " kept"], batch: int, cache: Cache | None) -> None:
        """Drops all of the `batch` current prompts but some."""


@runtime_checkable
class ForwardAfter(Protocol):
    """Makes a model's forward pass for given prompts; an encoder reads its source first."""

    def __call__(self, prompt: Prompt, *, share: bool, compiled: Callable[..., Any] | None = None) -> Forward:
        """The forward pass; `share` as in `ConditionedDecoder`, `compiled` as in `DecoderOnly`."""


def unwrapped(model: Any) -> Any:
    """The model itself, without a wrapper of `torch.compile`, which hides its arguments."""
    return getattr(model, "_orig_mod", model)


def forward_signature(model: Any) -> frozenset[str]:
    """Names of the arguments of a model's forward method."""
    return frozenset(inspect.signature(unwrapped(model).forward).parameters)


def forward_lock(model: nn.Module) -> "RLock":
    """The lock that a thread holds during a pass, because a pass may patch parts of the model."""
    with _all_locks:
        return _locks.setdefault(model, RLock())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Turns dropout off; restores every module's mode afterwards."""
    if not model.training:
        yield
        return
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def find_packable(model: nn.Module) -> Packable:
    """The linear layers of a model, and its tanh-GELUs that are written as one operation per term."""
    from transformers.activations import FastGELUActivation, NewGELUActivation  # noqa: PLC0415 - slow to import
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415

    modules = list(model.modules())
    linear, gelu = {nn.Linear, Conv1D}, {FastGELUActivation, NewGELUActivation}
    return Packable(  # without subclasses, which may compute differently
        [LinearLayer(module, type(module) is Conv1D) for module in modules if type(module) in linear],
        [module for module in modules if type(module) in gelu and "forward" not in vars(module)],
    )


@contextmanager
def running(model: nn.Module, packing: Packing) -> Iterator[None]:
    """The conditions of every pass: locked, without dropout, without autograd, with packed layers."""
    # Inference mode keeps no autograd metadata, which is several per cent of a small model's step.
    with forward_lock(model), torch.inference_mode(), eval_mode(model), packing.active():
        yield


def attention_mask(mask: Columns | Mask) -> Tensor | dict[str, Tensor]:
    """A mask in transformers' form: a boolean one as integers, any other unchanged."""
    return mask.long() if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask


def count_positions(mask: Columns) -> Ids:
    """Each column's position in its row, counted without padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def last_logits(output: Any) -> Logits:
    """The last column's logits, copied outside inference mode so that they can be used freely."""
    logits: Tensor = output.logits[:, -1].to(torch.float32, copy=True).contiguous()
    return logits


def token_log_probs(
    model: Forward, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: PerRow
) -> Float32[Tensor, "rows new"]:
    """The log-probability of every token by teacher forcing, in one pass; 0 past a row's length."""
    new = tokens.shape[1]
    valid = torch.arange(new, device=tokens.device) < lengths[:, None]
    # The last token predicts nothing. Junk after a row's end is to the right of all valid tokens.
    tokens = tokens.masked_fill(~valid, 0)
    mask = torch.cat([prompt.mask, torch.ones_like(valid[:, 1:])], 1)
    ids = torch.cat([prompt.tokens.masked_fill(~prompt.mask, 0), tokens[:, :-1]], 1)
    logits = model.forward(ids, mask, count_positions(mask), cache=None, keep=new).logits[:, -new:]
    # Row by row: a float32 copy of all rows' distributions at once could be the largest tensor.
    log_probs = torch.stack(
        [
            -nn.functional.cross_entropy(row.float(), row_tokens, reduction="none")
            for row, row_tokens in zip(logits, tokens, strict=True)
        ]
    )
    return log_probs.masked_fill(~valid, 0.0)


class DecoderOnly(Forward, MergeableForward):
    """The forward pass of a decoder-only model; the compiled model, if given, runs the passes over a trie."""

    def __init__(
        self,
        model: Any,
        config: Any,
        cache_name: str | None,
        packing: Packing,
        can_merge: Callable[[], bool],
        compiled: Callable[..., Any] | None,
    ) -> None:
        self._model, self._config, self._cache_name, self._packing = model, config, cache_name, packing
        self.can_merge, self._compiled = can_merge, compiled
        self._accepts = forward_signature(model)

    @override
    def forward(
        self, tokens: Ids, mask: AnyMask, position_ids: Ids, *, cache: Cache | None, keep: int = 1
    ) -> Any:
        possible = {"use_cache": cache is not None, "position_ids": position_ids, "logits_to_keep": keep}
        arguments: dict[str, Any] = {name: value for name, value in possible.items() if name in self._accepts}
        # A recurrent model has read its padding with the prompt, and needs no mask afterwards.
        recurrent = cache is not None and cache.recurrent
        if mask is not None and (not recurrent or (isinstance(mask, Tensor) and mask.shape == tokens.shape)):
            arguments["attention_mask"] = attention_mask(mask)
        if cache is not None and self._cache_name is not None:
            arguments[self._cache_name] = cache.content
        with running(self._model, self._packing):
            over_trie = isinstance(mask, dict) or (mask is not None and mask.ndim > tokens.ndim)
            call = self._compiled if self._compiled is not None and over_trie else self._model
            output = call(input_ids=tokens, return_dict=True, **arguments)
        if cache is not None and self._cache_name is not None:
            # A model that keeps its state elsewhere returns no cache; a probe detects this.
            cache.content = output.get(self._cache_name, cache.content)
        return output

    @property
    @override
    def wants_mask(self) -> bool:
        # Finished rows emit the pad id; without a mask, some models warn about it.
        return self._config.pad_token_id is not None

    @override
    def merge(self, other: object, batches: tuple[int, int], caches: tuple[Cache, Cache]) -> None:
        pass  # it holds no state about its prompts

    @override
    def keep_prompts(self, prompts: Int64[Tensor, " kept"], batch: int, cache: Cache | None) -> None:
        pass

    @override
    def new_cache(self, *, whole: bool = False) -> Cache:
        if not self._model._supports_default_dynamic_cache():  # noqa: SLF001 - as in generate
            return Cache(None)  # the model makes its own
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import, needed only here

        return Cache(DynamicCache() if whole else DynamicCache(config=self._config))
