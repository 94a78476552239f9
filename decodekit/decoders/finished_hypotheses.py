"""Results of decoders that keep finished hypotheses in lists."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from decodekit.core.limits import Limits
from decodekit.core.result import Decoded


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
    shape = (len(prompts), number, new)
    tokens, parents = torch.full(shape, limits.pad_id), torch.full(shape, -1)
    token_log_probs = torch.zeros(shape)
    lengths, finish_code = (torch.zeros(shape[:2], dtype=torch.long) for _ in range(2))
    score = torch.full(shape[:2], -torch.inf)
    for prompt, hypotheses in enumerate(prompts):
        for rank, hypothesis in enumerate(hypotheses):
            length = len(hypothesis.tokens)
            tokens[prompt, rank, :length] = torch.tensor(hypothesis.tokens)
            token_log_probs[prompt, rank, :length] = torch.tensor(hypothesis.log_probs)
            parents[prompt, rank, :length] = prompt * rows_per_prompt + rank % rows_per_prompt
            lengths[prompt, rank], finish_code[prompt, rank] = length, hypothesis.finish_code
            score[prompt, rank] = hypothesis.score
    valid = lengths > 0
    return Decoded(
        tokens=tokens.to(device),
        lengths=lengths.to(device),
        finish_reason=[
            [reason if is_valid else "missing" for reason, is_valid in zip(*row, strict=True)]
            for row in zip(limits.reasons(finish_code), valid.tolist(), strict=True)
        ],
        valid=valid.to(device),
        token_log_probs=token_log_probs.to(device),
        score=score.to(device),
        parents=parents.to(device),
        pad_id=limits.pad_id,
        finish_code=finish_code.to(device),
    )
