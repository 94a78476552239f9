"""The loop of the exact searches: one tree per prompt, all expanded together."""

from collections.abc import Generator

import torch

from decodekit.core.limits import Limits
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import Requirement, at_least
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.exact.expansion import Expander
from decodekit.decoders.exact.node import Node, group_by_length
from decodekit.decoders.exact.node_logits import NodeLogits
from decodekit.decoders.exact.tree import SearchPlan, SearchTree
from decodekit.decoders.finished_hypotheses import FinishedHypothesis, decoded
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor
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
