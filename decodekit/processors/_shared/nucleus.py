"""The tail that top-p bans, found by sorting tokens or, on the CPU, by sorting numbers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from decodekit.core.device import is_on_host
from decodekit.processors.base import Scores

# With fewer tokens, torch sorts all rows faster than Python starts to sort one.
MIN_VOCAB_BY_VALUE = 2**12
# Sorting fewer numbers takes less time than starting a thread.
MIN_SIZE_FOR_THREADS = 2**17

Row = NDArray[np.float32]
Mass = float | Float32[Tensor, "rows 1"]


def ban_tail(scores: Scores, mass: Mass, max_banned: int) -> Scores:
    """Ban the least likely tokens while their total probability is at most `mass`.

    Bans at most `max_banned` tokens, fewer than `vocab`.
    """
    by_value = scores.shape[-1] >= MIN_VOCAB_BY_VALUE and is_on_host(scores)
    return (ban_by_value if by_value else ban_by_order)(scores, mass, max_banned)


def ban_by_order(scores: Scores, mass: Mass, max_banned: int) -> Scores:
    """Sort the tokens and ban the first ones, as the tail is defined."""
    # From the least likely up, as in Hugging Face: the same rounding, the same tokens.
    ascending, order = scores.sort(dim=-1)
    tail = ascending.softmax(-1).cumsum(-1) <= mass
    tail[:, max_banned:] = False
    # `order` names every token once, so all of it is written.
    banned = torch.empty_like(tail).scatter_(1, order, tail)
    return scores.masked_fill(banned, -torch.inf)


def ban_by_value(scores: Scores, mass: Mass, max_banned: int) -> Scores:
    """Sort numbers in place of tokens, which is faster, and ban those below a threshold; CPU only.

    Equal to `ban_by_order` bit for bit, because the sums run in the same order. If tied tokens are on both
    sides of the threshold, their order matters, and `ban_by_order` treats the row.
    """
    masses = mass if isinstance(mass, Tensor) else scores.new_full((len(scores), 1), mass)
    out = torch.empty_like(scores)
    given, made, tail_masses = scores.numpy(), out.numpy(), masses.numpy()[:, 0]

    def ban(row: int) -> bool:
        threshold, is_tied = _threshold(given[row], tail_masses[row], max_banned)
        np.copyto(made[row], given[row])
        np.putmask(made[row], given[row] < threshold, -np.inf)
        return is_tied

    rows, threads = range(len(scores)), torch.get_num_threads()
    if threads == 1 or given.size < MIN_SIZE_FOR_THREADS:
        tied = [ban(row) for row in rows]
    else:
        with ThreadPoolExecutor(min(threads, len(scores))) as pool:
            tied = list(pool.map(ban, rows))
    tied_rows = [row for row, is_tied in zip(rows, tied, strict=True) if is_tied]
    if tied_rows:
        out[tied_rows] = ban_by_order(scores[tied_rows], masses[tied_rows], max_banned)
    return out


def _threshold(row: Row, mass: np.float32, max_banned: int) -> tuple[np.float32, bool]:
    """Return the least score outside the tail, and True if the tail has an equal one."""
    ascending = _sort(row)
    cumulative = torch.from_numpy(ascending).softmax(-1).cumsum(-1).numpy()
    # With a NaN or plus infinity among the scores every mass is NaN, which NumPy sorts above any number.
    length = min(int(np.searchsorted(cumulative, mass, side="right")), max_banned)
    threshold = ascending[length]
    return threshold, bool(length > 0 and ascending[length - 1] == threshold > -np.inf)


def _sort(row: Row) -> Row:
    """Sort in ascending order; where most of the row is banned, sort the rest only."""
    is_allowed = row != -np.inf
    if np.count_nonzero(is_allowed) > len(row) // 2:
        return np.sort(row)
    allowed = np.sort(row[is_allowed])
    return np.concatenate([np.full(len(row) - len(allowed), -np.inf, row.dtype), allowed])
