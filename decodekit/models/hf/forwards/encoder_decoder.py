"""Encoder-decoders: the encoder reads once a prompt, and all rows of a prompt look at what it read."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as cached
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from decodekit.accelerate.packed_linear import Packing
from decodekit.core.history import Source, rows_of
from decodekit.errors import ModelError, PromptError
from decodekit.models.hf.cache import Cache, cache_name
from decodekit.models.hf.eval_mode import eval_mode
from decodekit.models.hf.forward_lock import lock_of
from decodekit.models.hf.forward_signature import forward_signature
from decodekit.models.hf.sessions import Columns, as_given
from decodekit.models.hf.trie_cache.tree_mask import Mask

# What attention modules call the states that they look at when those are not their own text's.
_OTHER_TEXT = ("key_value_states", "encoder_hidden_states")


class ConditionedDecoder:
    """A model's decoder, with what its encoder has read for every prompt: what a session drives.

    The keys and values of the source are computed once a prompt and neither widened nor reordered: in
    the cross-attention the rows of a prompt are queries of one batch row.

    Args:
        model: An encoder-decoder of transformers.
        source: What the encoder reads, once, here.
        states: What it has made of the source, where that is known already.
        share: False for a model whose cross-attention cannot be fed so: then what was read is repeated
            for every row, once.
        packing: Of the model's linear layers.
        can_join: Whether its cache can be joined with another.
    """

    # The decoder of such a model is never told which of its tokens are padding, unless some are.
    wants_mask = False

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        source: Source,
        states: Float[Tensor, "batch source width"] | None = None,
        *,
        share: bool,
        packing: Packing,
        can_join: Callable[[], bool] = lambda: False,
    ) -> None:
        self._can_join = can_join
        self._model, self._share, self._packing = model, share, packing
        self._accepts = forward_signature(model)
        self._cache_name = cache_name(self._accepts) or "past_key_values"
        self._attentions = attentions(model.get_decoder())
        if states is not None:
            from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415 - slow to import

            self._valid, self._read = source.valid, BaseModelOutput(last_hidden_state=states.clone())
            return
        source = right_padded(source)
        self._valid = source.valid
        tokens = source.tokens.masked_fill(~source.valid, 0)  # never looked at, but must be an id
        _check_source(tokens, model)
        with lock_of(model), torch.inference_mode(), eval_mode(model), packing.active():
            self._read = model.get_encoder()(
                input_ids=tokens, attention_mask=source.valid.long(), return_dict=True
            )

    def new_cache(self, *, whole: bool = False) -> Cache:  # noqa: ARG002 - it always is
        """An empty cache: growing keys and values of the decoder's text, fixed ones of the source."""
        from transformers import DynamicCache, EncoderDecoderCache  # noqa: PLC0415 - slow to import

        return Cache(EncoderDecoderCache(DynamicCache(), DynamicCache()))

    def forward(
        self,
        tokens: Int64[Tensor, "rows columns"],
        mask: Columns | Mask | None,
        position_ids: Int64[Tensor, "rows columns"],
        *,
        cache: Cache | None,
        keep: int = 1,
    ) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        """The decoder's forward pass; rows stand prompt-major."""
        given: dict[str, Any] = {"use_cache": cache is not None}
        if mask is not None:
            given["decoder_attention_mask"] = as_given(mask)
        if "decoder_position_ids" in self._accepts:
            given["decoder_position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            given["logits_to_keep"] = keep
        if cache is not None:
            given[self._cache_name] = cache.content
        with (
            lock_of(self._model),
            torch.inference_mode(),
            eval_mode(self._model),
            self._packing.active(),
        ):
            if len(tokens) != len(self._valid) and not self._share:
                self._repeat(len(tokens) // len(self._valid), cache)
            with _rows_as_queries(self._attentions, len(tokens), len(self._valid)):
                return self._model(
                    encoder_outputs=self._read,
                    attention_mask=self._valid.long(),
                    decoder_input_ids=tokens,
                    return_dict=True,
                    **given,
                )

    @torch.inference_mode()
    def keep_prompts(self, prompts: Int64[Tensor, " kept"], batch: int, cache: Cache | None) -> None:
        """Forgets what it has read for all prompts but some."""
        each = len(self._valid) // batch  # more than one where what was read is repeated for every row
        rows = rows_of(prompts, each)
        self._read.last_hidden_state = self._read.last_hidden_state.index_select(0, rows)
        self._valid = self._valid.index_select(0, rows)
        if cache is not None:
            cache.content.cross_attention_cache.reorder_cache(rows)

    def can_join(self) -> bool:
        """Whether the model goes on right after its cache was joined with another."""
        return self._can_join()

    @torch.inference_mode()
    def join(
        self, other: "ConditionedDecoder", batches: tuple[int, int], caches: tuple[Cache, Cache]
    ) -> None:
        """Takes in what another one has read."""
        states, valid = other.read_for(batches[1], len(self._valid) // batches[0], caches[1])
        more = max(valid.shape[1] - self._valid.shape[1], 0)
        length = self._valid.shape[1] + more

        def together(mine: Tensor, theirs: Tensor, axis: int) -> Tensor:
            """Both, with zeros after the shorter sources."""
            after = (0, 0) * (mine.ndim - 1 - axis)
            wide = (nn.functional.pad(one, (*after, 0, length - one.shape[axis])) for one in (mine, theirs))
            return torch.cat(list(wide))

        self._read.last_hidden_state = together(self._read.last_hidden_state, states, 1)
        self._valid = together(self._valid, valid, 1)
        layers = (cache.content.cross_attention_cache.layers for cache in caches)
        for layer, another in zip(*layers, strict=True):
            layer.keys = together(layer.keys, another.keys, 2)
            layer.values = together(layer.values, another.values, 2)

    def read_for(
        self, batch: int, each: int, cache: Cache
    ) -> tuple[Float[Tensor, "read source width"], Bool[Tensor, "read source"]]:
        """What it has read, `each` times for every prompt, and which of it counts."""
        if len(self._valid) != batch * each:
            self._repeat(each, cache)
        return self._read.last_hidden_state, self._valid

    def _repeat(self, rows_per_prompt: int, cache: Cache | None) -> None:
        """One copy a row of all that was read: from now on every row is a prompt of its own."""
        rows = torch.arange(len(self._valid), device=self._valid.device).repeat_interleave(rows_per_prompt)
        self._read.last_hidden_state = self._read.last_hidden_state.index_select(0, rows)
        self._valid = self._valid.index_select(0, rows)
        if cache is not None:
            cache.content.cross_attention_cache.reorder_cache(rows)


def check_encoder_decoder(model: Any) -> None:  # noqa: ANN401
    """Refuses what reads something else than text, and what has nothing to start with."""
    name = type(model).__name__
    if model.main_input_name != "input_ids":
        raise ModelError(
            f"HFModel: an encoder must read text, and {name}'s reads {model.main_input_name}. "
            "Write an object with a start() method: see decodekit.Model."
        )
    if type(decoder_start_id(model)) is not int:
        raise ModelError(
            f"HFModel: {name}'s decoder must have one id to start with, got {decoder_start_id(model)!r}. "
            "Set model.generation_config.decoder_start_token_id."
        )


def decoder_start_id(model: Any) -> Any:  # noqa: ANN401 - an id, unless check_encoder_decoder says otherwise
    """What the decoder begins with, as `generate` chooses it."""
    settings = getattr(model, "generation_config", None) or model.config
    start = getattr(settings, "decoder_start_token_id", None)
    return settings.bos_token_id if start is None else start


def source_positions(config: Any) -> int:  # noqa: ANN401
    """How many positions a source may take; 0: no limit."""
    encoder = getattr(config, "encoder", None) or config
    names = ("max_encoder_position_embeddings", "max_position_embeddings")
    return max(next((most for name in names if (most := getattr(encoder, name, None))), 0), 0)


def _check_source(tokens: Int64[Tensor, "batch source"], model: Any) -> None:  # noqa: ANN401
    most = model.get_input_embeddings().weight.shape[0]
    if int(tokens.max()) >= most:  # the decoder's ids may be more
        raise PromptError(
            f"Prompt: what the encoder reads must be below the {most} ids that it knows, got "
            f"{int(tokens.max())}."
        )


def right_padded(source: Source) -> Source:
    """The same texts with their padding on the right, since encoders count positions from the left."""
    order = (~source.valid).long().argsort(stable=True, dim=1)
    return Source(source.tokens.gather(1, order), source.valid.gather(1, order))


def attentions(decoder: nn.Module) -> list[nn.Module]:
    """The innermost modules that can look at another text."""
    able = [module for module in decoder.modules() if _takes_other_text(type(module).forward)]
    chosen = {id(module) for module in able}
    return [module for module in able if sum(id(inner) in chosen for inner in module.modules()) == 1]


@cached
def _takes_other_text(forward: Callable[..., Any]) -> bool:
    return not inspect.signature(forward).parameters.keys().isdisjoint(_OTHER_TEXT)


@contextmanager
def _rows_as_queries(modules: list[nn.Module], rows: int, batch: int) -> Iterator[None]:
    """Inside, the rows of a prompt are queries of one batch row of the cross-attention.

    Hooks on the attention modules, gone after: they do nothing where a module looks at its own text.
    """

    def fold(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:  # noqa: ANN401
        if all(named.get(name) is None for name in _OTHER_TEXT):
            return None
        states = args[0] if args else named["hidden_states"]
        states = states.reshape(batch, -1, states.shape[-1])  # [rows new width] -> [batch beams*new width]
        # [batch 1 1 source] -> [batch 1 beams source], for families that insist
        masks = {
            name: value.expand(-1, -1, states.shape[1], -1)
            for name, value in named.items()
            if isinstance(value, Tensor) and value.ndim == 4 and "mask" in name  # noqa: PLR2004
        }
        named = {**named, **masks}
        return ((states, *args[1:]), named) if args else (args, {**named, "hidden_states": states})

    def unfold(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401
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
