"""A run of decodekit, as transformers' `generate` returns one."""

from dataclasses import dataclass, field, fields
from typing import Any

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder
from decodekit.decoders.beam.search import BeamSearch
from decodekit.engine.decode import StepSnapshot
from decodekit.models.hf.cache import cache_name
from decodekit.models.hf.sessions import RowSession
from decodekit.models.hf.trie_cache.session import TrieSession


@dataclass
class OutputRecorder:
    """Keeps the outputs of every step that `return_dict_in_generate` returns.

    Attributes:
        config: transformers' GenerationConfig: which outputs are wanted.
        scores: After the processors, before the beams' sums are added.
        logits: The model's own.
        last: The last step, with the model's run.
    """

    config: Any
    scores: list[Float32[Tensor, "rows vocab"]] = field(default_factory=list)
    logits: list[Float32[Tensor, "rows vocab"]] = field(default_factory=list)
    last: StepSnapshot | None = None

    def see(self, snapshot: StepSnapshot) -> None:
        """Takes down a step."""
        self.last = snapshot
        if not self.config.return_dict_in_generate:
            return
        if self.config.output_scores:
            self.scores.append(snapshot.scores)
        if self.config.output_logits:
            self.logits.append(snapshot.logits)

    def output(self, decoder: Decoder[Any], result: Decoded, *, encoder_decoder: bool) -> Any:  # noqa: ANN401
        """`sequences`, or the object with every field that was asked for."""
        sequences = result.sequences
        if not self.config.return_dict_in_generate:
            return sequences
        scores = tuple(self.scores) if self.config.output_scores else None
        common: dict[str, Any] = {
            "sequences": sequences,
            "scores": scores,
            "logits": tuple(self.logits) if self.config.output_logits else None,
        }
        if isinstance(decoder, BeamSearch):
            common["sequences_scores"] = result.score.flatten() if self.config.output_scores else None
            common["beam_indices"] = result.parents.flatten(0, 1)
        kind = _kind(beams=isinstance(decoder, BeamSearch), encoder_decoder=encoder_decoder)
        common[str(cache_name(field.name for field in fields(kind)))] = self._cache()
        return kind(**common)

    def _cache(self) -> Any:  # noqa: ANN401 - transformers' Cache
        """The cache after the last token but one, its rows where the last step has put them."""
        if self.last is None or not isinstance(self.last.session, RowSession | TrieSession):
            return None
        return self.last.session.cache_of(self.last.selection.source_rows)


def _kind(*, beams: bool, encoder_decoder: bool) -> Any:  # noqa: ANN401 - a class of transformers
    from transformers.generation import utils  # noqa: PLC0415 - slow, needed only here

    if encoder_decoder:
        return utils.GenerateBeamEncoderDecoderOutput if beams else utils.GenerateEncoderDecoderOutput
    return utils.GenerateBeamDecoderOnlyOutput if beams else utils.GenerateDecoderOnlyOutput
