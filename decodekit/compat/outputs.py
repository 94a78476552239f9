"""Results in the formats of `generate`: output classes, and tokens for a streamer."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder
from decodekit.decoders.beam.search import BeamSearch
from decodekit.engine.decode import StepSnapshot
from decodekit.errors import DecodekitError
from decodekit.models.hf.cache import cache_name
from decodekit.models.hf.sessions import RowSession
from decodekit.models.hf.trie_cache.session import TrieSession


@dataclass
class OutputRecorder:
    """Keeps from every step the processed scores and raw logits for `return_dict_in_generate`."""

    config: Any
    scores: list[Float32[Tensor, "rows vocab"]] = field(default_factory=list)
    logits: list[Float32[Tensor, "rows vocab"]] = field(default_factory=list)
    last: StepSnapshot | None = None

    def see(self, snapshot: StepSnapshot) -> None:
        """Record a step."""
        self.last = snapshot
        if not self.config.return_dict_in_generate:
            return
        if self.config.output_scores:
            self.scores.append(snapshot.scores)
        if self.config.output_logits:
            self.logits.append(snapshot.logits)

    def output(self, decoder: Decoder[Any], result: Decoded, *, encoder_decoder: bool) -> Any:
        """`sequences`, or the output object with every requested field."""
        if not self.config.return_dict_in_generate:
            return result.sequences
        common: dict[str, Any] = {
            "sequences": result.sequences,
            "scores": tuple(self.scores) if self.config.output_scores else None,
            "logits": tuple(self.logits) if self.config.output_logits else None,
        }
        if isinstance(decoder, BeamSearch):
            common["sequences_scores"] = result.score.flatten() if self.config.output_scores else None
            common["beam_indices"] = result.parents.flatten(0, 1)
        kind = _kind(beams=isinstance(decoder, BeamSearch), encoder_decoder=encoder_decoder)
        common[str(cache_name(field.name for field in fields(kind)))] = self._cache()
        return kind(**common)

    def _cache(self) -> Any:
        """The cache after the second-to-last token, with its rows in the order of the last step."""
        if self.last is None or not isinstance(self.last.session, RowSession | TrieSession):
            return None
        return self.last.session.cache_of(self.last.selection.source_rows)


def _kind(*, beams: bool, encoder_decoder: bool) -> Any:
    from transformers.generation import utils  # noqa: PLC0415 - slow, needed only here

    if encoder_decoder:
        return utils.GenerateBeamEncoderDecoderOutput if beams else utils.GenerateEncoderDecoderOutput
    return utils.GenerateBeamDecoderOnlyOutput if beams else utils.GenerateDecoderOnlyOutput


class Feed:
    """Passes tokens to a streamer as `generate` does; under beam search, as soon as they are final."""

    def __init__(self, streamer: Any, decoder: Decoder[Any], prompt: Prompt) -> None:
        self._streamer = streamer
        self._decoder = decoder
        self._searches = isinstance(decoder, BeamSearch)
        self._given = 0
        if self._searches and len(prompt.tokens) > 1:
            raise DecodekitError(
                f"generate: a streamer under beam search takes one prompt, got {len(prompt.tokens)}. "
                "Use dk.stream."
            )
        rows = 1 if self._searches else decoder.rows_per_prompt
        streamer.put(prompt.tokens.repeat_interleave(rows, 0).cpu())

    def step(self, snapshot: StepSnapshot) -> None:
        """Pass on the tokens that no further step can change."""
        if self._searches:
            self._put(self._decoder.stable_prefix(snapshot.state)[0][0])
        else:
            self._streamer.put(snapshot.selection.tokens.cpu())

    def end(self, result: Decoded) -> None:
        """Pass on the remaining tokens, and signal the end."""
        if self._searches:
            self._put(result.hypotheses()[0][0])
        self._streamer.end()

    def _put(self, tokens: list[int]) -> None:
        for token in tokens[self._given :]:
            self._streamer.put(torch.tensor([token]))
        self._given = max(self._given, len(tokens))
