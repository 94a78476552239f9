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
from decodekit.model import Session
from decodekit.models.cache import Cache
from decodekit.models.evaluating import evaluating
from decodekit.models.probe import LONGEST, continues, follows_rows, ignores_padding
from decodekit.models.sessions import CachedSession, RecomputingSession, positions
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

    @property
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
        self._check_positions(prompt, new)
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
        cache: Cache | None,
        keep: int = 1,
    ) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        """The model's own forward pass, with what this family of models accepts."""
        given: dict[str, Any] = {}
        if "use_cache" in self._accepts:
            given["use_cache"] = cache is not None
        # A recurrent model has read its padding once the prompt is in, and wants a mask no more.
        if mask is not None and (self._cache_name != "cache_params" or mask.shape == tokens.shape):
            given["attention_mask"] = mask.long()
        if "position_ids" in self._accepts:
            given["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            given["logits_to_keep"] = keep
        if cache is not None and self._cache_name is not None:
            given[self._cache_name] = cache.content
        # Inference mode keeps no books for autograd, which is several per cent of a small model's step.
        with torch.inference_mode(), evaluating(self.model):
            output = self.model(input_ids=tokens, return_dict=True, **given)
        if cache is not None and self._cache_name is not None:
            # A model that keeps its state elsewhere returns none; the probe finds out what that means.
            cache.content = output.get(self._cache_name, cache.content)
        return output

    @property
    def wants_mask(self) -> bool:
        """Rows that have ended say the pad id, for which some models warn where there is no mask."""
        return self._config.pad_token_id is not None

    def new_cache(self) -> Cache:
        """An empty cache, as this model wants it."""
        if not self.model._supports_default_dynamic_cache():  # noqa: SLF001 - as generate asks it
            return Cache(None)  # the model makes its own
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import, needed only here

        return Cache(DynamicCache(config=self._config))

    def _open(
        self, prompt: Prompt, capacity: int
    ) -> tuple[CachedSession | RecomputingSession, Float32[Tensor, "rows vocab"]]:
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
        output = self.forward(tokens, mask, positions(mask), cache=None, keep=len(text))
        return cast("Tensor", output.logits[0].float())

    def _check_positions(self, prompt: Prompt, new_tokens: int) -> None:
        most = getattr(self._config, "max_position_embeddings", None) or 0  # 0 and -1: no limit
        longest = int(prompt.mask.sum(-1).max())
        if 0 < most < longest + new_tokens - 1:  # the last token is said, and never read
            raise ModelError(
                f"HFModel: prompt and continuation must fit the {most} positions of "
                f"{type(self.model).__name__}, got a prompt of {longest} tokens and "
                f"{new_tokens} new ones. Shorten the prompt, or ask for fewer tokens."
            )

    def _check_probe(self, prompt: Prompt, rows_per_prompt: int) -> None:
        name = type(self.model).__name__
        if 0 < (getattr(self._config, "max_position_embeddings", None) or 0) < LONGEST:
            return  # too short to ask
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
        try:
            return continues(self._open, self._read, self.vocabulary.size or 1)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"HFModel: {type(self.model).__name__} must read a text of four tokens with its cache, and "
                f"raises {type(error).__name__}: {error}"
            ) from error

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


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside, transformers loads weights without drawing a bar; after, it is as it was."""
    from transformers.utils import logging  # noqa: PLC0415 - slow, needed only here

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
