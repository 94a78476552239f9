"""Hidden states, early-layer logits and attention of transformers models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from typing_extensions import override

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.forwards.forward import AnyMask, Forward, forward_lock
from decodekit.models.hf.sessions import WidenableSession
from decodekit.models.protocols import Ids, Logits, ModelOutputs, ModelOutputsSpec, PerRow, SessionWithOutputs

# In a model of more layers, the low and the high layers are the first and the last 20.
_DEEP = 40


class ForwardWithOutputs(Forward):
    """A model's forward pass that keeps the requested outputs; raises a `ModelError` without any."""

    def __init__(self, forward: Forward, model: Any, prompt: Prompt, outputs_spec: ModelOutputsSpec) -> None:
        self._forward, self._model, self._prompt, self._outputs_spec = forward, model, prompt, outputs_spec
        self._layers = layer_numbers(model, outputs_spec)
        self._needs_states = bool(outputs_spec.hidden or self._layers)
        self._is_first, self._columns = True, 0
        self.model_outputs = ModelOutputs()

    @override
    def forward(
        self, tokens: Ids, mask: AnyMask, position_ids: Ids, *, cache: Cache | None, keep: int = 1
    ) -> Any:
        spec = self._outputs_spec
        options = {"output_hidden_states": self._needs_states, "output_attentions": spec.attention}
        with (
            forward_lock(self._model),
            _forward_options(self._model, options),
            _eager(self._model, needed=spec.attention),
        ):
            output = self._forward.forward(tokens, mask, position_ids, cache=cache, keep=keep)
        self._columns = tokens.shape[1] + (0 if cache is None else self._columns)
        states = self._states(output) if self._needs_states else ()
        prompt_hidden = None
        if spec.hidden and self._is_first:
            prompt_hidden = _float32_copy(states[-1]).masked_fill(~self._prompt.mask[..., None], 0.0)
        self.model_outputs = ModelOutputs(
            hidden=_float32_copy(states[-1][:, -1]) if spec.hidden else None,
            prompt_hidden=prompt_hidden,
            layer_logits=self._layer_logits(states, output.logits) if self._layers else None,
            attention=self._attention(output, len(tokens)) if spec.attention else None,
        )
        self._is_first = False
        return output

    @override
    def new_cache(self, *, whole: bool = False) -> Cache:
        return self._forward.new_cache(whole=whole)

    @property
    @override
    def wants_mask(self) -> bool:
        return self._forward.wants_mask

    def _states(self, output: Any) -> tuple[Float[Tensor, "rows columns width"], ...]:
        states: Any = output.get("decoder_hidden_states") or output.get("hidden_states")
        if not states:
            raise ModelError(
                f"HFModel: {type(self._model).__name__} returns no hidden states with "
                "output_hidden_states=True. Use a decoder without them."
            )
        return tuple(states)

    def _layer_logits(
        self,
        states: tuple[Float[Tensor, "rows columns width"], ...],
        logits: Float[Tensor, "rows kept vocab"],
    ) -> Float32[Tensor, "rows layers vocab"]:
        head, last = self._model.get_output_embeddings(), len(states) - 1
        try:
            with torch.inference_mode():
                layer_logits = [
                    logits[:, -1] if layer == last else head(states[layer][:, -1]) for layer in self._layers
                ]
        except RuntimeError as error:
            raise ModelError(
                f"HFModel: {type(self._model).__name__}'s head must read the states of layers "
                f"{self._layers}, and cannot: {error}"
            ) from error
        return torch.stack([_float32_copy(one) for one in layer_logits], 1)

    def _attention(self, output: Any, rows: int) -> Float32[Tensor, "rows context"]:
        source = self._prompt.source
        attentions = [
            weights
            for weights in output.get("attentions" if source is None else "cross_attentions") or ()
            if weights is not None and weights.ndim == 4  # noqa: PLR2004 - a recurrent layer's are not
        ]
        if not attentions:
            raise ModelError(
                f"HFModel: {type(self._model).__name__} returns no attention with "
                "output_attentions=True. Recurrent models have none."
            )
        weights = attentions[-1]
        if source is None:
            return self._to_prompt(_float32_copy(weights[:, :, -1].mean(1)))
        if len(weights) != rows:  # rows as queries: [batch heads beams source], one new token each
            weights = weights.transpose(1, 2).flatten(0, 1)[:, :, None]
        attention = _float32_copy(weights[:, :, -1].mean(1))
        columns, valid = torch.arange(source.valid.shape[1], device=attention.device), source.valid
        if self._prompt.states is None:  # the encoder reads with the padding on the right
            columns = (~valid).long().argsort(stable=True, dim=1).argsort(dim=1)
        beams = rows // len(valid)
        columns = columns.expand_as(valid).repeat_interleave(beams, 0)
        return attention.gather(1, columns).masked_fill(~valid.repeat_interleave(beams, 0), 0.0)

    def _to_prompt(self, attention: Float32[Tensor, "rows columns"]) -> Float32[Tensor, "rows length"]:
        mask = self._prompt.mask
        dropped = self._columns - attention.shape[1]  # columns outside a sliding window
        attention = nn.functional.pad(attention, (dropped, 0))[:, : mask.shape[1]]
        return attention.masked_fill(~mask.repeat_interleave(len(attention) // len(mask), 0), 0.0)


class HFSessionWithOutputs(SessionWithOutputs):
    """A session that returns the requested outputs with its newest logits."""

    def __init__(self, session: WidenableSession, forward: ForwardWithOutputs, rows_per_prompt: int) -> None:
        self._session, self._forward = session, forward
        rows = session.widen(rows_per_prompt)
        first = forward.model_outputs
        widened = [part if part is None else part.index_select(0, rows) for part in first]
        self._outputs = ModelOutputs(*widened)._replace(prompt_hidden=first.prompt_hidden)

    @property
    @override
    def model_outputs(self) -> ModelOutputs:
        return self._outputs

    @override
    def advance(self, tokens: PerRow, source_rows: PerRow | None) -> Logits:
        logits = self._session.advance(tokens, source_rows)
        self._outputs = self._forward.model_outputs
        return logits


def layer_numbers(model: Any, outputs_spec: ModelOutputsSpec) -> tuple[int, ...]:
    """Numbers of the requested layers; raises a `ModelError` if the model does not have them."""
    if not outputs_spec.layers:
        return ()
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"HFModel: a head can read early layers of decoder-only models, and {name} is an encoder-decoder."
        )
    last = model.config.get_text_config(decoder=True).num_hidden_layers
    if isinstance(outputs_spec.layers, tuple):
        if max(outputs_spec.layers) > last:
            raise ModelError(
                f"HFModel: layers must be at most {last}, which {name} has, got {outputs_spec.layers}."
            )
        return outputs_spec.layers
    if outputs_spec.layers == "high":
        return tuple(range(last - 20 if last > _DEEP else last // 2, last, 2))
    # With tied embeddings the head returns the input token for layer 0, and nearly so for the next layers.
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    first = min(2, last - 1) if is_tied else 0
    return tuple(range(first, 20 if last > _DEEP else last // 2, 2)) or (first,)


@contextmanager
def _forward_options(model: nn.Module, options: dict[str, bool]) -> Iterator[None]:
    """Inside, the model's forward gets these options, if they are True."""
    enabled = {name: True for name, is_enabled in options.items() if is_enabled}
    handle = model.register_forward_pre_hook(
        lambda _, args, named: (args, {**named, **enabled}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _eager(model: Any, *, needed: bool) -> Iterator[None]:
    """Computes attention eagerly, which returns its weights; restores the implementation afterwards."""
    before = [(config, config._attn_implementation) for config in (_configs(model) if needed else ())]  # noqa: SLF001
    if any(kind != "eager" for _, kind in before) and not model._can_set_attn_implementation():  # noqa: SLF001
        raise ModelError(
            f"HFModel: {type(model).__name__} must be loaded with attn_implementation='eager' to show its "
            "attention, since it cannot switch."
        )
    try:
        for config, _ in before:  # set_attn_implementation could not be undone for parts of a model
            config._attn_implementation_internal = "eager"  # noqa: SLF001
        yield
    finally:
        for config, kind in before:
            config._attn_implementation_internal = kind  # noqa: SLF001


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration from which some part of the model reads its attention implementation."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return list({id(config): config for config in configs if hasattr(config, "sub_configs")}.values())


def _float32_copy(tensor: Float[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """A float32 copy, made outside inference mode so that it can be used freely."""
    return tensor.to(torch.float32, copy=True)
