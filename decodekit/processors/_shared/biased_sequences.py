"""Sequences of tokens, each with a bias on its last one."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decodekit.core.history import History
from decodekit.processors.base import Scores, check_largest


@final
@dataclass(frozen=True, eq=False)
class BiasedSequences:
    """Sequences of ids with a bias each; compared by identity, so that they are cheap cache keys.

    Attributes:
        ids: The sequences, of one id or more.
        biases: One per sequence, finite or minus infinity.
        largest: The largest id; -1 if there is none.
    """

    ids: tuple[tuple[int, ...], ...]
    biases: tuple[float, ...]
    largest: int

    @classmethod
    def of(cls, who: str, pairs: Iterable[tuple[tuple[int, ...], float]]) -> "BiasedSequences":
        """Build them from pairs; a repeated sequence gets its last bias.

        Raises:
            ValueError: If a sequence is empty.
        """
        biases = dict(pairs)
        if () in biases:
            raise ValueError(f"{who}: a sequence must hold at least one id, got an empty one.")
        # The order of Hugging Face's sums: single ids, then other lengths by first occurrence.
        first: dict[int, int] = {}
        for place, ids in enumerate(biases):
            first.setdefault(len(ids), place)
        ordered = sorted(biases, key=lambda ids: (len(ids) > 1, first[len(ids)]))
        largest = max((max(ids) for ids in ordered), default=-1)
        return cls(tuple(ordered), tuple(biases[ids] for ids in ordered), largest)

    def add(self, who: str, history: History, scores: Scores) -> Scores:
        """Add the bias of every sequence that the next token would complete."""
        check_largest(who, self.largest, scores.shape[-1])
        if not self.ids:
            return scores
        table = _table(self, scores.device)
        prefix = table.ids[:, :-1]
        # The newest tokens, as many as the longest sequence needs; a row may have fewer.
        columns = history.position + torch.arange(-prefix.shape[1], 0, device=scores.device)
        inside = columns.clamp(0, history.tokens.shape[1] - 1)
        newest = history.tokens.index_select(1, inside)
        valid = history.valid.index_select(1, inside) & (columns >= 0)
        # [rows sequences prefix] -> [rows sequences]
        same = (newest[:, None] == prefix) & valid[:, None]
        completed = (same | (prefix < 0)).all(-1)
        added = torch.where(completed, table.biases, 0.0)
        # Gather only the last ids of sequences: [rows vocab] -> [rows ends]
        before = scores.index_select(1, table.ends)
        bias = torch.zeros_like(before).index_add_(1, table.end, added)
        # Infinities of opposite signs would sum to NaN.
        banned = (bias == -torch.inf) | (before == -torch.inf)
        return scores.index_copy(1, table.ends, (before + bias).masked_fill(banned, -torch.inf))


class _Table(NamedTuple):
    ids: Int64[Tensor, "sequences longest"]  # -1 on the left, so that all end in the last column
    biases: Float32[Tensor, " sequences"]
    ends: Int64[Tensor, " ends"]  # the last ids, each once
    end: Int64[Tensor, " sequences"]  # the place of each sequence's last id among them


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the copy may later be used where gradients are computed
def _table(sequences: BiasedSequences, device: torch.device) -> _Table:
    # Cached: a copy at every step would stall the device's stream.
    ids = [torch.tensor(ids, device=device) for ids in sequences.ids]
    ends = list(dict.fromkeys(ids[-1] for ids in sequences.ids))
    place = {last: number for number, last in enumerate(ends)}
    return _Table(
        pad_sequence(ids, batch_first=True, padding_value=-1, padding_side="left"),
        torch.tensor(sequences.biases, dtype=torch.float32, device=device),
        torch.tensor(ends, device=device),
        torch.tensor([place[ids[-1]] for ids in sequences.ids], device=device),
    )
