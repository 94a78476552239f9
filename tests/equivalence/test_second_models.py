"""Processors that hold a second model, against recomputation: no cache, no batch, no padding.

For every text both plain models read all of it, and the formula of the paper makes one distribution of two,
in double precision. The slow searches of `decodekit.testing` go on from there.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit import rng
from decodekit.testing import beam_search, greedy
from tests.equivalence.families import ENDS, FIRST_TEXT_ID, PAD, VOCAB, build, wrap

pytestmark = pytest.mark.mostly_slow(16)

NEW = 6
LENGTH = 7

# The log-probabilities of the run's own model, then of the others, as one list of scores.
Formula = Callable[..., Tensor]


@cache
def plain(family: str, seed: int, text: tuple[int, ...]) -> Tensor:
    """The log-probabilities after a text, from one forward pass over all of it."""
    tokens = torch.tensor([text])
    with torch.no_grad():
        logits = build(family, seed)(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return logits[0, -1].float().double().log_softmax(-1)


@cache
def companion(family: str, seed: int) -> dk.HFModel:
    """A second model; with seed 0 the very object that is decoded."""
    return wrap(family) if seed == 0 else dk.HFModel(build(family, seed))


class Other(NamedTuple):
    """A second model, and whether it reads the prompt, its last token, or a text of its own."""

    seed: int
    reads: str = "prompt"

    def start(self, prompt: list[int], own: list[int]) -> list[int]:
        return {"prompt": prompt, "last": prompt[-1:], "own": own}[self.reads]


class Case(NamedTuple):
    """A processor, the second models it holds, and its formula."""

    make: Callable[[Sequence[dk.HFModel], list[list[int]]], dk.LogitsProcessor]
    others: tuple[Other, ...]
    formula: Formula


def contrast(expert: Tensor, amateur: Tensor) -> Tensor:
    tempered = (amateur / 1.5).log_softmax(-1)
    plausible = expert.exp() >= 0.05 * expert.exp().max()
    return torch.where(plausible, expert - 0.8 * tempered, -torch.inf)


def pointwise(own: Tensor, prior: Tensor) -> Tensor:
    entropy = -(own.exp() * own).sum()
    return own - 0.7 * prior if entropy >= 1.5 else own


CASES: dict[str, Case] = {
    "guidance": Case(
        lambda models, _: dk.ClassifierFreeGuidance(models[0], 1.7),
        (Other(0, "last"),),
        lambda c, u: 1.7 * (c - u) + u,
    ),
    "guidance of another model": Case(
        lambda models, _: dk.ClassifierFreeGuidance(models[0], 0.4),
        (Other(1, "last"),),
        lambda c, u: 0.4 * (c - u) + u,
    ),
    "guidance away from prompts": Case(
        lambda models, own: dk.ClassifierFreeGuidance(models[0], 2.5, own),
        (Other(0, "own"),),
        lambda c, u: 2.5 * (c - u) + u,
    ),
    "contrast": Case(
        lambda models, _: dk.ContrastiveGuidance(models[0], 0.05, 0.8, 1.5), (Other(1),), contrast
    ),
    "experts": Case(
        lambda models, _: dk.DExperts(*models, 0.9),
        (Other(1), Other(2)),
        lambda own, wanted, unwanted: (own + 0.9 * (wanted - unwanted)).log_softmax(-1),
    ),
    "fusion": Case(
        lambda models, _: dk.ShallowFusion(models[0], 0.6), (Other(1),), lambda own, other: own + 0.6 * other
    ),
    "mixture": Case(
        lambda models, _: dk.Ensemble(models, [2, 1, 1]),
        (Other(1), Other(2)),
        lambda *each: (0.5 * each[0].exp() + 0.25 * each[1].exp() + 0.25 * each[2].exp()).log(),
    ),
    "product": Case(
        lambda models, _: dk.Ensemble(models, average="log_prob"),
        (Other(1),),
        lambda own, other: (own + other) / 2,
    ),
    "pmi": Case(lambda models, _: dk.PMI(models[0], 0.7, 1.5), (Other(1, "last"),), pointwise),
    "context": Case(
        lambda models, own: dk.ContextAware(models[0], 0.5, own),
        (Other(0, "own"),),
        lambda c, u: (1.5 * c - 0.5 * u).log_softmax(-1),
    ),
}


class Question(NamedTuple):
    """What is decoded with what: prompts of different lengths, and others of different lengths."""

    family: str
    other_family: str
    prompts: list[list[int]]
    own: list[list[int]]


def questions(number: int) -> list[Question]:
    """Four of them: two families, each beside itself (with other weights) and beside the other one."""
    asked = []
    for index, (family, other) in enumerate(
        (("gpt2", "gpt2"), ("gpt2", "llama"), ("llama", "llama"), ("llama", "gpt2"))
    ):
        seed = 4 * number + index
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, LENGTH, (2, 2), generator=generator).tolist()
        texts = [
            [torch.randint(FIRST_TEXT_ID, VOCAB, (length,), generator=generator).tolist() for length in row]
            for row in lengths
        ]
        asked.append(Question(family, other, *texts))
    return asked


def recompute(case: Case, question: Question, row: int) -> Callable[[list[int]], list[float]]:
    """The combined scores as a function of the text."""
    prompt = question.prompts[row]

    def scores(text: list[int]) -> list[float]:
        said = text[len(prompt) :]
        others = [
            plain(
                question.other_family if other.seed else question.family,
                other.seed,
                (*other.start(prompt, question.own[row]), *said),
            )
            for other in case.others
        ]
        numbers: list[float] = case.formula(plain(question.family, 0, tuple(text)), *others).tolist()
        return numbers

    return scores


def processor_of(case: Case, question: Question) -> dk.LogitsProcessor:
    families = [question.other_family if other.seed else question.family for other in case.others]
    models = [companion(family, other.seed) for family, other in zip(families, case.others, strict=True)]
    return case.make(models, question.own)


def run(case: Case, question: Question, decoder: dk.Decoder[Any]) -> list[list[list[int]]]:
    """What decodekit says, in one batch with left padding."""
    return dk.decode(
        wrap(question.family),
        question.prompts,
        decoder,
        processor_of(case, question),
        max_new_tokens=NEW,
        end_ids=ENDS,
        pad_id=PAD,
    ).hypotheses()


def heuristic(scores: list[float], length: int, live: float, longest: int) -> bool:  # noqa: ARG001
    return live / length > scores[-1]


def exact_beams(
    scores: Callable[[list[int]], list[float]],
    prompt: list[int],
    beams: int,
    *,
    end_ids: Sequence[int] = ENDS,
    new: int = NEW,
) -> list[list[int]]:
    """What beam search finds with the recomputed scores."""
    found = beam_search(scores, prompt, beams, dk.LengthPenalty(1.0), heuristic, set(end_ids), new)
    return [hypothesis.tokens for hypothesis in found]


def exact_sample(scores: Callable[[list[int]], list[float]], prompt: list[int], seed: int) -> list[int]:
    """What one seed draws from the recomputed scores."""
    said: list[int] = []
    while len(said) < NEW and not (said and said[-1] in ENDS):
        probs = torch.tensor([scores(prompt + said)], dtype=torch.double).softmax(-1)
        drawn = rng.draw_seeded(probs, torch.tensor([seed]), torch.tensor([0]), torch.tensor(len(said)))
        said.append(int(drawn))
    return said


@pytest.mark.parametrize("beams", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_beam_search_with_a_second_model_equals_recomputation(name: str, beams: int) -> None:
    case = CASES[name]
    for question in questions(beams):
        out = run(case, question, dk.BeamSearch(beams, num_return=beams))
        for row, prompt in enumerate(question.prompts):
            assert exact_beams(recompute(case, question, row), prompt, beams) == out[row]


@pytest.mark.parametrize("name", CASES)
def test_greedy_search_with_a_second_model_equals_recomputation(name: str) -> None:
    case = CASES[name]
    for question in questions(20):
        out = run(case, question, dk.Greedy())
        for row, prompt in enumerate(question.prompts):
            expected = greedy(recompute(case, question, row), prompt, set(ENDS), NEW)
            assert [expected.tokens] == out[row]


@pytest.mark.parametrize("name", CASES)
def test_samples_with_a_second_model_equal_recomputation(name: str) -> None:
    case = CASES[name]
    for question in questions(30):
        out = run(case, question, dk.Sample(seeds=[5, 6]))
        for row, prompt in enumerate(question.prompts):
            assert [exact_sample(recompute(case, question, row), prompt, 5 + row)] == out[row]


@pytest.mark.parametrize("name", CASES)
def test_the_questions_show_what_a_second_model_does(name: str) -> None:
    changed = 0
    for question in questions(4):
        alone = dk.decode(
            wrap(question.family), question.prompts, dk.BeamSearch(4), max_new_tokens=NEW, end_ids=ENDS
        )
        changed += alone.hypotheses() != run(CASES[name], question, dk.BeamSearch(4))
    assert changed >= 2
