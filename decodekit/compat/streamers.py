"""transformers' streamers, fed by decodekit."""

from typing import Any

import torch

from decodekit.core.prompt import Prompt
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder
from decodekit.decoders.beam.search import BeamSearch
from decodekit.engine.decode import StepSnapshot
from decodekit.errors import DecodekitError


class Feed:
    """Gives a streamer the tokens that `generate` gives it, and under beam search the stable ones.

    Args:
        streamer: transformers' BaseStreamer.
        decoder: The algorithm.
        prompt: The prompts, which come first.
    """

    def __init__(self, streamer: Any, decoder: Decoder[Any], prompt: Prompt) -> None:  # noqa: ANN401
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
        """Give the tokens of a step that no further step can change."""
        if self._searches:
            self._put(self._decoder.stable_prefix(snapshot.state)[0][0])
        else:
            self._streamer.put(snapshot.selection.tokens.cpu())

    def end(self, result: Decoded) -> None:
        """The rest, and that it was the rest."""
        if self._searches:
            self._put(result.hypotheses()[0][0])
        self._streamer.end()

    def _put(self, tokens: list[int]) -> None:
        for token in tokens[self._given :]:
            self._streamer.put(torch.tensor([token]))
        self._given = max(self._given, len(tokens))
