"""The loop of the exact searches: one tree per prompt, all expanded together."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import Requirement, at_least, shown
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.exact.expansion import Expander
from decodekit.decoders.exact.node import Node, group_by_length
from decodekit.decoders.exact.tree import SearchPlan, SearchTree
from decodekit.decoders.finished_hypotheses import FinishedHypothesis, decoded
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.errors import DecodekitError, ModelError
from decodekit.models.protocols import Model, ModelOutputsSpec, ModelWithOutputs
from decodekit.processors.base import LogitsProcessor, Scores
from decodekit.scorers.base import PathScorer, check_scorer


def search(
    model: Model,
    processor: LogitsProcessor,
    request: DecodeRequest,
    scorer: PathScorer,
    plan: SearchPlan,
    who: str,
) -> Generator[None, None, Decoded[Certificate]]:
    """Search every prompt's tree. A round is one call of the model for all prompts."""
    new = request.max_new_tokens
    node_logits = NodeLogits(model, request.prompt, scorer.outputs_spec, who, new)
    nodes = [Node(number) for number in range(len(request.prompt.tokens))]
    logits, attention = node_logits.compute(nodes)
    device, limits = logits.device, Limits.of(request, logits.shape[-1])
    prompts = request.prompt.to(device).history(request.prompt.tokens.shape[1] + new, 1)
    expander = Expander(processor, scorer, limits, prompts)
    trees = [SearchTree(plan, expander.finish_code) for _ in nodes]
    # One more than is wanted bounds all that are not returned.
    num_finished = plan.num_return + 1 if plan.beams is None else None
    while nodes:
        yield
        for rows in group_by_length(nodes):
            index = torch.tensor(rows, device=device)
            attended = None if attention is None else attention.index_select(0, index)
            group = [nodes[row] for row in rows]
            expansions = expander.expand(group, logits.index_select(0, index), attended, num_finished)
            for node, expansion in zip(group, expansions, strict=True):
                trees[node.prompt].add(expansion)
        nodes = [node for tree in trees for node in tree.next_nodes()]
        if nodes:
            logits, attention = node_logits.compute(nodes)
    raise_if_all_banned(torch.tensor([tree.all_banned for tree in trees]))
    report = Certificate(
        bound=torch.tensor([tree.bound for tree in trees]).to(device),
        worst=torch.tensor([tree.worst for tree in trees]).to(device),
        nodes=torch.tensor([tree.num_expanded for tree in trees]).to(device),
    )
    finished = [[_finished(node) for node in tree.finished] for tree in trees]
    return decoded(finished, plan.num_return, limits, device, rows_per_prompt=1).with_report(report)


def _finished(node: Node) -> FinishedHypothesis:
    log_probs = [each.log_prob for each in node.path()[1:]]
    return FinishedHypothesis(node.tokens(), log_probs, node.finish_code, node.score)


def check_search(who: str, scorer: object, num_return: object, max_nodes: object) -> None:
    """Raise unless the options of an exact search are valid."""
    check_scorer(who, "scorer", scorer)
    at_least(1).check(who, "num_return", num_return)
    if max_nodes is not None:
        Requirement(at_least(1).holds, "an integer of at least 1, or None").check(who, "max_nodes", max_nodes)


class NodeLogits:
    """Runs the model over nodes, each from the start of its prompt."""

    def __init__(
        self, model: Model, prompt: Prompt, outputs_spec: ModelOutputsSpec, who: str, new: int
    ) -> None:
        self._model, self._prompt, self._outputs_spec = model, prompt, outputs_spec
        self._who, self._capacity = who, prompt.tokens.shape[1] + new
        self._ids = prompt.ids()
        self._accepts_padding = True  # until the model refuses a batch of different lengths

    def compute(self, nodes: Sequence[Node]) -> tuple[Scores, Float32[Tensor, "rows context"] | None]:
        """The logits after every node, and the attention if it is required."""
        if self._outputs_spec:
            return self._compute_stepwise(nodes)
        if self._accepts_padding:
            try:
                return self._compute_at_once(nodes), None
            except ModelError:
                self._accepts_padding = False  # any other reason raises again below
        groups = group_by_length(nodes)
        logits = torch.cat([self._compute_at_once([nodes[row] for row in group]) for group in groups])
        order = torch.tensor([row for group in groups for row in group], device=logits.device)
        return logits[order.argsort()], None

    def _compute_at_once(self, nodes: Sequence[Node]) -> Float32[Tensor, "rows vocab"]:
        """One pass over prompts and new tokens."""
        sequences = Prompt.from_ids([self._ids[node.prompt] + node.tokens() for node in nodes])
        prompt = replace(self._prompts_of(nodes), tokens=sequences.tokens, mask=sequences.mask)
        capacity = sequences.tokens.shape[1] + 1
        _, logits = self._model.start(prompt, rows_per_prompt=1, capacity=capacity)
        return logits

    def _compute_stepwise(
        self, nodes: Sequence[Node]
    ) -> tuple[Scores, Float32[Tensor, "rows context"] | None]:
        """One pass per new token: a session reports attention to the columns of the prompts only."""
        if not isinstance(self._model, ModelWithOutputs):
            raise DecodekitError(
                f"decode: {self._who} needs a model that shows {self._outputs_spec}, and "
                f"{shown(self._model)} has no start_with_outputs(). Use dk.HFModel, or write "
                "that method: see decodekit.ModelWithOutputs."
            )
        session, logits = self._model.start_with_outputs(
            self._prompts_of(nodes),
            rows_per_prompt=1,
            capacity=self._capacity,
            outputs_spec=self._outputs_spec,
        )
        sequences = [node.tokens() for node in nodes]
        logits, attention = logits.clone(), session.model_outputs.attention
        attention = None if attention is None else attention.clone()
        for step in range(max(map(len, sequences))):
            tokens = torch.tensor([(new[step:] or [0])[0] for new in sequences], device=logits.device)
            newest = session.advance(tokens, None)
            unread = torch.tensor([step < len(new) for new in sequences], device=logits.device)[:, None]
            logits = torch.where(unread, newest, logits)
            if attention is not None and session.model_outputs.attention is not None:
                attention = torch.where(unread, session.model_outputs.attention, attention)
        return logits, attention

    def _prompts_of(self, nodes: Sequence[Node]) -> Prompt:
        return self._prompt.take(torch.tensor([node.prompt for node in nodes]))
