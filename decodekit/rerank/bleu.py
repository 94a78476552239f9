"""BLEU as a utility."""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, final

import torch
from jaxtyping import Float64
from torch import Tensor

from decodekit.core.validation import is_count, is_finite
from decodekit.rerank._shared.ngrams import Counts, count_ngrams, matches, mean_counts
from decodekit.rerank.utility import AggregableUtility

_USUAL = {"floor": 0.1, "add-k": 1.0}  # sacrebleu's values, after Chen & Cherry, 2014


class _Words(NamedTuple):
    """A text's n-grams of words, or the mean of some texts'."""

    counts: list[Counts]
    length: float


@final
@dataclass(frozen=True)
class BLEU(AggregableUtility):
    r"""Prefers hypotheses that share n-grams of words with the references.

    $100 \cdot \min(1, e^{1 - r/h}) \prod_{n=1}^{N} p_n^{1/N}$ with the precisions $p_n$ of n-grams, the
    lengths $r$ of the reference and $h$ of the hypothesis, and $N$ the longest n-grams that the hypothesis
    has. The numbers are those of sacrebleu's `BLEU(effective_order=True).sentence_score`, whose tokenizer
    splits the words; every text's n-grams are counted once, whatever the number of pairs. From 0 to 100.

    Needs the package sacrebleu: `pip install decodekit[metrics]`.

    Args:
        max_order: The longest n-grams, at least 1. Usual value: 4.
        lowercase: True: letters' case does not count.
        tokenize: sacrebleu's name of the tokenizer, such as `"13a"`, `"intl"`, `"char"`, `"zh"`, `"none"`.
        smooth: What becomes of a precision of 0, or of all: `"exp"` halves it from order to order,
            `"floor"` replaces the number of matches, `"add-k"` adds to the numbers of orders above 1,
            `"none"` leaves it.
        smooth_value: The number that `"floor"` or `"add-k"` use, above 0; None: 0.1 or 1.

    Raises:
        ImportError: If sacrebleu is not installed.
        ValueError: If `max_order` is not an integer of at least 1, there is no such tokenizer or smoothing,
            or `smooth_value` is not such a number, or is given where it would be ignored.

    Example:
        >>> BLEU().pairwise(["the cat sat down", "a dog"], ["the cat sat up"])
        tensor([[59.4604],
                [ 0.0000]], dtype=torch.float64)

    Source:
        Papineni et al., 2002, https://aclanthology.org/P02-1040; sentence by sentence: Chen & Cherry, 2014,
        https://aclanthology.org/W14-3346. Mean counts: DeNero et al., 2009, https://aclanthology.org/P09-1064.

    Hugging Face:
        None.
    """

    _: KW_ONLY
    max_order: int = 4
    lowercase: bool = False
    tokenize: str = "13a"
    smooth: Literal["exp", "floor", "add-k", "none"] = "exp"
    smooth_value: float | None = None

    def __post_init__(self) -> None:
        if not is_count(self.max_order, 1):
            raise ValueError(f"BLEU: max_order must be an integer of at least 1, got {self.max_order!r}.")
        if self.smooth not in {"exp", "floor", "add-k", "none"}:
            raise ValueError(f"BLEU: smooth must be 'exp', 'floor', 'add-k' or 'none', got {self.smooth!r}.")
        if self.smooth_value is not None:
            if self.smooth not in _USUAL:
                raise ValueError(
                    f"BLEU: smooth={self.smooth!r} takes no smooth_value, got {self.smooth_value!r}."
                )
            if not is_finite(self.smooth_value) or self.smooth_value <= 0:
                raise ValueError(
                    f"BLEU: smooth_value must be a finite number above 0, got {self.smooth_value!r}."
                )
        _ = self._tokenizer  # says at once if it cannot be had

    @cached_property
    def _tokenizer(self) -> Callable[[str], str]:
        return _load_tokenizer(self.tokenize)

    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        """The BLEU of every hypothesis against every reference."""
        counted = {text: self._count(text) for text in {*hypotheses, *references}}
        rows = [[self._score(counted[one], counted[other]) for other in references] for one in hypotheses]
        return torch.tensor(rows, dtype=torch.float64).view(len(hypotheses), len(references))

    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        """The BLEU of every hypothesis against the references' mean counts and mean length."""
        texts, shares = [self._count(text) for text in references], weights.tolist()
        counts = mean_counts((text.counts for text in texts), shares)
        mean = _Words(counts, sum(share * text.length for share, text in zip(shares, texts, strict=True)))
        scores = [self._score(self._count(text), mean) for text in hypotheses]
        return torch.tensor(scores, dtype=torch.float64)

    def _count(self, text: str) -> _Words:
        text = text.lower() if self.lowercase else text
        words = tuple(self._tokenizer(text.rstrip()).split())
        return _Words([count_ngrams(words, order + 1) for order in range(self.max_order)], len(words))

    def _score(self, hypothesis: _Words, reference: _Words) -> float:
        pairs = zip(hypothesis.counts, reference.counts, strict=True)
        found = [(matches(said, wanted), said.total) for said, wanted in pairs]
        if not any(common for common, _ in found):
            return 0.0
        precisions = self._precisions(found)
        if not all(precisions):
            return 0.0
        mean = math.exp(sum(map(math.log, precisions)) / len(precisions))
        return 100 * mean * math.exp(min(0.0, 1 - reference.length / hypothesis.length))

    def _precisions(self, found: list[tuple[float, float]]) -> list[float]:
        """The smoothed precisions of the orders that the hypothesis is long enough for.

        Args:
            found: How many n-grams match, and how many there are, by order.
        """
        value = _USUAL.get(self.smooth, 0.0) if self.smooth_value is None else self.smooth_value
        if self.smooth == "add-k":
            first, *others = found
            found = [first, *((common + value, total + value) for common, total in others)]
        precisions, missed = [], 0
        for common, total in found:
            if total:
                missed += not common
                instead = {"exp": 0.5**missed, "floor": value}.get(self.smooth, 0.0)
                precisions.append((common or instead) / total)
        return precisions


def _load_tokenizer(name: str) -> Callable[[str], str]:
    try:
        from sacrebleu.metrics.bleu import BLEU as SacreBLEU  # noqa: PLC0415, N811 - an extra; the name is taken
    except ImportError as error:
        raise ImportError(
            "BLEU: words are split by the package sacrebleu, which is not installed. "
            "pip install decodekit[metrics]"
        ) from error
    known = sorted(SacreBLEU.TOKENIZERS)
    if name not in known:
        raise ValueError(f"BLEU: tokenize must be one of {', '.join(known)}, got {name!r}.")
    tokenizer: Callable[[str], str] = SacreBLEU(tokenize=name).tokenizer
    return tokenizer
