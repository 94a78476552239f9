"""What sampling without replacement must come to, by enumeration."""

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

# Token 2 ends; from 0 most goes on, from 1 much ends.
MARKOV = MarkovModel([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.25, 0.25, 0.5]], end_ids=(2,))
HASH = HashModel(4, seed=1, scale=1.0, end_ids=(2,))


def orders(probs: Mapping[Text, float], number: int) -> dict[tuple[Text, ...], float]:
    """Every sequence of draws without replacement, each by its share of what is left, and its probability."""
    found = {}
    for drawn in itertools.permutations(probs, number):
        left, chance = 1.0, 1.0
        for text in drawn:
            chance *= probs[text] / left
            left -= probs[text]
        found[drawn] = chance
    return found


def inclusion(probs: Mapping[Text, float], number: int) -> dict[Text, float]:
    """The probability of every text to be among so many draws without replacement."""
    found = dict.fromkeys(probs, 0.0)
    for drawn, chance in orders(probs, number).items():
        for text in drawn:
            found[text] += chance
    return found


def deviation(counts: Counter[Item], probs: Mapping[Item, float], draws: int) -> float:
    """By how many standard deviations the worst count is off. What may not be counted is infinitely off."""
    if counts.keys() - probs.keys():
        return math.inf
    return max(
        abs(counts[item] - draws * p) / math.sqrt(draws * p * (1 - p))
        if p < 1 - 1e-9
        else draws - counts[item]
        for item, p in probs.items()
    )


def drawn(out: dk.Decoded) -> list[tuple[Text, ...]]:
    """The texts of every prompt."""
    return [tuple(map(tuple, texts)) for texts in out.hypotheses()]


def off(estimates: Tensor, expectation: float) -> float:
    """How many standard errors the mean of estimates is from what it should be."""
    error = estimates.std() / len(estimates) ** 0.5
    return abs(float((estimates.mean() - expectation) / error))


def expectation(probs: Mapping[Text, float], values: Mapping[Text, float]) -> float:
    return sum(p * values[text] for text, p in probs.items())


class BansAllAfter(dk.StatelessProcessor):
    """Leaves no token after a certain one: a dead end."""

    def __init__(self, token: int) -> None:
        self.token = token

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores.masked_fill((history.last() == self.token)[:, None], -torch.inf)


class SaysFourIn(dk.StoppingCriterion):
    """Finishes a text once its ids sum to four or more. It remembers the sum."""

    reason = "four"

    def init(self, history: dk.History, run: dk.StoppingContext) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(history.tokens), dtype=torch.long)

    def apply(self, history: dk.History, log_probs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        memory = memory + history.last()
        return memory >= 4, memory


def check_settled(decoder: dk.Decoder[Any], model: dk.Model, chain: dk.Chain, new: int) -> set[int]:
    """Raises unless what is settled stands; returns how many tokens were before the end.

    Args:
        decoder: With 60 seeds.
        model: Of at least two tokens.
        chain: Before it.
        new: Tokens at most.
    """
    prompts = [[0], [1, 0], [0, 0]] * 20
    out = dk.decode(model, prompts, decoder, chain, max_new_tokens=new)
    lengths = set()
    stable_prefix: list[list[list[int]]] = []
    for progress in decode_steps(model, prompts, decoder, chain, max_new_tokens=new):
        stable_prefix = decoder.stable_prefix(progress.state)
        for said, final in zip(stable_prefix, out.hypotheses(), strict=True):
            assert len(said) <= len(final)
            for tokens, whole in zip(said, final, strict=False):
                assert whole[: len(tokens)] == tokens
            if said and not progress.state.done:
                lengths.add(len(said[0]))
    assert stable_prefix == out.hypotheses()
    return lengths
