"""Cosine similarity of embeddings as a utility."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from decodekit.errors import DecodekitError
from decodekit.rerank.utility import AggregableUtility


@final
@dataclass(frozen=True)
class Cosine(AggregableUtility):
    r"""Prefers hypotheses whose embedding points where the references' do.

    $\cos(e(h), e(r))$, from -1 to 1; 0 where an embedding is all zeros. The mean reference is the mean of the
    embeddings at length 1, by which the result is that of all pairs:
    $\sum_r w_r \cos(e(h), e(r)) = \hat e(h) \cdot \sum_r w_r \hat e(r)$.

    Args:
        embed: From a list of texts to as many vectors: a tensor or an array, `[texts, width]`. It is given
            every text of a prompt once, all in one call.
        ids: True: it is given lists of token ids; None: texts where the results have them, else ids.

    Raises:
        TypeError: If `embed` cannot be called.
        DecodekitError: In a run, if it does not return one vector of finite numbers a text.

    Example:
        >>> vowels = Cosine(lambda texts: [[text.count(vowel) for vowel in "aeiou"] for text in texts])
        >>> vowels.pairwise(["a banana", "the end"], ["papaya"])
        tensor([[1.],
                [0.]], dtype=torch.float64)

    Source:
        Mean embeddings: Vamvas & Sennrich, 2024, https://arxiv.org/abs/2402.04251.

    Hugging Face:
        None.
    """

    embed: Callable[[list[Any]], Any]
    ids: bool | None = False

    def __post_init__(self) -> None:
        if not callable(self.embed):
            raise TypeError(f"Cosine: embed must be callable, got {self.embed!r:.80}.")

    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        """The cosine of every hypothesis and every reference."""
        one, other = self._unit_vectors(hypotheses, references)
        return one @ other.T

    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        """The mean of the cosines of every hypothesis and the references."""
        one, other = self._unit_vectors(hypotheses, references)
        return one @ (weights @ other)

    def _unit_vectors(
        self, hypotheses: Sequence[Any], references: Sequence[Any]
    ) -> tuple[Float64[Tensor, "hyps width"], Float64[Tensor, "refs width"]]:
        texts = [*hypotheses, *(text for text in references if text not in hypotheses)]
        try:
            vectors = torch.as_tensor(self.embed(list(texts))).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DecodekitError(f"Cosine: embed must return one vector a text: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.isfinite().all():  # noqa: PLR2004
            raise DecodekitError(
                f"Cosine: embed must return one vector of finite numbers a text, got shape "
                f"{tuple(vectors.shape)} for {len(texts)} texts, or numbers that are not finite."
            )
        vectors = torch.nn.functional.normalize(vectors, dim=-1, eps=torch.finfo(torch.float64).tiny)
        places = {_key(text): place for place, text in enumerate(texts)}
        return (
            vectors[: len(hypotheses)],
            vectors[torch.tensor([places[_key(text)] for text in references], dtype=torch.long)],
        )


def _key(text: str | Sequence[int]) -> str | tuple[int, ...]:
    return text if isinstance(text, str) else tuple(text)
