"""Transformers models."""

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, cast

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from typing_extensions import override

from decodekit.accelerate.packed_linear import Packing
from decodekit.core.prompt import Prompt
from decodekit.core.validation import CheckedOptions, is_of_transformers, shown
from decodekit.core.vocabulary import Tokenizer, Vocabulary
from decodekit.errors import ModelError
from decodekit.models.hf.cache import cache_name
from decodekit.models.hf.forwards.compiled import Compiled
from decodekit.models.hf.forwards.encoder_decoder import (
    ConditionedDecoder,
    check_encoder_decoder,
    decoder_start_id,
)
from decodekit.models.hf.forwards.first_layers import first_layers
from decodekit.models.hf.forwards.forward import (
    DecoderOnly,
    Forward,
    find_packable,
    forward_lock,
    forward_signature,
    token_log_probs,
    unwrapped,
)
from decodekit.models.hf.forwards.model_outputs import ForwardWithOutputs, HFSessionWithOutputs
from decodekit.models.hf.forwards.pass_recorder import PassRecorder
from decodekit.models.hf.probes.capabilities import Capabilities, ProbeSequences
from decodekit.models.hf.probes.trie_support import TrieSupport
from decodekit.models.hf.sessions import start_hf_session
from decodekit.models.hf.verifying_sessions import Verification
from decodekit.models.protocols import (
    CapturableModel,
    EarlyExitModel,
    Logits,
    ModelOutputsSpec,
    ModelWithOutputs,
    ModelWithVocabulary,
    PerRow,
    ScoringModel,
    Session,
    SessionWithOutputs,
    VerifyingModel,
    VerifyingSession,
)


