"""BLEU as a utility."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal, final

from typing_extensions import override

from decodekit.core.validation import Requirement, at_least, check_fields, is_finite
from decodekit.rerank._shared.ngrams import NGrams, NGramUtility, count_ngrams, matches

_USUAL = {"floor": 0.1, "add-k": 1.0}  # sacrebleu's values, after Chen & Cherry, 2014
_SMOOTHING = Requirement({"exp", "floor", "add-k", "none"}.__contains__, "'exp', 'floor', 'add-k' or 'none'")
_SMOOTH_VALUE = Requirement(lambda value: is_finite(value) and value > 0, "a finite number above 0")


@final
@dataclass(frozen=True)
class BLEU(NGramUtility):
    r"""Prefers hypotheses that share n-grams of words with the references.

    $100 \cdot \min(1, e^{1 - r/h}) \prod_{n=1}^{N} p_n^{1/N}$ with the precisions $p_n$ of n-grams, the
    lengths $r$ of the reference and $h$ of the hypothesis, and $N$ the longest n-grams that the hypothesis
    has. From 0 to 100. Equal to sacrebleu's `BLEU(effective_order=True).sentence_score`, with its tokenizer;
    the n-grams of every text are counted once, for any number of pairs.

    Needs the package sacrebleu: `pip install decodekit[metrics]`.

    Args:
        max_order: The longest n-grams, at least 1. Usual value: 4.
        lowercase: True: ignores case.
        tokenize: sacrebleu's name of the tokenizer, such as `"13a"`, `"intl"`, `"char"`, `"zh"`, `"none"`.
        smooth: Smoothing of precisions. `"exp"`: the n-th precision of 0 counts $2^{-n}$ matches. `"floor"`:
            a precision of 0 counts `smooth_value` matches. `"add-k"`: adds `smooth_value` to matches and
            totals of orders above 1. `"none"`: leaves 0.
        smooth_value: A number above 0, for `"floor"` (None: 0.1) and `"add-k"` (None: 1).

    Raises:
        ImportError: If sacrebleu is not installed.
        ValueError: If `max_order` is not an integer of at least 1, the tokenizer or the smoothing is unknown,
            or `smooth_value` is not a finite number above 0, or is given for another smoothing.

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
        check_fields(self, max_order=at_least(1), smooth=_SMOOTHING)
        if self.smooth_value is not None:
            if self.smooth not in _USUAL:
                raise ValueError(
                    f"BLEU: smooth={self.smooth!r} takes no smooth_value, got {self.smooth_value!r}."
                )
            check_fields(self, smooth_value=_SMOOTH_VALUE)
        _ = self._tokenizer  # raises at once if it cannot be loaded

    @cached_property
    def _tokenizer(self) -> Callable[[str], str]:
        try:
            from sacrebleu.metrics.bleu import BLEU as SacreBLEU  # noqa: PLC0415, N811 - an extra; the name is taken
        except ImportError as error:
            raise ImportError(
                "BLEU: the package sacrebleu, which splits words, is not installed. "
                "pip install decodekit[metrics]"
            ) from error
        known = sorted(SacreBLEU.TOKENIZERS)
        if self.tokenize not in known:
            raise ValueError(f"BLEU: tokenize must be one of {', '.join(known)}, got {self.tokenize!r}.")
        tokenizer: Callable[[str], str] = SacreBLEU(tokenize=self.tokenize).tokenizer
        return tokenizer

    @override
    def count(self, text: str) -> NGrams:
        text = text.lower() if self.lowercase else text
        words = tuple(self._tokenizer(text.rstrip()).split())
        return NGrams(count_ngrams(words, self.max_order), len(words))

    @override
    def compare(self, hypothesis: NGrams, reference: NGrams) -> float:
        pairs = zip(hypothesis.orders, reference.orders, strict=True)
        counts = [(matches(ours, theirs), ours.total) for ours, theirs in pairs]
        if not any(common for common, _ in counts):
            return 0.0
        precisions = self._precisions(counts)
        if not all(precisions):
            return 0.0
        mean = math.exp(sum(map(math.log, precisions)) / len(precisions))
        return 100 * mean * math.exp(min(0.0, 1 - reference.length / hypothesis.length))

    def _precisions(self, counts: list[tuple[float, float]]) -> list[float]:
        """Smooth the precisions, from matches and totals by order, of orders that the hypothesis has."""
        value = _USUAL.get(self.smooth, 0.0) if self.smooth_value is None else self.smooth_value
        if self.smooth == "add-k":
            counts = [counts[0], *((common + value, total + value) for common, total in counts[1:])]
        precisions, missed = [], 0
        for common, total in counts:
            if total:
                missed += not common
                instead = {"exp": 0.5**missed, "floor": value}.get(self.smooth, 0.0)
                precisions.append((common or instead) / total)
        return precisions
