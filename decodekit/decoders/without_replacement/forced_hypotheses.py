"""Texts that are in a sample whatever the others are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.validation import plain, read_ids
from decodekit.decoders.without_replacement.sampled_tree import Continuations, SampledTree
from decodekit.errors import DecodekitError, DecodingError

NOWHERE = -1  # cannot be said


def read_texts(who: str, texts: object) -> tuple[tuple[int, ...], ...]:
    """One text a prompt, as tuples of ids. Raises unless every one is a list of at least one id."""
    given = plain(texts)
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(map(_is_text, given)):
        raise ValueError(
            f"{who}: keep must be one list of ids, not empty, for each prompt, got {texts!r:.80}."
        )
    return tuple(read_ids(who, text) for text in given)


def _is_text(text: object) -> bool:
    return isinstance(plain(text), list | tuple) and len(plain(text)) > 0


class ConditionedTexts(NamedTuple):
    """The text of each prompt that is in its sample.

    Attributes:
        tokens: What it says, filled up with 0: as which a finished text stands among `Continuations`.
        lengths: Its tokens.
        places: Which beam it is; `NOWHERE` if it could not be drawn.
    """

    tokens: Int64[Tensor, "batch new"]
    lengths: Int64[Tensor, " batch"]
    places: Int64[Tensor, " batch"]

    @classmethod
    def start(
        cls, who: str, texts: Sequence[Sequence[int]], history: History, limits: Limits
    ) -> "ConditionedTexts":
        """The texts of the prompts that are here, of which nothing is said yet; `texts` are the run's."""
        batch, device = history.batch, history.tokens.device
        if len(texts) != batch:
            raise DecodekitError(
                f"{who}: there must be one text to keep a prompt, got {len(texts)} for {batch} prompts."
            )
        new = limits.max_new_tokens
        if any(len(text) > new or max(text) >= limits.vocab for text in texts):
            raise DecodekitError(
                f"{who}: a text to keep must have at most {new} tokens, with ids below {limits.vocab}, got "
                f"{texts!r:.200}."
            )
        tokens = torch.tensor([[*text, *[0] * (new - len(text))] for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        tokens, lengths = history.own(tokens), history.own(lengths)
        return cls(tokens, lengths, torch.zeros_like(lengths))

    def continuation(self, step: Int64[Tensor, ""], grown: Continuations) -> Int64[Tensor, " batch"]:
        """Which continuation, flat, is or begins the kept text; `NOWHERE` if it has no probability."""
        vocab = grown.log_probs.shape[-1]
        place = self.places.clamp(min=0)
        token = self.tokens.index_select(1, step.view(1).clamp(max=self.tokens.shape[1] - 1))[:, 0]
        flat = place * vocab + token
        exists = grown.log_probs.flatten(1).gather(1, flat[:, None])[:, 0] > -torch.inf
        return flat.masked_fill((self.places == NOWHERE) | ~exists, NOWHERE)

    def after(
        self, chosen: Int64[Tensor, "batch beams"], forced: Int64[Tensor, " batch"]
    ) -> "ConditionedTexts":
        """Where the texts are after a step."""
        place = (chosen == forced[:, None]).long().argmax(-1)
        return self._replace(places=place.masked_fill(forced == NOWHERE, NOWHERE))

    def lifted(
        self, values: Float64[Tensor, "batch beams"], tree: SampledTree
    ) -> Float64[Tensor, "batch beams"]:
        """The values with plus infinity for what was kept.

        Raises:
            DecodingError: If some text is not in its sample, or is not whole or too long.
        """
        said = self._said(tree)
        if not bool(said.any(-1).all()):
            raise DecodingError(
                "decode: a text to keep must be one that the model and the processors can say, up to its "
                f"end, and that of prompt {tree.history.prompt(int((~said.any(-1)).int().argmax()))} is not."
            )
        return values.masked_fill(said, torch.inf)

    def _said(self, tree: SampledTree) -> Bool[Tensor, "batch beams"]:
        """Which beam says the kept text, and nothing else."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        counts = columns < self.lengths[:, None, None]
        same = (tree.records.tokens == self.tokens[:, None]) | ~counts
        return same.all(-1) & (tree.lengths == self.lengths[:, None]) & tree.valid
