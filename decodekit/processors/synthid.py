"""SynthID's tournament watermark."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FLAG, Requirement, at_least, check_fields, is_count, set_fields
from decodekit.processors.base import Column, NewTokenProcessor, Scores

_MULTIPLIER = 6364136223846793005  # Knuth's, for a linear congruential generator of 64 bits
_TABLE_SIZE = Requirement(lambda size: is_count(size, 1) and size <= 2**24, "an integer in [1, 2**24]")


@final
@dataclass(frozen=True)
class SynthID(NewTokenProcessor):
    r"""Watermarks the output by a tournament between tokens, decided by secret keys, one round per key.

    A hash of the last `ngram_len - 1` new tokens, the token v and a key gives each token in each round l the
    number $g_l(v)$, 0 or 1. Round by round

    $$P_l(v) = P_{l-1}(v) \left(1 + g_l(v) - \sum_u g_l(u) P_{l-1}(u)\right):$$

    of two tokens drawn from the previous round, the token with the larger g wins. Averaged over all keys the
    distribution is the model's own. At a context that occurred before, the scores do not change.
    `SynthIDDetector` detects the watermark.

    Put it last, after temperature and truncation. A row's watermark depends on its own tokens only, and so
    follows it when beams are reordered.

    Args:
        keys: The secret: integers in [0, 2**63), one per round. Choose your own, all different. Usual number:
            20-30.
        ngram_len: Tokens that a number $g_l(v)$ depends on, v itself included, at least 2. Usual value: 5.
        context_history_size: Number of recent contexts to remember, at least 0.
        sampling_table_seed: Seed of the table that turns hashes into numbers.
        sampling_table_size: Entries of the table, in [1, 2**24].
        skip_first_ngram_calls: True to leave the first `ngram_len - 1` new tokens unmarked, as their contexts
            are alike in all outputs.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> processor = dk.SynthID([654, 400, 836], ngram_len=5)
        >>> dk.decode(dk.load(), "Once", dk.Sample(seeds=[0]), processor, max_new_tokens=4).lengths
        tensor([[4]])

    Source:
        Dathathri et al., 2024, https://doi.org/10.1038/s41586-024-08025-4.

    Hugging Face:
        `SynthIDTextWatermarkLogitsProcessor(ngram_len, keys, ..., device="cpu")`, bit for bit in sampling,
        except that a banned token stays at minus infinity; in Hugging Face it gets the least finite number.
        Under beam search Hugging Face mixes up the contexts of beams; on a GPU it draws another table.
    """

    keys: Iterable[int]
    ngram_len: int
    _: KW_ONLY
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False

    def __post_init__(self) -> None:
        plain = self.keys.tolist() if isinstance(self.keys, Tensor) else self.keys
        keys = tuple(plain) if isinstance(plain, Iterable) else (plain,)
        if not keys or not all(is_count(key, 0) for key in keys):
            raise ValueError(f"SynthID: keys must be one or more integers in [0, 2**63), got {self.keys!r}.")
        check_fields(self, ngram_len=at_least(2), context_history_size=at_least(0))
        check_fields(self, sampling_table_seed=at_least(0), sampling_table_size=_TABLE_SIZE)
        check_fields(self, skip_first_ngram_calls=FLAG)
        set_fields(self, keys=keys)

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        contexts = self._contexts(history, first_new)
        context = contexts.index_select(1, history.position.view(1))  # the newest one
        marked = self._tournament(scores, context)
        columns = torch.arange(contexts.shape[1], device=scores.device)
        first = first_new + (self.ngram_len - 1 if self.skip_first_ngram_calls else 0)
        remembered = (columns >= first) & (columns >= history.position - self.context_history_size)
        repeated = ((contexts == context) & remembered & (columns < history.position)).any(-1, keepdim=True)
        return torch.where(repeated | (history.position < first), scores, marked)

    def g_values(self, hashes: Int64[Tensor, "*shape"], key: int) -> Int64[Tensor, "*shape"]:
        """Return the number, 0 or 1, that a key gives to n-grams with these hashes."""
        table = sampling_table(self.sampling_table_seed, self.sampling_table_size, hashes.device)
        places = extend_hash(hashes, key) % self.sampling_table_size
        return table.index_select(0, places.flatten()).view_as(hashes)

    def _tournament(self, scores: Scores, context: Int64[Tensor, "rows 1"]) -> Scores:
        ngrams = extend_hash(context, torch.arange(scores.shape[-1], device=scores.device))
        probs = scores.softmax(-1)
        for key in self.keys:
            wins = self.g_values(ngrams, key)
            probs = probs * (1 + wins - (wins * probs).sum(-1, keepdim=True))
        log_probs = probs.log()
        # As in Hugging Face, tokens that became impossible get the least finite number.
        finite = torch.where(log_probs.isfinite(), log_probs, torch.finfo(scores.dtype).min)
        return finite.masked_fill(scores == -torch.inf, -torch.inf)

    def _contexts(self, history: History, first: Int64[Tensor, ""]) -> Int64[Tensor, "rows columns"]:
        """Hash the new tokens before every column and before the end, with zeros where there are none."""
        width, capacity = self.ngram_len - 1, history.tokens.shape[1]
        new = torch.arange(capacity, device=history.tokens.device) >= first
        tokens = pad(torch.where(new, history.tokens, 0), (width, 0))
        return hash_tokens(tokens.unfold(1, width, 1))


def hash_tokens(tokens: Int64[Tensor, "*shape tokens"]) -> Int64[Tensor, "*shape"]:
    """Hash sequences along the last axis."""
    hashes = torch.ones_like(tokens[..., 0])
    for token in tokens.unbind(-1):
        hashes = extend_hash(hashes, token)
    return hashes


def extend_hash(
    hashes: Int64[Tensor, "*shape"], token: Int64[Tensor, "*shape"] | int
) -> Int64[Tensor, "*shape"]:
    """Extend hashed sequences by one token: a step of a linear congruential generator."""
    return (hashes + token) * _MULTIPLIER + 1


@lru_cache(maxsize=8)
def sampling_table(seed: int, size: int, device: torch.device) -> Int64[Tensor, " size"]:
    """Draw zeros and ones from a seed, the same on every device."""
    host = torch.device("cpu")
    generator = torch.Generator(host).manual_seed(seed)
    return torch.randint(0, 2, (size,), generator=generator, device=host).to(device)
