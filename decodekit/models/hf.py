"""Transformers models."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from decodekit.errors import ModelError
from decodekit.models.base import Session
from decodekit.models.cache import Cache
from decodekit.models.probe import continues, follows_rows, ignores_padding
from decodekit.prompt import Prompt
from decodekit.vocabulary import Tokenizer, Vocabulary

# What the model's forward calls its cache; older families have their own names.
_CACHE_NAMES = ("past_key_values", "cache_params", "state")


class HFModel:
    """A decoder-only transformers model, as the loop wants it.

    A prompt is computed once and only then widened to beams or samples; only the last position's
    logits are asked for; they come as float32. The model itself is left as it was.

    Args:
        model: Any decoder-only model with a language-modelling head, on any device.
        tokenizer: Its tokenizer; without one, prompts are ids and there are no texts.

    Raises:
        ModelError: If the model is an encoder-decoder, or not a transformers model with a head.

    Example:
        >>> bundled = transformers.AutoModelForCausalLM.from_pretrained(dk.bundled_path())
        >>> dk.decode(dk.HFModel(bundled), [[1896, 702]], dk.Greedy(), max_new_tokens=2).lengths
        tensor([[2]])

    Hugging Face:
        What `generate` does with a model between two tokens.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> None:
        self.model = cast("Any", model)
        self.tokenizer = tokenizer
        name = type(model).__name__
        config: Any = getattr(model, "config", None)
        if config is None or not callable(getattr(model, "generate", None)):
            raise ModelError(
                f"HFModel: model must be a transformers model, got {name}. Any other model needs an "
                "object with a start() method: see decodekit.Model."
            )
        if config.is_encoder_decoder:
            raise ModelError(f"HFModel: model must be decoder-only, and {name} is an encoder-decoder.")
        if self.model.get_output_embeddings() is None:
            raise ModelError(
                f"HFModel: model must have a language-modelling head, and {name} has none. "
                "Load it with AutoModelForCausalLM."
            )
        self._config = config.get_text_config(decoder=True)
        self._accepts = frozenset(inspect.signature(self.model.forward).parameters)
        self._cache_name = next((name for name in _CACHE_NAMES if name in self._accepts), None)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "HFModel":
        """What `load` does: see there."""
        from safetensors import SafetensorError  # noqa: PLC0415 - needed only here
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow

        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            raise ModelError(
                f"load: device must be one that this machine has, got {str(device)!r}. Try device='cpu'."
            ) from error
        options = {"trust_remote_code": False}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                name, use_safetensors=True, dtype="auto" if dtype is None else dtype, **options
            )
        except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise ModelError(
                f"load: {str(name)!r} must be a decoder-only model in a folder, in the local cache "
                f"or on the hub, and transformers says: {str(error).splitlines()[0]} "
                "dk.load() without a name is the bundled model."
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        except (OSError, ValueError):
            tokenizer = None  # a string as a prompt is then refused, with the reason
        return cls(model.to(device).eval(), tokenizer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """End, pad and BOS ids as the generation config has them, else the model's config."""
        settings = getattr(self.model, "generation_config", None) or self._config
        end = settings.eos_token_id
        pad = settings.pad_token_id
        if pad is None and self.tokenizer is not None:
            pad = getattr(self.tokenizer, "pad_token_id", None)
        return Vocabulary(
            size=self.model.get_input_embeddings().weight.shape[0],
            end_ids=() if end is None else tuple(end) if isinstance(end, list | tuple) else (end,),
            pad_id=pad,
            bos_id=settings.bos_token_id,
            tokenizer=self.tokenizer,
        )

    @torch.no_grad()
    def start(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
        """Computes every prompt once, then widens cache and logits to `rows_per_prompt` rows each.

        Raises:
            ModelError: If prompt and continuation do not fit the model's positions, if the model's
                cache cannot be reordered and there is more than one row a prompt, or if the model
                cannot ignore left padding and there is some.
        """
        self._check_positions(prompt, capacity - prompt.tokens.shape[1])
        self._check_probe(prompt, rows_per_prompt)
        session, logits = self._open(prompt, capacity)
        rows = session.widen(rows_per_prompt)
        return session, logits.index_select(0, rows)

    @torch.no_grad()
    def score_tokens(
        self, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows new"]:
        """The log-probability of every given token, in one forward pass."""
        device, new = self.model.device, tokens.shape[1]
        prompt, tokens, lengths = prompt.to(device), tokens.to(device), lengths.to(device)
        said = torch.arange(new, device=device) < lengths[:, None]
        if new == 0:
            return torch.zeros(tokens.shape, dtype=torch.float32, device=device)
        self._check_positions(prompt, new - 1)
        self._check_probe(prompt, rows_per_prompt=1)
        # The last token predicts nothing. Junk after a row's end is to the right of all that counts.
        tokens = tokens.masked_fill(~said, 0)
        mask = torch.cat([prompt.mask, torch.ones_like(said[:, 1:])], 1)
        text = torch.cat([prompt.tokens.masked_fill(~prompt.mask, 0), tokens[:, :-1]], 1)
        logits = self.forward(text, mask, positions(mask), cache=None, keep=new).logits[:, -new:]
        # Row by row: a float32 copy of all rows' distributions at once could be the largest tensor.
        log_probs = torch.stack(
            [
                -nn.functional.cross_entropy(row.float(), row_tokens, reduction="none")
                for row, row_tokens in zip(logits, tokens, strict=True)
            ]
        )
        return log_probs.masked_fill(~said, 0.0)

    def forward(
        self,
        tokens: Int64[Tensor, "rows columns"],
        mask: Bool[Tensor, "rows length"] | None,
        position_ids: Int64[Tensor, "rows columns"],
        *,
        cache: Any,  # noqa: ANN401 - transformers' Cache, or a family's own
        keep: int = 1,
    ) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        """The model's own forward pass, with what this family of models accepts."""
        given: dict[str, Any] = {}
        if "use_cache" in self._accepts:
            given["use_cache"] = cache is not None
        if mask is not None:
            given["attention_mask"] = mask.long()
        if "position_ids" in self._accepts:
            given["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            given["logits_to_keep"] = keep
        if cache is not None and self._cache_name is not None:
            given[self._cache_name] = cache.content
        with evaluating(self.model):
            output = self.model(input_ids=tokens, return_dict=True, **given)
        if cache is not None and self._cache_name is not None:
            # A model that keeps its state elsewhere returns none; the probe finds out what that means.
            cache.content = output.get(self._cache_name, cache.content)
        return output

    def new_cache(self) -> Cache:
        """An empty cache, as this model wants it."""
        if not self.model._supports_default_dynamic_cache():  # noqa: SLF001 - as generate asks it
            return Cache(None)  # the model makes its own
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import, needed only here

        return Cache(DynamicCache(config=self._config))

    def _open(
        self, prompt: Prompt, capacity: int
    ) -> tuple["CachedSession | RecomputingSession", Float32[Tensor, "rows vocab"]]:
        """A session with one row a prompt, and the logits after the prompts."""
        prompt = prompt.to(self.model.device)
        kind = RecomputingSession if self._cache_name is None else CachedSession
        session = kind(self, prompt.mask, capacity)
        # What stands under the padding is never looked at, but must be an id the model has.
        return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))

    def _read(self, text: list[int]) -> Float32[Tensor, "length vocab"]:
        """The logits after every token of a text."""
        tokens = torch.tensor([text], device=self.model.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        output = self.forward(tokens, None, positions(mask), cache=None, keep=len(text))
        return cast("Tensor", output.logits[0].float())

    def _check_positions(self, prompt: Prompt, new_tokens: int) -> None:
        most = getattr(self._config, "max_position_embeddings", None) or 0  # 0 and -1: no limit
        longest = int(prompt.mask.sum(-1).max())
        if 0 < most < longest + new_tokens:
            raise ModelError(
                f"HFModel: prompt and continuation must fit the {most} positions of "
                f"{type(self.model).__name__}, got a prompt of {longest} tokens and "
                f"{new_tokens} new ones. Shorten the prompt, or ask for fewer tokens."
            )

    def _check_probe(self, prompt: Prompt, rows_per_prompt: int) -> None:
        name = type(self.model).__name__
        if not self._continues:
            raise ModelError(
                f"HFModel: {name} must continue a text token by token, and its logits depend on what comes "
                "later, or change when it uses its cache. Is it a causal language model (is_decoder=True)?"
            )
        if rows_per_prompt > 1 and not self._follows_rows:
            raise ModelError(
                f"HFModel: {name}'s cache cannot be reordered; use a decoder with rows_per_prompt == 1."
            )
        if not bool(prompt.mask.all()) and not self._ignores_padding:
            raise ModelError(
                f"HFModel: {name} does not ignore left padding, so a batch would not give what each "
                "prompt alone gives. Decode prompts of different lengths one by one."
            )

    @cached_property
    def _continues(self) -> bool:
        return continues(self._open, self._read, self.vocabulary.size or 1)

    @cached_property
    def _follows_rows(self) -> bool:
        return follows_rows(self._open, self._read, self.vocabulary.size or 1)

    @cached_property
    def _ignores_padding(self) -> bool:
        return ignores_padding(self._open, self._read, self.vocabulary.size or 1)

    def __repr__(self) -> str:
        where = f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device}"
        cache = "none" if self._cache_name is None else "rows"
        return f"HFModel({type(self.model).__name__}, {where}, cache={cache})"


class CachedSession:
    """A run of a transformers model with one cache entry a row (the rows cache)."""

    def __init__(self, model: HFModel, prompt_mask: Bool[Tensor, "batch length"], capacity: int) -> None:
        self._model = model
        self._cache = model.new_cache()
        batch, self._column = prompt_mask.shape
        # The mask of the whole run: after the prompt every column will hold a token.
        mask = torch.ones((batch, capacity), dtype=torch.bool, device=prompt_mask.device)
        mask[:, : self._column] = prompt_mask
        self._mask = None if bool(prompt_mask.all()) else mask
        self._positions = positions(mask)

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""
        return self._logits(tokens, slice(0, self._column))

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        if source_rows is not None:  # all rows of a prompt have the same mask and positions
            self._cache.reorder(source_rows)
        self._column += 1
        return self._logits(tokens[:, None], slice(self._column - 1, self._column))

    def widen(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""
        batch, capacity = self._positions.shape
        rows = torch.arange(batch, device=self._positions.device).repeat_interleave(rows_per_prompt)
        if rows_per_prompt > 1:
            self._positions = self._positions.index_select(0, rows)
            self._mask = None if self._mask is None else self._mask.index_select(0, rows)
        self._cache.widen(rows if rows_per_prompt > 1 else None, capacity)
        return rows

    def _logits(self, tokens: Int64[Tensor, "rows columns"], columns: slice) -> Float32[Tensor, "rows vocab"]:
        mask = None if self._mask is None else self._mask[:, : columns.stop]
        output = self._model.forward(tokens, mask, self._positions[:, columns], cache=self._cache)
        return cast("Tensor", output.logits[:, -1].float().contiguous())


class RecomputingSession:
    """A run of a model that has no cache: every step reads the whole text again."""

    def __init__(self, model: HFModel, prompt_mask: Bool[Tensor, "batch length"], capacity: int) -> None:
        del capacity  # nothing is allocated ahead
        self._model = model
        self._mask = prompt_mask
        self._tokens = torch.empty_like(prompt_mask, dtype=torch.long)

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""
        self._tokens = tokens
        return self._logits()

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        if source_rows is not None:
            self._take(source_rows)
        self._tokens = torch.cat([self._tokens, tokens[:, None]], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        return self._logits()

    def widen(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""
        rows = torch.arange(len(self._mask), device=self._mask.device).repeat_interleave(rows_per_prompt)
        self._take(rows)
        return rows

    def _take(self, rows: Int64[Tensor, " rows"]) -> None:
        self._tokens = self._tokens.index_select(0, rows)
        self._mask = self._mask.index_select(0, rows)

    def _logits(self) -> Float32[Tensor, "rows vocab"]:
        output = self._model.forward(self._tokens, self._mask, positions(self._mask), cache=None)
        return cast("Tensor", output.logits[:, -1].float().contiguous())


def positions(mask: Bool[Tensor, "rows length"]) -> Int64[Tensor, "rows length"]:
    """Each column's position in its text, counted without padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, every module's mode as it was after."""
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
