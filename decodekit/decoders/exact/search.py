"""What the exact searches share: a tree for every prompt, all of them grown at once."""

from collections.abc import Generator

import torch
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.exact.branch import Node, by_length
from decodekit.decoders.exact.expand import expand
from decodekit.decoders.exact.explorer import Explorer
from decodekit.decoders.exact.node_reader import NodeReader
from decodekit.decoders.exact.tree import Plan, Tree
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor
from decodekit.scorers.base import PathScorer


def search(
    model: Model,
    processor: LogitsProcessor,
    request: DecodeRequest,
    who: str,
    scorer: PathScorer,
    plan: Plan,
) -> Generator[None, None, Decoded[Certificate]]:
    """Grows every prompt's tree until it is over; a round is one call of the model for all prompts.

    Args:
        job: What is to be decoded.
        who: The algorithm.
        scorer: What texts are worth.
        plan: How the trees are searched.
    """
    new = request.max_new_tokens
    reader = NodeReader(model, request.prompt, scorer.outputs_spec, who, new)
    picked = [Node(number) for number in range(len(request.prompt.tokens))]
    logits, attention = reader.read(picked)
    limits = Limits.of(request, logits.shape[-1])
    prompts = request.prompt.to(logits.device).history(request.prompt.tokens.shape[1] + new, 1)
    explorer = Explorer(processor, scorer, limits, prompts)
    trees = [Tree(plan, explorer.finish) for _ in picked]
    # One more than is wanted bounds what was not returned.
    best = plan.num_return + 1 if plan.beams is None else None
    while True:
        yield
        for rows in by_length(picked):
            index = torch.tensor(rows, device=logits.device)
            seen = None if attention is None else attention.index_select(0, index)
            nodes = [picked[row] for row in rows]
            expanded = expand(explorer, nodes, logits.index_select(0, index), seen, best)
            for node, one in zip(nodes, expanded, strict=True):
                trees[node.prompt].expand(one)
        picked = [node for tree in trees for node in tree.pick()]
        if not picked:
            return _decoded(trees, plan.num_return, limits, logits.device)
        logits, attention = reader.read(picked)


def check_search(who: str, scorer: object, num_return: object, max_nodes: object) -> None:
    """Raises unless the options of an exact search are what they must be."""
    if not isinstance(scorer, PathScorer):
        raise TypeError(
            f"{who}: scorer must be a Scorer or PathScorer such as LengthPenalty(1.0), got {scorer!r:.80}."
        )
    if not is_count(num_return, 1):
        raise ValueError(f"{who}: num_return must be an integer of at least 1, got {num_return!r}.")
    if max_nodes is not None and not is_count(max_nodes, 1):
        raise ValueError(f"{who}: max_nodes must be an integer of at least 1, or None, got {max_nodes!r}.")


def _decoded(trees: list[Tree], number: int, limits: Limits, device: torch.device) -> Decoded[Certificate]:
    """The best `number` texts of every prompt, best first."""
    raise_if_all_banned(torch.tensor([tree.is_stuck for tree in trees]))
    new = max([1, *(node.length for tree in trees for node in tree.finished)])
    shape = (len(trees), number, new)
    tokens, parents = torch.full(shape, limits.pad_id), torch.full(shape, -1)
    token_log_probs = torch.zeros(shape)
    lengths, finish_code = (torch.zeros(shape[:2], dtype=torch.long) for _ in range(2))
    score = torch.full(shape[:2], -torch.inf)
    for prompt, tree in enumerate(trees):
        for hyp, node in enumerate(tree.finished):
            said = slice(node.length)
            tokens[prompt, hyp, said] = torch.tensor(node.tokens())
            token_log_probs[prompt, hyp, said] = torch.tensor([one.log_prob for one in node.line()[1:]])
            parents[prompt, hyp, said] = prompt
            lengths[prompt, hyp], finish_code[prompt, hyp], score[prompt, hyp] = (
                node.length,
                node.finish_code,
                node.score,
            )
    valid = lengths > 0

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    return Decoded(
        tokens=move(tokens),
        lengths=move(lengths),
        finish_reason=[
            [reason if is_valid else "missing" for reason, is_valid in zip(*row, strict=True)]
            for row in zip(limits.reasons(finish_code), valid.tolist(), strict=True)
        ],
        valid=move(valid),
        token_log_probs=move(token_log_probs),
        score=move(score),
        parents=move(parents),
        pad_id=limits.pad_id,
        finish_code=move(finish_code),
        report=Certificate(
            bound=move(torch.tensor([tree.bound for tree in trees])),
            worst=move(torch.tensor([tree.worst for tree in trees])),
            nodes=move(torch.tensor([tree.nodes for tree in trees])),
        ),
    )
