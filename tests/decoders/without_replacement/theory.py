"""Laws of sampling without replacement, by enumeration."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

import decodekit as dk
from decodekit.engine.decode import decode_steps
from decodekit.testing import HashModel, MarkovModel

Text = tuple[int, ...]
Item = TypeVar("Item", bound=Hashable)

# Token 2 ends a hypothesis, rarely after 0 and often after 1.
MARKOV = MarkovModel([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.25, 0.25, 0.5]], end_ids=(2,))
HASH = HashModel(4, seed=1, scale=1.0, end_ids=(2,))


def orders(probs: Mapping[Text, float], number: int) -> dict[tuple[Text, ...], float]:
    """The probability of every sequence of draws without replacement."""
    found = {}
    for drawn in itertools.permutations(probs, number):
        remaining, chance = 1.0, 1.0
        for text in drawn:
            chance *= probs[text] / remaining
            remaining -= probs[text]
        found[drawn] = chance
    return found


def inclusion(probs: Mapping[Text, float], number: int) -> dict[Text, float]:
    """The inclusion probability of every hypothesis in `number` draws without replacement."""
    found = dict.fromkeys(probs, 0.0)
    for drawn, chance in orders(probs, number).items():
        for text in drawn:
            found[text] += chance
    return found


def deviation(counts: Counter[Item], probs: Mapping[Item, float], draws: int) -> float:
    """The largest deviation of a count, in standard deviations; infinite if an impossible item occurs."""
    if counts.keys() - probs.keys():
        return math.inf
    return max(
        abs(counts[item] - draws * p) / math.sqrt(draws * p * (1 - p))
        if p < 1 - 1e-9
        else draws - counts[item]
        for item, p in probs.items()
    )


def drawn(out: dk.Decoded) -> list[tuple[Text, ...]]:
    """The hypotheses of every prompt, as tuples."""
    return [tuple(map(tuple, texts)) for texts in out.hypotheses()]


def standard_errors(estimates: Tensor, expectation: float) -> float:
    """The distance of the mean of estimates from the expectation, in standard errors."""
    error = estimates.std() / len(estimates) ** 0.5
    return abs(float((estimates.mean() - expectation) / error))


def expectation(probs: Mapping[Text, float], values: Mapping[Text, float]) -> float:
    return sum(p * values[text] for text, p in probs.items())


class BansAllAfter(dk.StatelessProcessor):
    """Bans every token after a given one: a dead end."""

    def __init__(self, token: int) -> None:
        self.token = token

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores.masked_fill((history.last() == self.token)[:, None], -torch.inf)


class SumIsFour(dk.StoppingCriterion):
    """Finishes a hypothesis once its ids sum to four or more. Remembers the sum."""

    reason = "four"

    def init(self, history: dk.History, run: dk.StoppingContext) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(history.tokens), dtype=torch.long)

    def apply(self, history: dk.History, log_probs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        memory = memory + history.last()
        return memory >= 4, memory


def check_stable_prefix(decoder: dk.Decoder[Any], model: dk.Model, chain: dk.Chain, new: int) -> set[int]:
    """Raise if the stable prefix ever changes; return its lengths before the end.

    Args:
        decoder: A decoder with 60 seeds.
        model: A model of at least two tokens.
        chain: The processors.
        new: Maximum number of new tokens.
    """
    prompts = [[0], [1, 0], [0, 0]] * 20
    out = dk.decode(model, prompts, decoder, chain, max_new_tokens=new)
    lengths = set()
    stable_prefix: list[list[list[int]]] = []
    for progress in decode_steps(model, prompts, decoder, chain, max_new_tokens=new):
        stable_prefix = decoder.stable_prefix(progress.state)
        for prefixes, final in zip(stable_prefix, out.hypotheses(), strict=True):
            assert len(prefixes) <= len(final)
            for tokens, whole in zip(prefixes, final, strict=False):
                assert whole[: len(tokens)] == tokens
            if prefixes and not progress.state.done:
                lengths.add(len(prefixes[0]))
    assert stable_prefix == out.hypotheses()
    return lengths
