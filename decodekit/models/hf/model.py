"""Transformers models."""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from decodekit.accelerate.packed_linear import Packing
from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Tokenizer, Vocabulary
from decodekit.errors import ModelError
from decodekit.models.hf.cache import cache_name
from decodekit.models.hf.forward_lock import lock_of
from decodekit.models.hf.forward_signature import forward_signature, inner
from decodekit.models.hf.forwards.compiled import Compiled
from decodekit.models.hf.forwards.decoder_only import DecoderOnly
from decodekit.models.hf.forwards.encoder_decoder import (
    ConditionedDecoder,
    check_encoder_decoder,
    source_positions,
)
from decodekit.models.hf.forwards.first_layers import first_layers
from decodekit.models.hf.forwards.pass_recorder import PassRecorder
from decodekit.models.hf.forwards.teacher_forcing import teacher_forced
from decodekit.models.hf.forwards.watched import WatchedForward, WatchedSession
from decodekit.models.hf.packable import find_packable
from decodekit.models.hf.pretrained import load_pretrained
from decodekit.models.hf.probes.capabilities import Capabilities, most_positions
from decodekit.models.hf.probes.experiments import Texts, after
from decodekit.models.hf.probes.trie_support import TrieSupport
from decodekit.models.hf.probes.verification import Verification
from decodekit.models.hf.sessions import (
    CachedSession,
    Forward,
    RecomputingSession,
    positions,
    prefilled,
)
from decodekit.models.hf.vocabulary import read_vocabulary
from decodekit.models.model_outputs import ModelOutputsSpec
from decodekit.models.protocols import Session, SessionWithOutputs, VerifyingSession


