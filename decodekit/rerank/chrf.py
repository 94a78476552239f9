"""chrF as a utility."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from string import punctuation
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from decodekit.core.validation import is_count, is_positive
from decodekit.rerank._shared.ngrams import Counts, count_ngrams, matches, mean_counts
from decodekit.rerank.utility import AggregableUtility

_EPSILON = 1e-16  # what chrF with smoothing has where a fraction has nothing below the line


@final
@dataclass(frozen=True)
class ChrF(AggregableUtility):
    r"""Prefers hypotheses that share character n-grams with the references.

    $100 \cdot (1 + \beta^2) \frac{P R}{\beta^2 P + R}$ with the mean precision $P$ and recall $R$ over the
    n-gram orders that both texts have. The numbers are those of sacrebleu's `CHRF.sentence_score`; every
    text's n-grams are counted once, whatever the number of pairs. From 0 to 100.

    Args:
        char_order: The longest n-grams of characters, at least 1. Usual value: 6.
        word_order: The longest n-grams of words, at least 0. chrF++ has 2.
        beta: How much more recall counts than precision, above 0. Usual value: 2.
        lowercase: True: letters' case does not count.
        whitespace: True: spaces are characters like others.
        eps_smoothing: True: the mean is over the F-scores of all orders, as in chrF++.py.

    Raises:
        ValueError: If `char_order` or `word_order` is not such an integer, or `beta` not such a number.

    Example:
        >>> ChrF().pairwise(["the cat", "a dog"], ["the cat"])
        tensor([[100.0000],
                [  4.4643]], dtype=torch.float64)

    Source:
        Popović, 2015, https://aclanthology.org/W15-3049; chrF++: Popović, 2017,
        https://aclanthology.org/W17-4770. Mean counts: Vamvas & Sennrich, 2024,
        https://arxiv.org/abs/2402.04251.

    Hugging Face:
        None.
    """

    _: KW_ONLY
    char_order: int = 6
    word_order: int = 0
    beta: float = 2
    lowercase: bool = False
    whitespace: bool = False
    eps_smoothing: bool = False

    def __post_init__(self) -> None:
        for name, least in (("char_order", 1), ("word_order", 0)):
            order = getattr(self, name)
            if not is_count(order, least):
                raise ValueError(f"ChrF: {name} must be an integer of at least {least}, got {order!r}.")
        if not is_positive(self.beta):
            raise ValueError(f"ChrF: beta must be a finite number above 0, got {self.beta!r}.")

    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        """The chrF of every hypothesis against every reference."""
        counted = {text: self._count(text) for text in {*hypotheses, *references}}
        rows = [[self._score(counted[one], counted[other]) for other in references] for one in hypotheses]
        return torch.tensor(rows, dtype=torch.float64).view(len(hypotheses), len(references))

    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        """The chrF of every hypothesis against the references' mean counts."""
        mean = mean_counts([self._count(text) for text in references], weights.tolist())
        scores = [self._score(self._count(text), mean) for text in hypotheses]
        return torch.tensor(scores, dtype=torch.float64)

    def _count(self, text: str) -> list[Counts]:
        """Counts of the n-grams of characters, then of words, by order."""
        text = text.lower() if self.lowercase else text
        characters = text if self.whitespace else "".join(text.split())
        words = tuple(part for word in text.split() for part in _split_punctuation(word))
        return [
            *(count_ngrams(characters, order + 1) for order in range(self.char_order)),
            *(count_ngrams(words, order + 1) for order in range(self.word_order)),
        ]

    def _score(self, hypothesis: Sequence[Counts], reference: Sequence[Counts]) -> float:
        precisions, recalls, f_scores = [], [], []
        for said, wanted in zip(hypothesis, reference, strict=True):
            common = matches(said, wanted)
            # An order that one of the two texts is too short for says nothing.
            precision = common / said.total if said.total and wanted.total else _EPSILON
            recall = common / wanted.total if wanted.total else _EPSILON
            f_scores.append(self._f_score(precision, recall, otherwise=_EPSILON))
            if said.total and wanted.total:
                precisions.append(precision)
                recalls.append(recall)
        if self.eps_smoothing:
            return 100 * sum(f_scores) / len(f_scores)
        orders = len(precisions) or 1
        return 100 * self._f_score(sum(precisions) / orders, sum(recalls) / orders, otherwise=0.0)

    def _f_score(self, precision: float, recall: float, otherwise: float) -> float:
        factor = self.beta**2
        below = factor * precision + recall
        return (1 + factor) * precision * recall / below if below > 0 else otherwise


def _split_punctuation(word: str) -> list[str]:
    """A word and the punctuation mark at its end, or else at its beginning."""
    if len(word) > 1 and word[-1] in punctuation:
        return [word[:-1], word[-1]]
    if len(word) > 1 and word[0] in punctuation:
        return [word[0], word[1:]]
    return [word]
