"""Processors, stopping criteria and a scorer, asked about any texts in any order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.decoders.exact.branch import Node
from decodekit.decoders.exact.stored_memory import StoredMemory, keep, together
from decodekit.processors.apply import apply_processor, nonfinite_rows, not_numbers
from decodekit.processors.base import LogitsProcessor
from decodekit.scorers.base import ExtendedHypotheses, PathScorer


@dataclass(frozen=True, eq=False)
class Explorer:
    """Asks processors, criteria and the scorer of a search about its texts.

    What they remember is kept for every text on its own. Where it cannot be (a second model only reads on),
    they see the text again, token by token, as in the main loop.

    Attributes:
        processor: What changes the scores.
        scorer: What texts are worth.
        limits: Where they end.
        prompts: The prompts, a row each.
    """

    processor: LogitsProcessor
    scorer: PathScorer
    limits: Limits
    prompts: History

    def finish(self, node: Node) -> int:
        """What has finished a text with its newest token; 0: nothing has."""
        if not self.limits.criteria:
            return node.finish_code
        before = self._recall([node], lambda one: one.stopping, self.limits.start, self._stop, but=1)
        finish_code, after = self._ask([node], before)
        node.stopping = keep(after, finish_code.device)
        return int(finish_code)

    def process(
        self, nodes: Sequence[Node], model_scores: Float32[Tensor, "rows vocab"]
    ) -> tuple[Float32[Tensor, "rows vocab"], StoredMemory | None]:
        """The processed scores of the tokens after some texts of one length, and what is remembered then.

        Args:
            nodes: The texts.
            observed: The model's log-probabilities.

        Raises:
            DecodingError: If scores are not numbers below infinity.
        """
        before = self._recall(nodes, lambda node: node.processed, self.processor.init, self._process)
        scores, after = apply_processor(self.processor, self.history(nodes), model_scores, before)
        nonfinite = nonfinite_rows(scores)
        if nonfinite.any():
            raise not_numbers(nodes[int(nonfinite.int().argmax())].prompt)
        kept = keep(after, model_scores.device)
        for node, own in zip(nodes, model_scores, strict=True):
            node.model_scores = own if kept is None else None
        return scores, kept

    def judge(
        self,
        nodes: Sequence[Node],
        scores: Float32[Tensor, "rows vocab"],
        attention: Float32[Tensor, "rows context"] | None,
    ) -> tuple[Float32[Tensor, "three rows vocab"], Memory]:
        """The sums, scores and bounds of all continuations of some texts of one length, and their memory.

        Args:
            nodes: The texts.
            scores: What each token adds.
            attention: What the model attended to.
        """
        rows, vocab = scores.shape
        for row, node in enumerate(nodes):
            node.attention = None if attention is None else attention[row]
        memory = self._recall(nodes, lambda node: node.judged, self._begin, self._judge)
        if self.scorer.stateful:
            source_rows = torch.arange(rows, device=scores.device).repeat_interleave(vocab)
            seen = None if attention is None else attention.index_select(0, source_rows)
            tokens = torch.arange(vocab, device=scores.device).repeat(rows)
            growth = ExtendedHypotheses(self.history(nodes), source_rows, tokens, scores.flatten(), seen)
            memory = self.scorer.update(growth, reorder_memory(memory, source_rows))
        totals = torch.tensor([node.total for node in nodes], device=scores.device)
        sums = (totals[:, None] + scores).flatten()
        lengths = torch.full_like(sums, nodes[0].length + 1, dtype=torch.long)
        worth = self.scorer.score(sums, lengths, memory)
        bounds = self.scorer.upper_bound(sums, lengths, self.limits.max_new_tokens, memory)
        return torch.stack([sums, worth, bounds]).view(-1, rows, vocab), memory

    def history(self, nodes: Sequence[Node]) -> History:
        """Some texts of one length."""
        device = self.prompts.tokens.device
        part = self.prompts.part(torch.tensor([node.prompt for node in nodes], device=device))
        said = torch.tensor([node.tokens() for node in nodes], dtype=torch.long, device=device)
        first, last = self.limits.prompt_length, self.limits.prompt_length + nodes[0].length
        tokens, valid = part.tokens.clone(), part.valid.clone()
        tokens[:, first:last], valid[:, first:last] = said.view(len(nodes), -1), True
        return replace(part, tokens=tokens, valid=valid, position=part.position + nodes[0].length)

    def _recall(
        self,
        nodes: Sequence[Node],
        kept: Callable[[Node], StoredMemory | None],
        start: Callable[[History], Memory],
        step: Callable[[Sequence[Node], Sequence[Node], Memory], Memory],
        but: int = 0,
    ) -> Memory:
        """What is remembered of some texts of one length, all `but` the last tokens of them.

        Args:
            nodes: The texts.
            kept: What was kept of a text.
            start: What is remembered before anything was said.
            step: What is remembered of continuations, from what was of the texts that they continue.
        """
        levels = list(zip(*(node.line() for node in nodes), strict=True))
        levels = levels[: len(levels) - but]
        # From the longest beginnings that are remembered on.
        first, memory = 0, None
        for number, level in reversed(list(enumerate(levels))):
            there = [one for one in map(kept, level) if one is not None]
            if len(there) == len(level):
                first, memory = number, together(there)
                break
        else:
            memory = start(self.history(levels[0]))
        for before, after in pairwise(levels[first:]):
            memory = step(before, after, memory)
        return memory

    def _process(self, before: Sequence[Node], after: Sequence[Node], memory: Memory) -> Memory:  # noqa: ARG002
        """The processors see the logits of texts, which they have seen before."""
        model_scores = torch.stack([node.model_scores for node in before if node.model_scores is not None])
        return self.processor.apply(self.history(before), model_scores, memory)[1]

    def _begin(self, history: History) -> Memory:
        return self.scorer.init(history, self.limits)

    def _judge(self, before: Sequence[Node], after: Sequence[Node], memory: Memory) -> Memory:
        """The scorer follows texts that go on as they did."""
        device = self.prompts.tokens.device
        seen = [node.attention for node in before if node.attention is not None]
        growth = ExtendedHypotheses(
            parents=self.history(before),
            source_rows=torch.arange(len(before), device=device),
            tokens=torch.tensor([node.token for node in after], device=device),
            log_probs=torch.tensor([node.added for node in after], device=device),
            attention=torch.stack(seen) if seen else None,
        )
        return self.scorer.update(growth, memory)

    def _ask(self, nodes: Sequence[Node], memory: Stopping) -> tuple[Int64[Tensor, " rows"], Stopping]:
        device = self.prompts.tokens.device
        log_probs = torch.tensor([node.log_prob for node in nodes], device=device)
        return self.limits.finish(self.history(nodes), log_probs, memory)

    def _stop(self, before: Sequence[Node], after: Sequence[Node], memory: Stopping) -> Stopping:  # noqa: ARG002
        """The criteria are asked about texts again."""
        return self._ask(after, memory)[1]
