"""Forward pass of encoder-decoders: the encoder reads each prompt once, and all its rows share the result."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as cached
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from decodekit.accelerate.packed_linear import Packing
from decodekit.core.history import Source, rows_of
from decodekit.errors import ModelError, PromptError
from decodekit.models.hf.cache import Cache, cache_name
from decodekit.models.hf.forwards.forward import (
    AnyMask,
    Forward,
    MergeableForward,
    attention_mask,
    forward_signature,
    running,
)
from decodekit.models.protocols import Ids, PerRow

# Arguments by which attention modules receive the states of another sequence than their own.
_CROSS_STATES = ("key_value_states", "encoder_hidden_states")


class ConditionedDecoder(Forward, MergeableForward):
    """A model's decoder, conditioned on the source of every prompt.

    The keys and values of the source are computed once per prompt, and never widened or reordered. In the
    cross-attention, the rows of a prompt are queries of one batch row.

    The constructor runs the encoder, unless the `states` of the source are given. `share=False` is for models
    whose cross-attention cannot share one copy: the source is then repeated once for every row.
    """

    # The decoder needs no mask unless some of its tokens are padding.
    wants_mask = False

    def __init__(
        self,
        model: Any,
        source: Source,
        states: Float[Tensor, "batch source width"] | None = None,
        *,
        share: bool,
        packing: Packing,
        can_merge: Callable[[], bool],
    ) -> None:
        self._model, self._share, self._packing, self.can_merge = model, share, packing, can_merge
        self._accepts = forward_signature(model)
        self._cache_name = cache_name(self._accepts) or "past_key_values"
        self._attentions = cross_attentions(model.get_decoder())
        if states is not None:
            from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415 - slow to import

            self._valid, self._encoded = source.valid, BaseModelOutput(last_hidden_state=states.clone())
            return
        # Encoders count positions from the left, so the padding must be on the right.
        order = (~source.valid).long().argsort(stable=True, dim=1)
        self._valid, tokens = source.valid.gather(1, order), source.tokens.gather(1, order)
        tokens = tokens.masked_fill(~self._valid, 0)  # masked, but must be a valid id
        vocab = model.get_input_embeddings().weight.shape[0]
        if int(tokens.max()) >= vocab:  # the decoder may have more ids
            raise PromptError(
                f"Prompt: the ids that the encoder reads must be below the {vocab} ids that it knows, got "
                f"{int(tokens.max())}."
            )
        with running(model, packing):
            self._encoded = model.get_encoder()(
                input_ids=tokens, attention_mask=self._valid.long(), return_dict=True
            )

    @override
    def new_cache(self, *, whole: bool = False) -> Cache:
        # Growing keys and values of the decoder's tokens, fixed ones of the source.
        from transformers import DynamicCache, EncoderDecoderCache  # noqa: PLC0415 - slow to import

        return Cache(EncoderDecoderCache(DynamicCache(), DynamicCache()))

    @override
    def forward(
        self, tokens: Ids, mask: AnyMask, position_ids: Ids, *, cache: Cache | None, keep: int = 1
    ) -> Any:
        possible = {"decoder_position_ids": position_ids, "logits_to_keep": keep}
        arguments: dict[str, Any] = {name: value for name, value in possible.items() if name in self._accepts}
        if mask is not None:
            arguments["decoder_attention_mask"] = attention_mask(mask)
        if cache is not None:
            arguments[self._cache_name] = cache.content
        with running(self._model, self._packing):
            if len(tokens) != len(self._valid) and not self._share:
                self._repeat(len(tokens) // len(self._valid), cache)
            with _rows_as_queries(self._attentions, len(tokens), len(self._valid)):
                return self._model(
                    encoder_outputs=self._encoded,
                    attention_mask=self._valid.long(),
                    decoder_input_ids=tokens,
                    use_cache=cache is not None,
                    return_dict=True,
                    **arguments,
                )

    @override
    @torch.inference_mode()
    def keep_prompts(self, prompts: Int64[Tensor, " kept"], batch: int, cache: Cache | None) -> None:
        # More than one copy per prompt if the source was repeated for every row.
        self._take(rows_of(prompts, len(self._valid) // batch), cache)

    @override
    @torch.inference_mode()
    def merge(
        self, other: "ConditionedDecoder", batches: tuple[int, int], caches: tuple[Cache, Cache]
    ) -> None:
        states, valid = other.encoded(batches[1], len(self._valid) // batches[0], caches[1])
        length = max(valid.shape[1], self._valid.shape[1])

        def concatenated(first: Tensor, second: Tensor, axis: int) -> Tensor:
            """Both, with zeros after the shorter sources."""
            after = (0, 0) * (first.ndim - 1 - axis)
            padded = (
                nn.functional.pad(one, (*after, 0, length - one.shape[axis])) for one in (first, second)
            )
            return torch.cat(list(padded))

        self._encoded.last_hidden_state = concatenated(self._encoded.last_hidden_state, states, 1)
        self._valid = concatenated(self._valid, valid, 1)
        layers = (cache.content.cross_attention_cache.layers for cache in caches)
        for layer, another in zip(*layers, strict=True):
            layer.keys = concatenated(layer.keys, another.keys, 2)
            layer.values = concatenated(layer.values, another.values, 2)

    def encoded(
        self, batch: int, copies: int, cache: Cache
    ) -> tuple[Float[Tensor, "read source width"], Bool[Tensor, "read source"]]:
        """The encoder's output, `copies` times per prompt, and its valid columns."""
        if len(self._valid) != batch * copies:
            self._repeat(copies, cache)
        return self._encoded.last_hidden_state, self._valid

    def _repeat(self, rows_per_prompt: int, cache: Cache | None) -> None:
        """Makes one copy of the source per row: afterwards every row counts as a prompt."""
        rows = torch.arange(len(self._valid), device=self._valid.device).repeat_interleave(rows_per_prompt)
        self._take(rows, cache)

    def _take(self, rows: PerRow, cache: Cache | None) -> None:
        self._encoded.last_hidden_state = self._encoded.last_hidden_state.index_select(0, rows)
        self._valid = self._valid.index_select(0, rows)
        if cache is not None:
            cache.content.cross_attention_cache.reorder_cache(rows)


