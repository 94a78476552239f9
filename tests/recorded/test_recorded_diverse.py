"""The diverse beam search of transformers 4.55.4, written out: a slow search of our own finds the same."""

from typing import Any, NamedTuple

import pytest
import torch

from tests.recorded.recorded import Case, cases, model, punished

GROUPED = cases("transformers", "group_beam")


class Beam(NamedTuple):
    score: float  # with all penalties so far
    tokens: list[int]


class Group:
    """One group: its beams, and the best hypotheses that ended."""

    def __init__(self, case: Case, width: int) -> None:
        self.case, self.width = case, width
        self.beams, self.finished, self.done = [Beam(0.0, [])], list[Beam](), False

    def keep(self, beam: Beam, length: int) -> None:
        """Keeps the hypothesis if it is among the best, by its score over length ** length_penalty."""
        scored = Beam(beam.score / length ** self.case.settings.get("length_penalty", 1.0), beam.tokens)
        self.finished = sorted([*self.finished, scored], key=lambda one: -one.score)[: self.width]

    def extend(self, prompt: list[int], chosen: list[int]) -> list[int]:
        """A step: the tokens of the beams that go on, given those of the groups before."""
        case, length, candidates = self.case, len(self.beams[0].tokens) + 1, list[Beam]()
        for beam in self.beams:
            text = prompt + beam.tokens
            with torch.no_grad():
                scores = model(case.model, torch.float64)(torch.tensor([text])).logits[0, -1].log_softmax(-1)
            counts = torch.bincount(torch.tensor(chosen, dtype=torch.long), minlength=len(scores))
            scores = punished(case, scores - case.settings["diversity_penalty"] * counts, text)
            grown = enumerate(scores.tolist())
            candidates += [Beam(beam.score + score, [*beam.tokens, token]) for token, score in grown]
        candidates = sorted(candidates, reverse=True)[: max(2, 1 + len(case.end)) * self.width]
        self.beams = []
        for rank, beam in enumerate(candidates):
            if beam.tokens[-1] not in case.end:
                self.beams.append(beam)
            elif rank < self.width:
                self.keep(beam, length)
            if len(self.beams) == self.width:
                break
        self.done = self.over(candidates[0].score, length)
        return [beam.tokens[-1] for beam in self.beams]

    def over(self, best: float, length: int) -> bool:
        early = self.case.settings.get("early_stopping", False)
        power = self.case.settings.get("length_penalty", 1.0)
        if len(self.finished) < self.width:
            return False
        if early == "never" and power > 0:
            length = self.case.max_new_tokens
        return early is True or self.finished[-1].score >= best / length**power


def search(case: Case, prompt: list[int]) -> list[Beam]:
    number = case.settings["num_beam_groups"]
    width = case.settings["num_beams"] // number
    groups = [Group(case, width) for _ in range(number)]
    for _ in range(case.max_new_tokens):
        chosen: list[int] = []
        for group in groups:
            # As recorded: a group that is done counts as one that chose padding.
            chosen += [case.pad] * width if group.done else group.extend(prompt, chosen)
    for group in groups:
        for beam in group.beams if not group.done else []:
            group.keep(beam, case.max_new_tokens)
    ranked = sorted((beam for group in groups for beam in group.finished), key=lambda beam: -beam.score)
    return ranked[: case.settings.get("num_return_sequences", 1)]


def check(case: Case, prompts: slice) -> None:
    assert case.scores is not None
    for place, prompt in list(enumerate(case.prompts))[prompts]:
        expected = slice(place * case.per_prompt, (place + 1) * case.per_prompt)
        found: Any = search(case, prompt)
        bodies = [beam.tokens[:-1] if beam.tokens[-1] in case.end else beam.tokens for beam in found]
        # transformers computes and sums in float32.
        assert [beam.score for beam in found] == pytest.approx(case.scores[expected], rel=3e-5)
        # Texts of equal scores stand in any order.
        assert sorted(bodies) == sorted(case.bodies[expected])


@pytest.mark.parametrize("case", GROUPED[1::12], ids=str)
def test_a_slow_diverse_beam_search_finds_what_was_recorded(case: Case) -> None:
    check(case, slice(1))
