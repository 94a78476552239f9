"""chrF as a utility."""

from dataclasses import KW_ONLY, dataclass
from string import punctuation
from typing import final

from typing_extensions import override

from decodekit.core.validation import POSITIVE, at_least, check_fields
from decodekit.rerank._shared.ngrams import NGrams, NGramUtility, count_ngrams, matches

_EPSILON = 1e-16  # with smoothing, the value of a fraction whose denominator is 0


@final
@dataclass(frozen=True)
class ChrF(NGramUtility):
    r"""Prefers hypotheses that share character n-grams with the references.

    $100 \cdot (1 + \beta^2) \frac{P R}{\beta^2 P + R}$ with the mean precision $P$ and recall $R$ over the
    n-gram orders that both texts have. From 0 to 100. Equal to sacrebleu's `CHRF.sentence_score`; the n-grams
    of every text are counted once, for any number of pairs.

    Args:
        char_order: The longest n-grams of characters, at least 1. Usual value: 6.
        word_order: The longest n-grams of words, at least 0. chrF++ has 2.
        beta: $\beta$, weight of recall relative to precision, above 0. Usual value: 2.
        lowercase: True: ignores case.
        whitespace: True: whitespace counts as characters.
        eps_smoothing: True: averages the F-scores of all orders, as chrF++.py does.

    Raises:
        ValueError: If `char_order`, `word_order` or `beta` is out of range.

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
        check_fields(self, char_order=at_least(1), word_order=at_least(0), beta=POSITIVE)

    @override
    def count(self, text: str) -> NGrams:
        text = text.lower() if self.lowercase else text
        characters = text if self.whitespace else "".join(text.split())
        words = tuple(part for word in text.split() for part in _split_punctuation(word))
        orders = [*count_ngrams(characters, self.char_order), *count_ngrams(words, self.word_order)]
        return NGrams(orders, len(characters))

    @override
    def compare(self, hypothesis: NGrams, reference: NGrams) -> float:
        precisions, recalls, f_scores = [], [], []
        for ours, theirs in zip(hypothesis.orders, reference.orders, strict=True):
            common = matches(ours, theirs)
            # An order counts only if both texts are long enough for it.
            precision = common / ours.total if ours.total and theirs.total else _EPSILON
            recall = common / theirs.total if theirs.total else _EPSILON
            f_scores.append(self._f_score(precision, recall, default=_EPSILON))
            if ours.total and theirs.total:
                precisions.append(precision)
                recalls.append(recall)
        if self.eps_smoothing:
            return 100 * sum(f_scores) / len(f_scores)
        orders = len(precisions) or 1
        return 100 * self._f_score(sum(precisions) / orders, sum(recalls) / orders, default=0.0)

    def _f_score(self, precision: float, recall: float, default: float) -> float:
        factor = self.beta**2
        denominator = factor * precision + recall
        return (1 + factor) * precision * recall / denominator if denominator > 0 else default


def _split_punctuation(word: str) -> list[str]:
    """Split a punctuation mark off the end of a word, or else off its beginning."""
    if len(word) > 1 and word[-1] in punctuation:
        return [word[:-1], word[-1]]
    if len(word) > 1 and word[0] in punctuation:
        return [word[0], word[1:]]
    return [word]
