"""The tail that top-p bans, found in two ways."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from decodekit.core.device import is_on_host

# Of fewer tokens torch sorts all rows before the first is in Python's hands.
WORTH_A_LOOK = 2**12
# So few numbers are sorted before a thread is started.
WORTH_THREADS = 2**17

Row = NDArray[np.float32]


def ban_tail(
    scores: Float32[Tensor, "rows vocab"], rest: float | Float32[Tensor, "rows 1"], most: int
) -> Float32[Tensor, "rows vocab"]:
    """The scores with minus infinity for the least likely tokens.

    Args:
        scores: What each token is worth.
        rest: Probability that the tail has at most, for all rows or for each.
        most: Tokens that it has at most, fewer than there are.
    """
    by_value = scores.shape[-1] >= WORTH_A_LOOK and is_on_host(scores)
    return (ban_by_value if by_value else ban_by_order)(scores, rest, most)


def ban_by_order(
    scores: Float32[Tensor, "rows vocab"], rest: float | Float32[Tensor, "rows 1"], most: int
) -> Float32[Tensor, "rows vocab"]:
    """As the tail is defined: sorts the tokens, and bans the first ones."""
    # From the least likely up, as Hugging Face sums: the same rounding, the same tokens.
    ascending, order = scores.sort(dim=-1)
    tail = ascending.softmax(-1).cumsum(-1) <= rest
    tail[:, most:] = False
    # `order` names every token once, so all of it is written.
    banned = torch.empty_like(tail).scatter_(1, order, tail)
    return scores.masked_fill(banned, -torch.inf)


def ban_by_value(
    scores: Float32[Tensor, "rows vocab"], rest: float | Float32[Tensor, "rows 1"], most: int
) -> Float32[Tensor, "rows vocab"]:
    """The same bit for bit, on the CPU only: sorts numbers, which is quicker, and bans those below a bar.

    They are summed in the same order, and so round in the same way. Only where tied tokens stand on both
    sides of the bar does it matter which is which, and that row is done by order.
    """
    rests = rest if isinstance(rest, Tensor) else scores.new_full((len(scores), 1), rest)
    out = torch.empty_like(scores)
    given, made, most_probable = scores.numpy(), out.numpy(), rests.numpy()[:, 0]

    def ban(row: int) -> bool:
        floor, is_torn = _bar(given[row], most_probable[row], most)
        np.copyto(made[row], given[row])
        np.putmask(made[row], given[row] < floor, -np.inf)
        return is_torn

    rows, threads = range(len(scores)), torch.get_num_threads()
    if threads == 1 or given.size < WORTH_THREADS:
        torn = [ban(row) for row in rows]
    else:
        with ThreadPoolExecutor(min(threads, len(scores))) as pool:
            torn = list(pool.map(ban, rows))
    again = [row for row, is_torn in zip(rows, torn, strict=True) if is_torn]
    if again:
        out[again] = ban_by_order(scores[again], rests[again], most)
    return out


def _bar(row: Row, rest: np.float32, most: int) -> tuple[np.float32, bool]:
    """The least score that is not in the tail, and whether one as great is in it."""
    ascending = _sorted(row)
    mass = torch.from_numpy(ascending).softmax(-1).cumsum(-1).numpy()
    # Where a score is not a number below infinity no mass is one, which NumPy takes for more than any rest.
    length = min(int(np.searchsorted(mass, rest, side="right")), most)
    floor = ascending[length]
    return floor, bool(length > 0 and ascending[length - 1] == floor > -np.inf)


def _sorted(row: Row) -> Row:
    """The least first; what is banned is put in its place unsorted."""
    is_allowed = row != -np.inf
    if np.count_nonzero(is_allowed) > len(row) // 2:
        return np.sort(row)
    allowed = np.sort(row[is_allowed])
    return np.concatenate([np.full(len(row) - len(allowed), -np.inf, row.dtype), allowed])