class HFModel(
    CheckedOptions,
    ModelWithVocabulary,
    ScoringModel,
    ModelWithOutputs,
    CapturableModel,
    VerifyingModel,
    EarlyExitModel,
):
    """A transformers model, decoder-only or encoder-decoder.

    Each prompt is computed once, and then widened to beams or samples. Passes compute the logits of the last
    position only, returned as float32. The model itself is left unchanged.

    The encoder of an encoder-decoder (T5, BART, Marian and the like) reads each prompt once; the decoder
    begins with the model's start id, or with the tokens of a `Prompt` that has a `source`. If a numerical
    probe finds that the attention of the model allows it, all rows of a prompt share one copy of the source's
    keys and values, which is never widened or reordered.

    Args:
        model: Any model with a language-modelling head that reads text, on any device.
        tokenizer: Its tokenizer; without one, prompts are ids and results have no texts.
        cache: `"trie"` keeps one entry per prompt, in which the rows of the prompt are branches; `"rows"`
            keeps one per row; `"none"` reads the whole sequences again at every step. `"auto"` uses the first
            of these that a numerical probe allows; with one row per prompt, the trie only if recorded.
        packed: Copies linear layers in the layout in which oneDNN multiplies few rows fastest, for float32 on
            the CPU: the same tokens, for GPT-2 with five prompts in 0.7 of the time. True copies all layers;
            `"auto"` the layers that gain, if memory allows; False none. Also fuses a GELU of several
            operations into one operation. `repr` shows the memory of the copies. The model is left unchanged.
        recorded: Records a pass over a trie and replays its operations without the model's Python code, which
            is faster. True always; `"auto"` on the CPU, in runs of at least 32 tokens, if all modules are
            transformers' and torch's own and none has a hook; False never. `repr` shows the choice and its
            reason. On a GPU see `decode(capture=True)`.
        compiled: Compiles passes with `torch.compile`, over a trie, once per combination of shapes: True with
            torch's default backend, or the name of one. `repr` shows the time it took. False: never.

    Raises:
        ModelError: If it is not a transformers model with a head, or an encoder-decoder that does not read
            text, or whose decoder has no start id. Also for several rows per prompt with `cache="trie"` if
            the model does not support it; with `packed=True` if nothing can be packed; with `recorded=True`
            or `compiled` if the model has hooks or cannot run over a trie.

    Example:
        >>> bundled = transformers.AutoModelForCausalLM.from_pretrained(dk.bundled_path())
        >>> dk.decode(dk.HFModel(bundled), [[1896, 702]], dk.Greedy(), max_new_tokens=2).lengths
        tensor([[2]])

    Hugging Face:
        The part of `generate` between two tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        *,
        cache: Literal["auto", "trie", "rows", "none"] = "auto",
        packed: bool | Literal["auto"] = "auto",
        recorded: bool | Literal["auto"] = "auto",
        compiled: bool | str = False,
    ) -> None:
        self.model = cast("Any", model)
        self.tokenizer = tokenizer
        _check_model(self.model)
        if cache not in {"auto", "trie", "rows", "none"}:
            raise ModelError(f"HFModel: cache must be 'auto', 'trie', 'rows' or 'none', got {shown(cache)}.")
        self._config = self.model.config.get_text_config(decoder=True)
        self._cache = cache
        self._options: dict[str, Any] = {"packed": packed, "recorded": recorded, "compiled": compiled}
        self._packing = Packing(self.model, packed, find_packable)
        self._early_exits: dict[int, HFModel] = {}
        self._cache_name = None if cache == "none" else cache_name(forward_signature(self.model))
        self._capabilities = Capabilities(
            model=self.model,
            config=self._config,
            forward_after=self.forward_after,
            cached=self._cache_name is not None,
            sequences=ProbeSequences.of(
                self.vocabulary.size or 1, self._config.pad_token_id, self.model.dtype
            ),
        )
        self._trie_support = TrieSupport(
            capabilities=self._capabilities,
            may_spread=cache == "auto",
            recorder=PassRecorder(self.model, self._config, recorded, cache, compiled=compiled is not False),
            compiled=None if compiled is False else Compiled(self.model, compiled),
        )
        self._verification = Verification(self._capabilities)

    @property
    @override
    def vocabulary(self) -> Vocabulary:
        # End, pad, BOS and start ids come from the generation config, if there is one.
        settings = getattr(self.model, "generation_config", None) or self._config
        end, pad = settings.eos_token_id, settings.pad_token_id
        if pad is None and self.tokenizer is not None:
            pad = getattr(self.tokenizer, "pad_token_id", None)
        start = decoder_start_id(self.model) if self.model.config.is_encoder_decoder else None
        size = self.model.get_input_embeddings().weight.shape[0]
        if start is not None:  # encoder and decoder may have different ids
            size = max(size, self.model.get_output_embeddings().weight.shape[0])
        return Vocabulary(
            size=size,
            end_ids=() if end is None else tuple(end) if isinstance(end, list | tuple) else (end,),
            pad_id=pad,
            bos_id=settings.bos_token_id,
            decoder_start_id=start,
            tokenizer=self.tokenizer,
        )

    @torch.no_grad()
    def start(self, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Session, Logits]:
        """Computes every prompt once, then widens cache and logits to `rows_per_prompt` rows each.

        Raises:
            ModelError: If prompt and continuation do not fit the model's positions, if the model's
                cache cannot be reordered and there are several rows per prompt, or if the model
                cannot ignore left padding and there is some.
        """
        self._prepare(prompt, rows_per_prompt, new := capacity - prompt.tokens.shape[1])
        recorded = self._trie_support.records(new, rows_per_prompt)
        if recorded or (rows_per_prompt > 1 and self._trie_support.is_used()):
            return self._trie_support.start(prompt, rows_per_prompt, capacity, recorded=recorded)
        share = rows_per_prompt > 1 and self._capabilities.shares_source
        session, logits = self._capabilities.start(prompt, capacity, share=share)
        rows = session.widen(rows_per_prompt)
        return session, logits.index_select(0, rows)

    @torch.no_grad()
    def start_captured(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Logits]:
        """The same as `start`, with recorded and replayed passes: on a GPU as CUDA graphs.

        Raises:
            ModelError: For the reasons of `start`, or if the model cannot be recorded.
        """
        self._prepare(prompt, rows_per_prompt, capacity - prompt.tokens.shape[1])
        self._trie_support.check_recorded()
        return self._trie_support.start(prompt, rows_per_prompt, capacity, recorded="must")

    @torch.no_grad()
    def start_with_outputs(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: ModelOutputsSpec
    ) -> tuple[SessionWithOutputs, Logits]:
        """The same as `start`, with hidden states, early layers or attention besides the logits.

        Raises:
            ModelError: For the reasons of `start`, if the model lacks the requested outputs, or with
                `cache="trie"`.
        """
        self._trie_support.check_rows("returning hidden states, early layers or attention")
        self._prepare(prompt, rows_per_prompt, capacity - prompt.tokens.shape[1])
        prompt = prompt.to(self.model.device)
        share = rows_per_prompt > 1 and self._capabilities.shares_source
        plain = self.forward_after(prompt, share=share)
        forward = ForwardWithOutputs(plain, self.model, prompt, outputs_spec)
        session, logits = start_hf_session(forward, prompt, capacity, cached=self._cache_name is not None)
        with_outputs = HFSessionWithOutputs(session, forward, rows_per_prompt)
        return with_outputs, logits.repeat_interleave(rows_per_prompt, 0)

    @torch.no_grad()
    def start_verifying(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[VerifyingSession, Logits]:
        """The same as `start`, with a session whose rows read several tokens per pass and can discard them.

        Raises:
            ModelError: For the reasons of `start`, if the model's cache cannot discard tokens, or with
                `cache="trie"`.
        """
        self._trie_support.check_rows("verifying several tokens per pass")
        self._prepare(prompt, 1, capacity - prompt.tokens.shape[1])
        return self._verification.start(prompt, rows_per_prompt, capacity)

    def early_exit(self, layers: int) -> "HFModel":
        """The model made of the first layers, the last normalization and the head, with shared weights.

        Raises:
            ModelError: If the model is an encoder-decoder or cannot be cut, or has at most `layers` layers.
        """
        if layers not in self._early_exits:  # stored, so that each is probed only once
            cut = first_layers(self.model, layers)
            self._early_exits[layers] = HFModel(cut, self.tokenizer, cache=self._cache, **self._options)
        return self._early_exits[layers]

    @override
    @torch.no_grad()
    def score_tokens(
        self, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: PerRow
    ) -> Float32[Tensor, "rows new"]:
        device, new = self.model.device, tokens.shape[1]
        prompt, tokens, lengths = prompt.to(device), tokens.to(device), lengths.to(device)
        if new == 0:
            return torch.zeros(tokens.shape, dtype=torch.float32, device=device)
        self._prepare(prompt, 1, new)
        return token_log_probs(self.forward_after(prompt), prompt, tokens, lengths)

    def forward_after(
        self, prompt: Prompt, *, share: bool = False, compiled: Callable[..., Any] | None = None
    ) -> Forward:
        """The forward pass for a session; an encoder reads its source first."""

        def can_merge() -> bool:
            return self._capabilities.merges_rows

        if prompt.source is None:
            return DecoderOnly(self.model, self._config, self._cache_name, self._packing, can_merge, compiled)
        source, states = prompt.source, prompt.states
        return ConditionedDecoder(
            self.model, source, states, share=share, packing=self._packing, can_merge=can_merge
        )

    def _prepare(self, prompt: Prompt, rows_per_prompt: int, new: int) -> None:
        self._capabilities.check_positions(prompt, new)
        self._capabilities.check(prompt, rows_per_prompt)
        with forward_lock(self.model):  # another thread's pass may have patched forwards
            self._packing.refresh()

    def __repr__(self) -> str:
        place = f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device}"
        cache = "none" if self._cache_name is None else self._trie_support.describe(self._cache)
        source = f", source={self._capabilities.source_path}" if self._capabilities.reads_source else ""
        packed = f", packed={self._packing}" if self._packing.bytes else ""
        recorded = self._trie_support.describe_recorded()
        return f"HFModel({self._capabilities.name}, {place}, cache={cache}{source}{packed}{recorded})"


def model_advice(model: object) -> str | None:
    """Advice on an argument that is not a model; None without any."""
    if isinstance(model, type):
        return f"Pass an object: {model.__name__}(...)."
    if isinstance(model, str | PathLike):
        return f"Use dk.load({str(model)!r})."
    if is_of_transformers(model, "PreTrainedConfig"):
        return "A configuration has no weights. Use dk.load(name), or AutoModelForCausalLM."
    if is_of_transformers(model, "PreTrainedTokenizer"):
        return "A tokenizer is the second argument. Use dk.HFModel(model, tokenizer)."
    return None


def _check_model(model: Any) -> None:
    """Raises a `ModelError` unless it is a transformers model with weights and a language-modelling head."""
    name = type(unwrapped(model)).__name__
    if advice := model_advice(model):
        raise ModelError(f"HFModel: model must be a transformers model, got {shown(model)}. {advice}")
    generates = callable(getattr(model, "generate", None))
    if getattr(model, "config", None) is None or not (
        generates or is_of_transformers(unwrapped(model), "PreTrainedModel")
    ):
        raise ModelError(
            f"HFModel: model must be a transformers model, got {name}. Any other model needs an "
            "object with a start() method: see decodekit.Model."
        )
    if name.endswith("ForMaskedLM"):
        raise ModelError(
            f"HFModel: model must continue text, got {name}, which fills gaps in a text. "
            "Load a model with AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    if model.config.is_encoder_decoder and generates:
        check_encoder_decoder(model)
    if not generates or model.get_output_embeddings() is None:
        raise ModelError(
            f"HFModel: model must have a language-modelling head, got {name}. "
            "Load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    # Offloaded weights are on the meta device too, and are loaded during a pass.
    if not hasattr(model, "hf_device_map") and any(weights.is_meta for weights in model.parameters()):
        raise ModelError(
            f"HFModel: model must have weights, got {name} on the meta device, which has no weights. "
            "Load them with from_pretrained or dk.load(name)."
        )
