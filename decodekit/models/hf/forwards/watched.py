"""Runs of a transformers model that show more than logits: hidden states, early layers, attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.forward_lock import lock_of
from decodekit.models.hf.probes.experiments import WideningSession
from decodekit.models.hf.sessions import Forward
from decodekit.models.model_outputs import ModelOutputs, ModelOutputsSpec

# In a model of more layers, the low and the high ones are the first and the last 20.
_DEEP = 40


class WatchedForward:
    """A model's forward pass that keeps what it shows.

    Args:
        forward: The model's forward pass.
        model: The model.
        prompt: The prompts, on the model's device.
        reveal: What to show.

    Raises:
        ModelError: If the model cannot show it; attention and states are found missing in the first pass.
    """

    def __init__(self, forward: Forward, model: Any, prompt: Prompt, outputs_spec: ModelOutputsSpec) -> None:  # noqa: ANN401
        self._forward, self._model, self._prompt, self._outputs_spec = forward, model, prompt, outputs_spec
        self._layers = chosen_layers(model, outputs_spec)
        self._asked = {
            "output_hidden_states": bool(outputs_spec.hidden or self._layers),
            "output_attentions": outputs_spec.attention,
        }
        self._is_first, self._columns = True, 0
        self.model_outputs = ModelOutputs()

    def forward(
        self,
        tokens: Int64[Tensor, "rows columns"],
        mask: Any,  # noqa: ANN401 - Bool[Tensor, "rows length"] | None
        position_ids: Int64[Tensor, "rows columns"],
        *,
        cache: Cache | None,
        keep: int = 1,
    ) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        """The model's output; what it shows is in `model_outputs` after."""
        with (
            lock_of(self._model),
            _asking(self._model, self._asked),
            _eager(self._model, needed=self._outputs_spec.attention),
        ):
            output = self._forward.forward(tokens, mask, position_ids, cache=cache, keep=keep)
        self._columns = tokens.shape[1] + (0 if cache is None else self._columns)
        states = self._states(output) if self._asked["output_hidden_states"] else ()
        shows_prompt = self._outputs_spec.hidden and self._is_first
        self.model_outputs = ModelOutputs(
            hidden=_own(states[-1][:, -1]) if self._outputs_spec.hidden else None,
            prompt_hidden=self._without_padding(states[-1]) if shows_prompt else None,
            layer_logits=self._layer_logits(states, output.logits) if self._layers else None,
            attention=self._attention(output, len(tokens)) if self._outputs_spec.attention else None,
        )
        self._is_first = False
        return output

    def new_cache(self, *, whole: bool = False) -> Cache:
        """An empty cache, as the model wants it."""
        return self._forward.new_cache(whole=whole)

    @property
    def wants_mask(self) -> bool:
        """Whether to pass a mask even where there is no padding."""
        return self._forward.wants_mask

    def _states(self, output: Any) -> tuple[Float[Tensor, "rows columns width"], ...]:  # noqa: ANN401
        states: Any = output.get("decoder_hidden_states") or output.get("hidden_states")
        if not states:
            raise ModelError(
                f"HFModel: {type(self._model).__name__} must give its hidden states when asked for "
                "output_hidden_states, and gives none."
            )
        return tuple(states)

    def _without_padding(
        self, states: Float[Tensor, "batch length width"]
    ) -> Float32[Tensor, "batch length width"]:
        return _own(states).masked_fill(~self._prompt.mask[..., None], 0.0)

    def _layer_logits(
        self,
        states: tuple[Float[Tensor, "rows columns width"], ...],
        logits: Float[Tensor, "rows kept vocab"],
    ) -> Float32[Tensor, "rows layers vocab"]:
        head, last = self._model.get_output_embeddings(), len(states) - 1
        try:
            with torch.inference_mode():
                read = [
                    logits[:, -1] if layer == last else head(states[layer][:, -1]) for layer in self._layers
                ]
        except RuntimeError as error:
            raise ModelError(
                f"HFModel: {type(self._model).__name__}'s head must read the states of layers "
                f"{self._layers}, and cannot: {error}"
            ) from error
        return torch.stack([_own(one) for one in read], 1)

    def _attention(self, output: Any, rows: int) -> Float32[Tensor, "rows context"]:  # noqa: ANN401
        source = self._prompt.source
        shown = [
            weights
            for weights in output.get("attentions" if source is None else "cross_attentions") or ()
            if weights is not None and weights.ndim == 4  # noqa: PLR2004 - a recurrent layer's are not
        ]
        if not shown:
            raise ModelError(
                f"HFModel: {type(self._model).__name__} must give its attention when asked for "
                "output_attentions, and gives none. Recurrent models have none."
            )
        weights = shown[-1]
        if source is None:
            return self._to_prompt(_own(weights[:, :, -1].mean(1)))
        if len(weights) != rows:  # rows as queries: [batch heads beams source], one new token each
            weights = weights.transpose(1, 2).flatten(0, 1)[:, :, None]
        attention = _own(weights[:, :, -1].mean(1))
        places, valid = torch.arange(source.valid.shape[1], device=attention.device), source.valid
        if self._prompt.states is None:  # the encoder has read its padding on the right
            places = (~valid).long().argsort(stable=True, dim=1).argsort(dim=1)
        beams = rows // len(valid)
        places = places.expand_as(valid).repeat_interleave(beams, 0)
        return attention.gather(1, places).masked_fill(~valid.repeat_interleave(beams, 0), 0.0)

    def _to_prompt(self, attention: Float32[Tensor, "rows columns"]) -> Float32[Tensor, "rows length"]:
        mask = self._prompt.mask
        behind = self._columns - attention.shape[1]  # columns that a window has left behind
        attention = nn.functional.pad(attention, (behind, 0))[:, : mask.shape[1]]
        return attention.masked_fill(~mask.repeat_interleave(len(attention) // len(mask), 0), 0.0)


class WatchedSession:
    """A run that shows, with its newest logits, what its model has shown for them.

    Args:
        session: The run, one row a prompt.
        watched: Its forward pass.
        rows_per_prompt: Rows that it is widened to, here.
    """

    def __init__(self, session: WideningSession, watched: WatchedForward, rows_per_prompt: int) -> None:
        self._session, self._watched = session, watched
        rows = session.widen(rows_per_prompt)
        first = watched.model_outputs
        widened = [part if part is None else part.index_select(0, rows) for part in first]
        self.model_outputs = ModelOutputs(*widened)._replace(prompt_hidden=first.prompt_hidden)

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        logits = self._session.advance(tokens, source_rows)
        self.model_outputs = self._watched.model_outputs
        return logits


def chosen_layers(model: Any, outputs_spec: ModelOutputsSpec) -> tuple[int, ...]:  # noqa: ANN401 - a model of transformers
    """The layers that are asked for, by their numbers.

    Raises:
        ModelError: If the model has fewer layers, or is an encoder-decoder.
    """
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
    # A tied embedding read by the head that it is gives its own token back, and the layers next to it nearly.
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    first = min(2, last - 1) if is_tied else 0
    return tuple(range(first, 20 if last > _DEEP else last // 2, 2)) or (first,)


@contextmanager
def _asking(model: nn.Module, asked: dict[str, bool]) -> Iterator[None]:
    """Inside, the model's forward pass is asked for more than its callers ask for."""
    wanted = {name: True for name, is_asked in asked.items() if is_asked}
    handle = model.register_forward_pre_hook(
        lambda _, args, named: (args, {**named, **wanted}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _eager(model: Any, *, needed: bool) -> Iterator[None]:  # noqa: ANN401 - a model of transformers
    """Inside, attention is computed in the way that has weights to show; after, as it was."""
    before = [(config, config._attn_implementation) for config in (_configs(model) if needed else ())]  # noqa: SLF001
    if any(kind != "eager" for _, kind in before) and not model._can_set_attn_implementation():  # noqa: SLF001
        raise ModelError(
            f"HFModel: {type(model).__name__} must be loaded with attn_implementation='eager' to show its "
            "attention, since it cannot change to it."
        )
    try:
        for config, _ in before:  # not set_attn_implementation, which has no way back for parts of a model
            config._attn_implementation_internal = "eager"  # noqa: SLF001
        yield
    finally:
        for config, kind in before:
            config._attn_implementation_internal = kind  # noqa: SLF001


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration that some part of the model reads how to attend from, once."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return list({id(config): config for config in configs if hasattr(config, "sub_configs")}.values())


def _own(tensor: Float[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """The same numbers in single precision, made outside inference mode: free to be used."""
    return tensor.to(torch.float32, copy=True)
