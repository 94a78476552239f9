"""The expansion of nodes: processors, scorer and stopping criteria, for nodes in any order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.decoders.exact.node import Children, MemorySnapshot, Node
from decodekit.processors.base import LogitsProcessor, apply_processor, nonfinite_error, nonfinite_rows
from decodekit.scorers.base import ExtendedHypotheses, PathScorer

TOTAL, SCORE, BOUND = 0, 3, 4  # rows of `Children.values`


class ExpandedNode(NamedTuple):
    """The children of a node."""

    finished: Children  # children that their last token ends, best first; at most `num_finished`
    open: Children  # all other children, in the order of the search
    exceeds_zero: bool  # True if some token has a processed log-probability above 0


@dataclass(frozen=True, eq=False)
class Expander:
    """Applies processors, scorer and stopping criteria to nodes.

    Their memories are stored per node. A memory that cannot be stored (the session of a second model) is
    computed again: it reads the prompt and the hypothesis, token by token.
    """

    processor: LogitsProcessor
    scorer: PathScorer
    limits: Limits
    prompts: History  # the prompts, one row each

    def expand(
        self,
        nodes: Sequence[Node],
        logits: Float32[Tensor, "rows vocab"],
        attention: Float32[Tensor, "rows context"] | None,
        num_finished: int | None,
    ) -> list[ExpandedNode]:
        """Expand nodes of one length.

        With `num_finished`, that many finished children are kept per node, and open ones are in the order of
        their bounds. With None, all children are open, in the order of their totals.
        """
        model_scores = logits.log_softmax(-1)
        scores, processor_memory = self._process(nodes, model_scores)
        (totals, worth, bounds), memory = self._score(nodes, scores, attention)
        position = torch.tensor(self.limits.prompt_length + nodes[0].length + 1, device=logits.device)
        tokens = torch.arange(logits.shape[-1], device=logits.device)
        finish_code = self.limits.finish_token(tokens, position).expand_as(totals)
        exists, ends = scores > -torch.inf, (finish_code > 0) & (num_finished is not None)
        values = torch.stack([totals, scores, model_scores, worth, bounds, finish_code.float()], 1)
        finished = _sorted_children(nodes, values, exists & ends, SCORE, num_finished or 0)
        key = TOTAL if num_finished is None else BOUND
        unfinished = _sorted_children(nodes, values, exists & ~ends, key, len(tokens))
        exceeds_zero = (exists & (scores > 0)).any(-1).tolist()
        scorer_memory = MemorySnapshot.store(memory, logits.device)
        for row, children in enumerate(unfinished):
            if processor_memory is not None:
                children.processor_memory = processor_memory.take(torch.tensor([row]))
            if scorer_memory is not None:
                # A memory has a row per child of each node; an empty one has a row per node.
                first, each = (row * len(tokens), 1) if self.scorer.stateful else (row, 0)
                children.scorer_memory = scorer_memory.take(torch.from_numpy(first + each * children.tokens))
        return [ExpandedNode(*parts) for parts in zip(finished, unfinished, exceeds_zero, strict=True)]

    def finish_code(self, node: Node) -> int:
        """The code of the reason why a node is finished, stopping criteria included; 0 if it is not."""
        if not self.limits.criteria:
            return node.finish_code
        parent = node.path()[-2:-1]
        before = self._recall(parent, lambda each: each.stopping_memory, self.limits.start, self._replay_stop)
        finish_code, after = self._stop([node], before)
        node.stopping_memory = MemorySnapshot.store(after, finish_code.device)
        return int(finish_code)

    def _process(
        self, nodes: Sequence[Node], model_scores: Float32[Tensor, "rows vocab"]
    ) -> tuple[Float32[Tensor, "rows vocab"], MemorySnapshot | None]:
        """The processed scores after nodes, and the new memory of the processors."""
        before = self._recall(
            nodes, lambda node: node.processor_memory, self.processor.init, self._replay_process
        )
        scores, after = apply_processor(self.processor, self._history(nodes), model_scores, before)
        nonfinite = nonfinite_rows(scores)
        if nonfinite.any():
            raise nonfinite_error(nodes[int(nonfinite.int().argmax())].prompt)
        snapshot = MemorySnapshot.store(after, model_scores.device)
        for node, log_probs in zip(nodes, model_scores, strict=True):
            node.model_scores = log_probs if snapshot is None else None
        return scores, snapshot

    def _score(
        self,
        nodes: Sequence[Node],
        scores: Float32[Tensor, "rows vocab"],
        attention: Float32[Tensor, "rows context"] | None,
    ) -> tuple[Float32[Tensor, "three rows vocab"], Memory]:
        """The totals, scores and bounds of all children of nodes, and the scorer's memory of the children."""
        rows, vocab = scores.shape
        for row, node in enumerate(nodes):
            node.attention = None if attention is None else attention[row]
        memory = self._recall(
            nodes,
            lambda node: node.scorer_memory,
            lambda history: self.scorer.init(history, self.limits),
            self._replay_score,
        )
        if self.scorer.stateful:
            source_rows = torch.arange(rows, device=scores.device).repeat_interleave(vocab)
            attended = None if attention is None else attention.index_select(0, source_rows)
            tokens = torch.arange(vocab, device=scores.device).repeat(rows)
            extended = ExtendedHypotheses(
                self._history(nodes), source_rows, tokens, scores.flatten(), attended
            )
            memory = self.scorer.update(extended, reorder_memory(memory, source_rows))
        node_totals = torch.tensor([node.total for node in nodes], device=scores.device)
        totals = (node_totals[:, None] + scores).flatten()
        lengths = torch.full_like(totals, nodes[0].length + 1, dtype=torch.long)
        worth = self.scorer.score(totals, lengths, memory)
        bounds = self.scorer.upper_bound(totals, lengths, self.limits.max_new_tokens, memory)
        return torch.stack([totals, worth, bounds]).view(-1, rows, vocab), memory

    def _stop(self, nodes: Sequence[Node], memory: Stopping) -> tuple[Int64[Tensor, " rows"], Stopping]:
        device = self.prompts.tokens.device
        log_probs = torch.tensor([node.log_prob for node in nodes], device=device)
        return self.limits.finish(self._history(nodes), log_probs, memory)

    def _history(self, nodes: Sequence[Node]) -> History:
        """The histories of nodes of one length."""
        device = self.prompts.tokens.device
        part = self.prompts.part(torch.tensor([node.prompt for node in nodes], device=device))
        new = torch.tensor([node.tokens() for node in nodes], dtype=torch.long, device=device)
        first, last = self.limits.prompt_length, self.limits.prompt_length + nodes[0].length
        tokens, valid = part.tokens.clone(), part.valid.clone()
        tokens[:, first:last], valid[:, first:last] = new.view(len(nodes), -1), True
        return replace(part, tokens=tokens, valid=valid, position=part.position + nodes[0].length)

    def _recall(
        self,
        nodes: Sequence[Node],
        stored: Callable[[Node], MemorySnapshot | None],
        init: Callable[[History], Memory],
        replay: Callable[[Sequence[Node], Sequence[Node], Memory], Memory],
    ) -> Memory:
        """The memory of nodes of one length, replayed from the deepest level at which it is stored.

        `replay` takes the nodes of two successive levels of the paths, and the memory of the first level.
        """
        levels = list(zip(*(node.path() for node in nodes), strict=True))
        for depth in reversed(range(len(levels))):
            snapshots = [snapshot for snapshot in map(stored, levels[depth]) if snapshot is not None]
            if len(snapshots) == len(levels[depth]):
                memory = MemorySnapshot.restore(snapshots)
                break
        else:
            depth, memory = 0, init(self._history(levels[0]))
        for parents, children in pairwise(levels[depth:]):
            memory = replay(parents, children, memory)
        return memory

    def _replay_process(self, parents: Sequence[Node], _: Sequence[Node], memory: Memory) -> Memory:
        stored = torch.stack([node.model_scores for node in parents if node.model_scores is not None])
        return self.processor.apply(self._history(parents), stored, memory)[1]

    def _replay_score(self, parents: Sequence[Node], nodes: Sequence[Node], memory: Memory) -> Memory:
        device = self.prompts.tokens.device
        attention = [node.attention for node in parents if node.attention is not None]
        extended = ExtendedHypotheses(
            parents=self._history(parents),
            source_rows=torch.arange(len(parents), device=device),
            tokens=torch.tensor([node.token for node in nodes], device=device),
            log_probs=torch.tensor([node.processed_log_prob for node in nodes], device=device),
            attention=torch.stack(attention) if attention else None,
        )
        return self.scorer.update(extended, memory)

    def _replay_stop(self, _: Sequence[Node], nodes: Sequence[Node], memory: Stopping) -> Stopping:
        return self._stop(nodes, memory)[1]


