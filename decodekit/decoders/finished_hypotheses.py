"""Results of decoders that keep finished hypotheses in lists."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.decoders.beam.state import Finished


class FinishedHypothesis(NamedTuple):
    """A finished hypothesis: its new tokens, the model's log-probabilities of them, and its score."""

    tokens: list[int]
    log_probs: list[float]
    finish_code: int
    score: float


def decoded(
    prompts: Sequence[Sequence[FinishedHypothesis]],
    number: int,
    limits: Limits,
    device: torch.device,
    *,
    rows_per_prompt: int,
) -> Decoded[None]:
    """The result for each prompt's hypotheses, best first, `number` of them; missing ones are not valid.

    `rows_per_prompt` is the number of rows that each prompt was decoded on: 1 or `number`.
    """
    new = max([1, *(len(hypothesis.tokens) for hypotheses in prompts for hypothesis in hypotheses)])
    finished = Finished.empty(len(prompts), number, new, torch.device("cpu"))
    records = finished.records
    for prompt, hypotheses in enumerate(prompts):
        for rank, hypothesis in enumerate(hypotheses):
            length = len(hypothesis.tokens)
            records.tokens[prompt, rank, :length] = torch.tensor(hypothesis.tokens)
            records.log_probs[prompt, rank, :length] = torch.tensor(hypothesis.log_probs)
            records.parents[prompt, rank, :length] = prompt * rows_per_prompt + rank % rows_per_prompt
            finished.lengths[prompt, rank] = length
            finished.scores[prompt, rank] = hypothesis.score
            finished.finish_code[prompt, rank] = hypothesis.finish_code
            finished.used[prompt, rank] = True
    moved: Finished = tree_map(lambda field: field.to(device), finished)
    return moved.decoded(limits, number)