def check_encoder_decoder(model: Any) -> None:
    """Raises a `ModelError` if the encoder does not read text, or the decoder has no start id."""
    name = type(model).__name__
    if model.main_input_name != "input_ids":
        raise ModelError(
            f"HFModel: an encoder must read input_ids, and {name}'s reads {model.main_input_name}. "
            "Write an object with a start() method: see decodekit.Model."
        )
    if type(decoder_start_id(model)) is not int:
        raise ModelError(
            f"HFModel: {name}'s decoder must have one id to start with, got {decoder_start_id(model)!r}. "
            "Set model.generation_config.decoder_start_token_id."
        )


def decoder_start_id(model: Any) -> Any:
    """The decoder's first token, as `generate` chooses it."""
    settings = getattr(model, "generation_config", None) or model.config
    start = getattr(settings, "decoder_start_token_id", None)
    return settings.bos_token_id if start is None else start


def cross_attentions(decoder: nn.Module) -> list[nn.Module]:
    """The innermost modules that can attend to another sequence than their own."""
    able = [module for module in decoder.modules() if _takes_cross_states(type(module).forward)]
    chosen = {id(module) for module in able}
    return [module for module in able if sum(id(inner) in chosen for inner in module.modules()) == 1]


@cached
def _takes_cross_states(forward: Callable[..., Any]) -> bool:
    return not inspect.signature(forward).parameters.keys().isdisjoint(_CROSS_STATES)


@contextmanager
def _rows_as_queries(modules: list[nn.Module], rows: int, batch: int) -> Iterator[None]:
    """Inside, the rows of a prompt are queries of one batch row of the cross-attention.

    It does so by temporary hooks on the attention modules, which ignore self-attention.
    """

    def fold(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if all(named.get(name) is None for name in _CROSS_STATES):
            return None
        states = args[0] if args else named["hidden_states"]
        states = states.reshape(batch, -1, states.shape[-1])  # [rows new width] -> [batch beams*new width]
        # [batch 1 1 source] -> [batch 1 beams source]; some families check the shape
        masks = {
            name: value.expand(-1, -1, states.shape[1], -1)
            for name, value in named.items()
            if isinstance(value, Tensor) and value.ndim == 4 and "mask" in name  # noqa: PLR2004
        }
        named = {**named, **masks}
        return ((states, *args[1:]), named) if args else (args, {**named, "hidden_states": states})

    def unfold(_: nn.Module, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if len(states) == rows:
            return None
        states = states.reshape(rows, -1, states.shape[-1])
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles: list[Any] = []
    try:
        for module in modules if rows != batch else ():
            handles.append(module.register_forward_pre_hook(fold, with_kwargs=True))
            handles.append(module.register_forward_hook(unfold))
        yield
    finally:
        for handle in handles:
            handle.remove()
