"""Inputs of `generate`, as a prompt and special ids."""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from decodekit.compat.refusals import refuse_arguments
from decodekit.core.history import Source
from decodekit.core.prompt import Prompt
from decodekit.core.validation import plain, shown
from decodekit.errors import DecodekitError
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.model import HFModel
from decodekit.models.hf.sessions import RowSession
from decodekit.models.protocols import Logits, Model, Session

NEW_TOKENS = 20  # generate's default
# The name of a given cache in `generate`: since transformers 5.24, and before.
PAST_NAMES = ("cache", "past_key_values")


class Continuing:
    """A decoder-only model whose cache, one row per prompt, already holds the beginnings of the prompts."""

    def __init__(self, model: HFModel, past: Any) -> None:
        self._model, self._past = model, past
        self.vocabulary = model.vocabulary

    @torch.no_grad()
    def start(self, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Session, Logits]:
        """Read the part of the prompts that is not in the cache."""
        length, known = prompt.tokens.shape[1], int(self._past.get_seq_length())
        if rows_per_prompt > 1 or self._model.model.config.is_encoder_decoder:
            raise DecodekitError(
                "generate: a cache needs a decoder-only model and one sequence per prompt. Leave "
                "it out: the prompt is then computed once."
            )
        if known >= length:
            raise DecodekitError(
                f"generate: a cache must hold less than the whole prompt, got {known} columns of "
                f"{length}. Pass all ids, those in the cache included."
            )
        prompt = prompt.to(self._model.model.device)
        session = RowSession(
            self._model.forward_after(prompt), prompt.mask, capacity, Cache(self._past), known
        )
        logits = session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))
        session.widen(1)
        return session, logits


def model_after(wrapped: HFModel, config: Any, past: Any) -> Model:
    """The model, continuing from the cache `past` if there is one; without `use_cache`, it has no cache."""
    if config.use_cache is False:
        return HFModel(wrapped.model, wrapped.tokenizer, cache="none")
    return wrapped if past is None else Continuing(wrapped, past)