class HFModel:
    """A transformers model, decoder-only or encoder-decoder, as the loop wants it.

    A prompt is computed once and only then widened to beams or samples; only the last position's
    logits are asked for; they come as float32. The model itself is left as it was.

    To an encoder-decoder (T5, BART, Marian and the like) a prompt is what its encoder reads, once; the
    decoder begins with the model's start id, or with what a `Prompt` with a `source` says. Where the
    family's attention allows it, which a small numerical test finds out, all rows of a prompt look at
    one copy of the source's keys and values, which is never widened or reordered.

    Args:
        model: Any model with a language-modelling head that reads text, on any device.
        tokenizer: Its tokenizer; without one, prompts are ids and there are no texts.
        cache: `"trie"` keeps one entry a prompt, of which the rows of the prompt are branches; `"rows"`
            keeps one a row; `"none"` reads the whole text again at every step. `"auto"` takes the first
            of these that the model can, which a small numerical test finds out. `repr` says which.
        packed: Copies linear layers as oneDNN multiplies few rows fastest, for float32 on the CPU: the same
            tokens, and up to five times as fast. True copies all; `"auto"` those for which it pays, if
            memory allows; False none. Also does a GELU that is written out in one operation. `repr` says what
            the copies take. The model is left as it was.
        recorded: Records a pass and replays its operations without the model's Python, over a trie: sooner
            done. True always; `"auto"` on the CPU, in runs of 32 tokens and more, where all modules are
            transformers' and torch's own and none has a hook; False never. `repr` says whether, and why not.
            On a GPU see `decode(capture=True)`.
        compiled: Compiles passes with `torch.compile`, over a trie, once for all shapes that come: True with
            torch's own backend, or the name of one. `repr` says how long it took. False: not at all.

    Raises:
        ModelError: If it is not a transformers model with a head, or an encoder-decoder that reads
            something else than text, or whose decoder has no id to start with. Where several rows of a
            prompt are run with `cache="trie"` and the model cannot. With `packed=True`, if there is
            nothing to pack. With `recorded=True` or `compiled`, if the model has hooks or cannot run over a
            trie.

    Example:
        >>> bundled = transformers.AutoModelForCausalLM.from_pretrained(dk.bundled_path())
        >>> dk.decode(dk.HFModel(bundled), [[1896, 702]], dk.Greedy(), max_new_tokens=2).lengths
        tensor([[2]])

    Hugging Face:
        What `generate` does with a model between two tokens.
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
        name = type(inner(model)).__name__
        config: Any = getattr(model, "config", None)
        if config is None or not callable(getattr(model, "generate", None)):
            raise ModelError(
                f"HFModel: model must be a transformers model, got {name}. Any other model needs an "
                "object with a start() method: see decodekit.Model."
            )
        if config.is_encoder_decoder:
            check_encoder_decoder(self.model)
        if self.model.get_output_embeddings() is None:
            raise ModelError(
                f"HFModel: model must have a language-modelling head, and {name} has none. "
                "Load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM."
            )
        self._config = config.get_text_config(decoder=True)
        if cache not in {"auto", "trie", "rows", "none"}:
            raise ModelError(f"HFModel: cache must be 'auto', 'trie', 'rows' or 'none', got {cache!r:.80}.")
        self._cache = cache
        self._options: dict[str, Any] = {"packed": packed, "recorded": recorded, "compiled": compiled}
        self._packing = Packing(self.model, packed, find_packable)
        self._shallow: dict[int, HFModel] = {}
        accepts = forward_signature(self.model)
        self._cache_name = None if cache == "none" else cache_name(accepts)
        self._capabilities = Capabilities(
            name=name,
            texts=Texts.of(self.vocabulary.size or 1, self._config.pad_token_id, self.model.dtype),
            positions=most_positions(self._config),
            source_positions=source_positions(config) if config.is_encoder_decoder else 0,
            reads_source=config.is_encoder_decoder,
            run=self._open,
            read=self._read,
        )
        self._branching = TrieSupport(
            capabilities=self._capabilities,
            model=self.model,
            config=self._config,
            forward_after=self.forward_after,
            cached=self._cache_name is not None,
            may_spread=cache == "auto",
            recorder=PassRecorder(self.model, self._config, recorded, cache, must=compiled is not False),
            compiled=None if compiled is False else Compiled(self.model, compiled),
        )
        self._verification = Verification(
            self._capabilities, self._cache_name, self.model, self.forward_after
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "HFModel":
        """What `load` does: see there."""
        return cls(*load_pretrained(name, device=device, dtype=dtype))

    @property
    def vocabulary(self) -> Vocabulary:
        """End, pad, BOS and start ids as the generation config has them, else the model's config."""
        return read_vocabulary(self.model, self._config, self.tokenizer)

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
        self._prepare(prompt, rows_per_prompt, new := capacity - prompt.tokens.shape[1])
        recorded = self._branching.records(new, rows_per_prompt)
        if recorded or (rows_per_prompt > 1 and self._branching.is_used()):
            return self._branching.start(prompt, rows_per_prompt, capacity, recorded=recorded)
        share = rows_per_prompt > 1 and self._capabilities.shares_source
        session, logits = self._open(prompt, capacity, share=share)
        rows = session.widen(rows_per_prompt)
        return session, logits.index_select(0, rows)

    @torch.no_grad()
    def start_captured(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
        """The same, with a session whose passes are recorded and replayed: on a GPU as CUDA graphs.

        Raises:
            ModelError: As `start` does, or if the model cannot be recorded.
        """
        self._prepare(prompt, rows_per_prompt, capacity - prompt.tokens.shape[1])
        self._branching.check_recorded()
        return self._branching.start(prompt, rows_per_prompt, capacity, recorded="must")

    @torch.no_grad()
    def start_with_outputs(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: ModelOutputsSpec
    ) -> tuple[SessionWithOutputs, Float32[Tensor, "rows vocab"]]:
        """The same, with a session that shows hidden states, early layers or attention.

        Raises:
            ModelError: As `start` does, or if the model cannot show what is asked for; with `cache="trie"`.
        """
        self._branching.check_rows("showing hidden states, early layers or attention")
        self._prepare(prompt, rows_per_prompt, capacity - prompt.tokens.shape[1])
        prompt = prompt.to(self.model.device)
        share = rows_per_prompt > 1 and self._capabilities.shares_source
        watched = WatchedForward(self.forward_after(prompt, share=share), self.model, prompt, outputs_spec)
        session, logits = prefilled(watched, prompt, capacity, cached=self._cache_name is not None)
        return WatchedSession(session, watched, rows_per_prompt), logits.repeat_interleave(rows_per_prompt, 0)

    @torch.no_grad()
    def start_verifying(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[VerifyingSession, Float32[Tensor, "rows vocab"]]:
        """The same, with a session whose rows can read several tokens a pass and take them back.

        Raises:
            ModelError: As `start` does, or if the model's cache cannot give back what it has read; with
                `cache="trie"`.
        """
        self._branching.check_rows("verifying several tokens a pass")
        self._prepare(prompt, 1, capacity - prompt.tokens.shape[1])
        return self._verification.start(prompt, rows_per_prompt, capacity)

    def shallow(self, layers: int) -> "HFModel":
        """The model made of the first layers, the last normalisation and the head; weights are shared.

        Raises:
            ModelError: If the model is an encoder-decoder or cannot be cut, or has no more layers than that.
        """
        if layers not in self._shallow:  # kept, because what a model can do is asked only once
            cut = first_layers(self.model, layers)
            self._shallow[layers] = HFModel(cut, self.tokenizer, cache=self._cache, **self._options)
        return self._shallow[layers]

    @torch.no_grad()
    def score_tokens(
        self, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows new"]:
        """The log-probability of every given token, in one forward pass."""
        device, new = self.model.device, tokens.shape[1]
        prompt, tokens, lengths = prompt.to(device), tokens.to(device), lengths.to(device)
        if new == 0:
            return torch.zeros(tokens.shape, dtype=torch.float32, device=device)
        self._prepare(prompt, 1, new)
        return teacher_forced(self.forward_after(prompt, share=False), prompt, tokens, lengths)

    def _prepare(self, prompt: Prompt, rows_per_prompt: int, new: int) -> None:
        self._capabilities.check_positions(prompt, new)
        self._capabilities.check(prompt, rows_per_prompt)
        with lock_of(self.model):  # another thread's pass has forwards of its own
            self._packing.refresh()

    def _open(
        self, prompt: Prompt, capacity: int, *, share: bool
    ) -> tuple[CachedSession | RecomputingSession, Float32[Tensor, "rows vocab"]]:
        """A session with one row a prompt, and the logits after the prompts."""
        prompt = prompt.to(self.model.device)
        forward = self.forward_after(prompt, share=share)
        return prefilled(forward, prompt, capacity, cached=self._cache_name is not None)

    def forward_after(self, prompt: Prompt, *, share: bool = False) -> Forward:
        """The forward pass that a session drives; of an encoder-decoder once its encoder has read the source.

        Args:
            prompt: On the model's device.
            share: As in `ConditionedDecoder`.
        """
        can_join = self._capabilities.can_join
        if prompt.source is None:
            return DecoderOnly(self.model, self._config, self._cache_name, self._packing, can_join)
        source, states = prompt.source, prompt.states
        return ConditionedDecoder(
            self.model, source, states, share=share, packing=self._packing, can_join=can_join
        )

    def _read(self, text: list[int], source: list[int]) -> Float32[Tensor, "length vocab"]:
        """The logits after every token of a text."""
        prompt = Prompt.from_ids([text])
        if self._capabilities.reads_source:
            prompt = after([source], prompt)
        prompt = prompt.to(self.model.device)
        forward = self.forward_after(prompt, share=False).forward
        output = forward(prompt.tokens, prompt.mask, positions(prompt.mask), cache=None, keep=len(text))
        return cast("Tensor", output.logits[0].float())

    def __repr__(self) -> str:
        where = f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device}"
        cache = "none" if self._cache_name is None else self._branching.describe(self._cache)
        source = f", source={self._capabilities.source_path}" if self._capabilities.reads_source else ""
        packed = f", packed={self._packing}" if self._packing.bytes else ""
        recorded = self._branching.describe_recorded()
        return (
            f"HFModel({type(inner(self.model)).__name__}, {where}, cache={cache}{source}{packed}{recorded})"
        )