def _sorted_children(
    nodes: Sequence[Node],
    values: Float32[Tensor, "rows values vocab"],
    exists: Bool[Tensor, "rows vocab"],
    key: int,
    limit: int,
) -> list[Children]:
    """The `limit` best children of each node by the value `key`, ties by the total."""
    # A child that does not exist gets a total of minus infinity, so it comes last for every key.
    by_total = values[:, TOTAL].masked_fill(~exists, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    by_key = values[:, key].masked_fill(~exists, -torch.inf).gather(1, by_total)
    counts = exists.sum(-1).clamp(max=limit)
    order = by_total.gather(1, by_key.argsort(dim=-1, descending=True, stable=True))[:, : int(counts.max())]
    values = values.gather(2, order[:, None].expand(-1, values.shape[1], -1))
    bounds = values[:, SCORE if key == SCORE else BOUND]
    if key == TOTAL and order.shape[1]:  # a later child may have a larger bound
        bounds = bounds.masked_fill(~exists.gather(1, order), -torch.inf)
        bounds = bounds.flip(-1).cummax(-1).values.flip(-1)
    tokens, columns, max_bounds = order.cpu().numpy(), values.cpu().numpy(), bounds.cpu().numpy()
    return [
        Children(node, tokens[row, :count], columns[row, :, :count], max_bounds[row, :count])
        for row, (node, count) in enumerate(zip(nodes, counts.tolist(), strict=True))
    ]
