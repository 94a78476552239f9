"""Slow, readable references: one prompt at a time, with lists and loops, no cache and no batch."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from decodekit.core.prompt import Prompt
from decodekit.models.protocols import Model
from decodekit.scorers.base import Scorer

# From a sequence to the log-probabilities of the next token.
NextLogProbs = Callable[[list[int]], list[float]]


class Hypothesis(NamedTuple):
    """A continuation, the sum of its log-probabilities, and its score."""

    tokens: list[int]
    log_prob: float
    score: float


def next_log_probs(model: Model) -> NextLogProbs:
    """The model as a function of the whole sequence, without a cache.

    Example:
        >>> model = dk.testing.MarkovModel([[0.25, 0.75], [0.5, 0.5]])
        >>> [round(log_prob, 2) for log_prob in next_log_probs(model)([0])]
        [-1.39, -0.29]
    """

    def function(tokens: list[int]) -> list[float]:
        _, logits = model.start(Prompt.from_ids([tokens]), rows_per_prompt=1, capacity=len(tokens) + 1)
        log_probs: list[float] = logits[0].log_softmax(-1).tolist()
        return log_probs

    return function


def score_of(scorer: Scorer, log_prob: float, length: int) -> float:
    """The scorer's value for one hypothesis."""
    return float(scorer(torch.tensor([log_prob]), torch.tensor([length]))[0])


def enumerate_hypotheses(
    log_probs: NextLogProbs, prompt: list[int], scorer: Scorer, end_ids: set[int], max_new_tokens: int
) -> list[Hypothesis]:
    """Every continuation, best score first. Only for small vocabularies and few steps.

    Example:
        >>> model = dk.testing.MarkovModel([[0.1, 0.9], [0.5, 0.5]])
        >>> best = enumerate_hypotheses(next_log_probs(model), [0], dk.LogProb(), set(), 2)[0]
        >>> best.tokens
        [1, 0]
    """

    def expand(tokens: list[int], log_prob: float) -> Iterator[Hypothesis]:
        if tokens and (tokens[-1] in end_ids or len(tokens) == max_new_tokens):
            yield Hypothesis(tokens, log_prob, score_of(scorer, log_prob, len(tokens)))
            return
        for token, added in enumerate(log_probs(prompt + tokens)):
            if added > -torch.inf:
                yield from expand([*tokens, token], log_prob + added)

    return sorted(expand([], 0.0), key=lambda hypothesis: -hypothesis.score)


def greedy(log_probs: NextLogProbs, prompt: list[int], end_ids: set[int], max_new_tokens: int) -> Hypothesis:
    """The most probable token at every step.

    Example:
        >>> model = dk.testing.MarkovModel([[0.25, 0.75], [0.5, 0.5]])
        >>> greedy(next_log_probs(model), [0], end_ids=set(), max_new_tokens=2).tokens
        [1, 0]
    """
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in end_ids):
        distribution = log_probs(prompt + tokens)
        token = max(range(len(distribution)), key=distribution.__getitem__)
        tokens, total = [*tokens, token], total + distribution[token]
    return Hypothesis(tokens, total, total)


def beam_search(  # noqa: PLR0913, PLR0917 - the definition of the search
    log_probs: NextLogProbs,
    prompt: list[int],
    beams: int,
    scorer: Scorer,
    should_continue: Callable[[list[float], int, float, int], bool],
    end_ids: set[int],
    max_new_tokens: int,
    criterion: Callable[[list[int]], bool] = lambda tokens: False,  # noqa: ARG005 - no criterion
) -> list[Hypothesis]:
    """Beam search by its definition: expand all beams, keep the best, collect finished hypotheses, and stop.

    Args:
        log_probs: The model.
        prompt: One prompt.
        beams: Number of live hypotheses, and of finished ones to keep.
        scorer: Ranks finished hypotheses.
        should_continue: The stop rule, once `beams` hypotheses are finished: True to continue, from their
            scores (best first), the length, the best live log-probability and the greatest length.
        end_ids: Ids that end a hypothesis.
        max_new_tokens: Largest number of new tokens.
        criterion: A stopping criterion: True if the new tokens are a finished hypothesis.

    Returns:
        The finished hypotheses, best first.

    Example:
        >>> model = dk.testing.MarkovModel([[0.1, 0.9], [0.5, 0.5]])
        >>> stop = lambda scores, length, best_live, max_length: False
        >>> beam_search(next_log_probs(model), [0], 2, dk.LogProb(), stop, set(), 2)[0].tokens
        [1, 0]
    """

    def ends(tokens: list[int]) -> bool:
        return tokens[-1] in end_ids or criterion(tokens)

    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        candidates = [
            ([*tokens, token], total + added)
            for tokens, total in live
            for token, added in enumerate(log_probs(prompt + tokens))
            if added > -torch.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[1])
        candidates = candidates[: max(2, 1 + len(end_ids)) * beams]
        for rank, (tokens, total) in enumerate(candidates):
            if (ends(tokens) or length == max_new_tokens) and rank < beams:
                finished.append(Hypothesis(tokens, total, score_of(scorer, total, length)))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beams]
        live = [
            (tokens, total) for tokens, total in candidates if not ends(tokens) and length < max_new_tokens
        ][:beams]
        if not live:
            break
        scores = [hypothesis.score for hypothesis in finished]
        if len(finished) == beams and not should_continue(scores, length, live[0][1], max_new_tokens):
            break
    return finished
