"""Cosine similarity of embeddings as a utility."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from decodekit.core.validation import shown
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.hypotheses import hashable
from decodekit.rerank.utility import AggregableUtility


@final
@dataclass(frozen=True)
class Cosine(AggregableUtility):
    r"""Prefers hypotheses with embeddings in the direction of the references'.

    $\cos(e(h), e(r))$, from -1 to 1; 0 if an embedding is all zeros. The mean reference is the mean of the
    normalized embeddings, so that it gives the same result as all pairs:
    $\sum_r w_r \cos(e(h), e(r)) = \hat e(h) \cdot \sum_r w_r \hat e(r)$.

    Args:
        embed: Function from a list of texts to a tensor or an array, `[texts, width]`. A call gets a prompt's
            distinct texts.
        ids: True: `embed` takes lists of token ids; None: texts if the results have them, else ids.

    Raises:
        TypeError: If `embed` cannot be called.
        DecodekitError: In a run, if `embed` does not return one vector of finite numbers per text.

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
            raise TypeError(f"Cosine: embed must be callable, got {shown(self.embed)}.")

    @override
    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        ours, theirs = self._unit_vectors(hypotheses, references)
        return ours @ theirs.T

    @override
    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        ours, theirs = self._unit_vectors(hypotheses, references)
        return ours @ (weights @ theirs)

    def _unit_vectors(
        self, hypotheses: Sequence[Any], references: Sequence[Any]
    ) -> tuple[Float64[Tensor, "hyps width"], Float64[Tensor, "refs width"]]:
        given = [*hypotheses, *references]
        keys = list(map(hashable, given))
        texts = dict(zip(keys, given, strict=True))
        try:
            vectors = torch.as_tensor(self.embed(list(texts.values()))).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DecodekitError(f"Cosine: embed must return one vector per text: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.isfinite().all():  # noqa: PLR2004
            raise DecodekitError(
                f"Cosine: embed must return one vector of finite numbers per text, got shape "
                f"{tuple(vectors.shape)} for {len(texts)} texts, or numbers that are not finite."
            )
        vectors = torch.nn.functional.normalize(vectors, dim=-1, eps=torch.finfo(torch.float64).tiny)
        places = {key: place for place, key in enumerate(texts)}
        every = vectors[torch.tensor([places[key] for key in keys], dtype=torch.long)]
        return every[: len(hypotheses)], every[len(hypotheses) :]