def merge_config(model: Any, config: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The configuration of a call, and the keyword arguments that are not fields of it.

    Values of the call's configuration replace the model's values, which replace the defaults.
    """
    lengths = (
        kwargs.get("max_length"),
        getattr(config, "max_length", None),
        model.generation_config.max_length,
    )
    merged, given = model._prepare_generation_config(config, **kwargs)  # noqa: SLF001 - transformers' own merging
    if lengths == (None,) * 3 and merged.max_new_tokens is None:
        merged.max_length = None  # marks the number of new tokens as a default
    for name in ("output_attentions", "output_hidden_states"):
        given.pop(name, None)  # also fields of the configuration, and refused there
    return plain_config(merged), given


def plain_config(config: Any) -> Any:
    """A copy with Python numbers in place of numpy and torch numbers."""
    copied = copy.deepcopy(config)
    for name, value in vars(copied).items():
        if not name.startswith("_"):
            setattr(copied, name, plain(value))
    return copied


def wrap(model: Any) -> HFModel:
    """The model as an `HFModel`, without packed weights and recordings."""
    if isinstance(model, HFModel):
        return model
    if not isinstance(model, nn.Module):
        raise DecodekitError(f"generate: model must be a transformers model, got {shown(model)}.")
    return HFModel(model, packed=False, recorded=False)  # which take longer than one call gains


def special_ids(wrapped: HFModel, config: Any) -> tuple[tuple[int, ...], int | None]:
    """The end ids and the pad id of a configuration, without ids outside the vocabulary."""
    size = wrapped.vocabulary.size or 2**63
    ends = tuple(token for token in read_end_ids(config.eos_token_id) or () if 0 <= token < size)
    pad = config.pad_token_id
    known = pad is not None and 0 <= int(pad) < size
    return ends, int(pad) if known else next(iter(ends), None)


def read_inputs(
    wrapped: HFModel, config: Any, inputs: Tensor | None, given: dict[str, Any]
) -> tuple[Prompt, Model]:
    """The prompts of a call, and the model that continues them; for any other argument, an error names it.

    Writes the limit of the call, its end ids and its pad id to `config`.
    """
    named = given.pop("input_ids", None)
    if inputs is not None and named is not None:
        raise DecodekitError("generate: inputs and input_ids mean the same, got both. Give one of them.")
    ids = inputs if named is None else named
    config.eos_token_id, config.pad_token_id = special_ids(wrapped, config)
    if ids is None:
        if config.bos_token_id is None:
            raise DecodekitError(
                "generate: without inputs a text begins with bos_token_id, but none is set. Pass inputs."
            )
        ids = torch.full((1, 1), int(config.bos_token_id))
    mask = given.pop("attention_mask", None)
    pasts = [past for name in PAST_NAMES if (past := given.pop(name, None)) is not None]
    if len(pasts) > 1:
        raise DecodekitError("generate: cache and past_key_values mean the same, got both. Give one of them.")
    if wrapped.model.config.is_encoder_decoder:
        prompt = _decoder_prompt(config, len(ids), given).with_source(Source(ids, as_mask(ids, mask)))
    else:
        prompt = Prompt(ids, _mask(ids, config.pad_token_id, config.eos_token_id) if mask is None else mask)
    refuse_arguments(given, "decodekit makes the model's other inputs itself.")
    _resolve_length(wrapped, config, prompt.tokens.shape[1])
    return prompt, model_after(wrapped, config, pasts[0] if pasts else None)


def as_mask(like: Tensor, mask: Tensor | None = None) -> Bool[Tensor, "batch length"]:
    """A mask as truth values; without one, all True."""
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.bool()


def with_mask(ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Ids and their mask, as `Prompt.of` reads them; None without ids."""
    return None if ids is None else (ids, as_mask(ids) if mask is None else mask)


def read_end_ids(ids: Any) -> tuple[int, ...] | None:
    """The `eos_token_id` of a configuration; None where it has none."""
    if ids is None:
        return None
    plain = ids.tolist() if isinstance(ids, Tensor) else ids
    return tuple(plain) if isinstance(plain, list | tuple) else (int(plain),)


def _mask(
    ids: Int64[Tensor, "batch length"], pad_id: int | None, end_ids: tuple[int, ...]
) -> Bool[Tensor, "batch length"]:
    """The mask that `generate` infers: pad ids are padding, unless the pad id is an end id."""
    if pad_id is None or pad_id in end_ids:
        return as_mask(ids)
    return ids != pad_id


def _decoder_prompt(config: Any, batch: int, given: dict[str, Any]) -> Prompt:
    """The first tokens of the decoder in an encoder-decoder."""
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if start is None:
        raise DecodekitError(
            "generate: a decoder begins with decoder_start_token_id or bos_token_id, but neither is set."
        )
    first = torch.as_tensor(start).reshape(-1, 1).expand(batch, 1)
    ids, mask = given.pop("decoder_input_ids", None), given.pop("decoder_attention_mask", None)
    if ids is None:
        return Prompt(first, as_mask(first))
    mask = as_mask(ids, mask)
    if bool((ids[:, :1] != first.to(ids.device)).all()):
        ids = torch.cat([first.to(ids.device), ids], 1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
    return Prompt(ids, mask)


def _resolve_length(wrapped: HFModel, config: Any, length: int) -> None:
    if config.max_new_tokens is None:
        most = getattr(wrapped.model.config, "max_position_embeddings", None) or length + NEW_TOKENS
        by_default = min(most, length + NEW_TOKENS)
        config.max_new_tokens = (by_default if config.max_length is None else config.max_length) - length
    if config.max_new_tokens < 1:
        raise DecodekitError(
            f"generate: the prompt's {length} columns leave no room for a new token "
            f"under max_length={config.max_length}. Use max_new_tokens."
        )
