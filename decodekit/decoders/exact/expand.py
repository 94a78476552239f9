"""How the texts of an exact search go on, sorted for its trees."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.decoders.exact.branch import Branch, Node
from decodekit.decoders.exact.explorer import Explorer
from decodekit.decoders.exact.stored_memory import keep

SUM, WORTH, BOUND = 0, 3, 4  # among the numbers of a `Branch`


class Expanded(NamedTuple):
    """How a text goes on.

    Attributes:
        ended: Continuations that have ended by their last token, best first: only as many as were asked for.
        going: The others, in the order in which they are to be looked at.
        rises: Whether any token adds more than 0.
    """

    ended: Branch
    going: Branch
    rises: bool


class Sorted(NamedTuple):
    """Some continuations of several texts, on the host, in an order of each text's own.

    Attributes:
        tokens: Their last tokens.
        numbers: As a `Branch` has them.
        most: As a `Branch` has them.
        counts: How many there are of each text.
    """

    tokens: Int64[np.ndarray, "rows children"]
    numbers: Float32[np.ndarray, "rows numbers children"]
    most: Float32[np.ndarray, "rows children"]
    counts: list[int]

    def branch(self, row: int, node: Node) -> Branch:
        """The continuations of one text, of which nothing is remembered."""
        number = self.counts[row]
        numbers, most = self.numbers[row, :, :number], self.most[row, :number]
        return Branch(node, self.tokens[row, :number], numbers, most)


def expand(
    explorer: Explorer,
    nodes: Sequence[Node],
    logits: Float32[Tensor, "rows vocab"],
    attention: Float32[Tensor, "rows context"] | None,
    best: int | None,
) -> list[Expanded]:
    """How some texts of one length go on.

    Args:
        explorer: Asks about them.
        nodes: The texts.
        logits: The model's of their next tokens.
        attention: What it attended to, if the scorer wants to know.
        best: How many of the ended are needed; the others come in the order of their bounds. None: ended or
            not, all come in the order of their sums.
    """
    model_scores = logits.log_softmax(-1)
    scores, processed = explorer.process(nodes, model_scores)
    (sums, worth, bounds), memory = explorer.judge(nodes, scores, attention)
    position = torch.tensor(explorer.limits.prompt_length + nodes[0].length + 1, device=logits.device)
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    finish_code = explorer.limits.finish_token(tokens, position).expand_as(sums)
    exists, ends = scores > -torch.inf, (finish_code > 0) & (best is not None)
    numbers = torch.stack([sums, scores, model_scores, worth, bounds, finish_code.float()], 1)
    ended = _sort(numbers, exists & ends, WORTH, best or 0)
    going = _sort(numbers, exists & ~ends, SUM if best is None else BOUND, len(tokens))
    rises = (exists & (scores > 0)).any(-1).tolist()
    kept = keep(memory, logits.device)
    expanded = []
    for row, node in enumerate(nodes):
        one = Expanded(ended.branch(row, node), going.branch(row, node), rises[row])
        if processed is not None:
            one.going.processed = processed.take(torch.tensor([row]))
        if kept is not None:
            # The scorer remembers every continuation, text after text; or nothing.
            first, each = (row * len(tokens), 1) if explorer.scorer.stateful else (row, 0)
            one.going.judged = kept.take(torch.from_numpy(first + each * one.going.tokens))
        expanded.append(one)
    return expanded


def _sort(
    numbers: Float32[Tensor, "rows numbers vocab"],
    exists: Bool[Tensor, "rows vocab"],
    key: int,
    best: int,
) -> Sorted:
    """The `best` continuations that exist, by one of their numbers; those that are tied in it by the sum."""
    # What does not exist has no sum, so it comes last whatever the other number is.
    order = numbers[:, SUM].masked_fill(~exists, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    by = numbers[:, key].masked_fill(~exists, -torch.inf)
    again = by.gather(1, order).argsort(dim=-1, descending=True, stable=True)
    counts = exists.sum(-1).clamp(max=best)
    order = order.gather(1, again)[:, : int(counts.max())]
    numbers = numbers.gather(2, order[:, None].expand(-1, numbers.shape[1], -1))
    most = numbers[:, WORTH if key == WORTH else BOUND]
    if key == SUM and order.shape[1]:  # a later one may have a greater bound
        most = most.masked_fill(~exists.gather(1, order), -torch.inf).flip(-1).cummax(-1).values.flip(-1)
    return Sorted(order.cpu().numpy(), numbers.cpu().numpy(), most.cpu().numpy(), counts.tolist())
