"""The constrained beam search of transformers 4.55.4, with its faults, written out: it finds the same."""

from typing import Any, NamedTuple

import pytest
import torch

from tests.recorded.recorded import Case, cases, model

CONSTRAINED = cases("transformers", "constrained")

Phrases = list[list[int]]  # one of them is demanded


class Beam(NamedTuple):
    score: float
    tokens: list[int]


class StepSnapshot(NamedTuple):
    """How far a text has come. Constraints are met one at a time; a token that breaks one begins no other."""

    complete: int
    pending: list[Phrases]
    current: Phrases | None
    matched: list[int]

    @property
    def options(self) -> list[int]:
        """The tokens that would advance it."""
        if self.current is not None:
            return following(self.current, self.matched)
        return [token for phrases in self.pending for token in following(phrases, [])]


def following(phrases: Phrases, matched: list[int]) -> list[int]:
    size = len(matched)
    longer = [phrase[size] for phrase in phrases if phrase[:size] == matched and len(phrase) > size]
    return list(dict.fromkeys(longer))


def constraints(case: Case) -> list[Phrases]:
    forced = [
        words if isinstance(words[0], list) else [words] for words in case.settings.get("force_words_ids", [])
    ]
    return forced + [
        known.get("any_of") or [known["phrase"]] for known in case.settings.get("constraints", [])
    ]


def progress(demanded: list[Phrases], text: list[int]) -> StepSnapshot:
    complete, pending, current, matched = 0, list(demanded), None, list[int]()
    for token in text:
        if current is not None:
            if token not in following(current, matched):
                pending, current = [*pending, current], None
                continue
            matched = [*matched, token]
        else:
            current = next((phrases for phrases in pending if token in following(phrases, [])), None)
            if current is None:
                continue
            pending, matched = [phrases for phrases in pending if phrases is not current], [token]
        if matched in current:
            complete, current = complete + 1, None
    return StepSnapshot(complete, pending, current, matched)


def bank(demanded: list[Phrases], state: StepSnapshot) -> int:
    """The place in the queue: more for every constraint met, and for steps into one."""
    longest = max(len(phrase) for phrases in demanded for phrase in phrases)
    within = 0
    if state.current is not None:
        within = longest - max(map(len, state.current)) + len(state.matched)
    return state.complete * longest + within


class Search:
    """The search for one prompt."""

    def __init__(self, case: Case, prompt: list[int]) -> None:
        self.case, self.prompt, self.demanded = case, prompt, constraints(case)
        self.width = case.settings["num_beams"]
        self.wanted = case.settings.get("num_return_sequences", 1)
        self.finished, self.done = list[Beam](), False

    def state(self, beam: Beam) -> StepSnapshot:
        """The prompt counts, which it should not."""
        return progress(self.demanded, self.prompt + beam.tokens)

    def complete(self, beam: Beam) -> bool:
        return self.state(beam).complete == len(self.demanded)

    def keep(self, beam: Beam, length: int) -> None:
        scored = Beam(beam.score / length ** self.case.settings.get("length_penalty", 1.0), beam.tokens)
        self.finished = sorted([*self.finished, scored], key=lambda one: -one.score)[: self.width]

    def next_beams(self, beams: list[Beam]) -> list[Beam]:
        texts = torch.tensor([self.prompt + beam.tokens for beam in beams])
        with torch.no_grad():
            logits = model(self.case.model, torch.float64)(
                texts, attention_mask=torch.ones_like(texts)
            ).logits
        rows = logits[:, -1].log_softmax(-1).tolist()
        grown = [
            [Beam(beam.score + score, [*beam.tokens, token]) for token, score in enumerate(row)]
            for beam, row in zip(beams, rows, strict=True)
        ]
        best = sorted((beam for row in grown for beam in row), reverse=True)
        candidates = best[: max(2, 1 + len(self.case.end)) * self.width]
        ordinary = list[Beam]()
        for rank, beam in enumerate(candidates):
            if beam.tokens[-1] not in self.case.end:
                ordinary.append(beam)
            elif rank < self.width and self.complete(Beam(0, beam.tokens[:-1])):
                self.keep(beam, len(beam.tokens))
            if len(ordinary) == self.width:
                break
        self.done = self.over(candidates[0])
        return self.spread(ordinary, beams, grown)

    def spread(self, ordinary: list[Beam], beams: list[Beam], grown: list[list[Beam]]) -> list[Beam]:
        """The beams of the next step, taken from the banks in turn; some of them advance a constraint."""
        queued = [(bank(self.demanded, self.state(beam)), beam) for beam in ordinary]
        for beam, row in zip(beams, grown, strict=True):
            state = self.state(beam)
            for number, token in enumerate(state.options if state.complete < len(self.demanded) else []):
                advanced = row[token]
                place = bank(self.demanded, self.state(advanced))
                if number and state.current is not None:
                    # A fault: the ways on within a disjunction share their memory, and only the first counts.
                    place = bank(self.demanded, state._replace(current=None))
                if advanced.tokens not in [queuing.tokens for _, queuing in queued]:
                    queued.append((place, advanced))
        if len(queued) == len(ordinary):
            return ordinary
        queued.sort(key=lambda pair: -(100 * pair[0] + pair[1].score))
        turns, counts = list[tuple[int, int]](), 0
        for number, (place, _) in enumerate(queued):
            counts = counts + 1 if number and place == queued[number - 1][0] else 0
            turns.append((counts, number))
        return [queued[number][1] for _, number in sorted(turns)][: self.width]

    def over(self, best: Beam) -> bool:
        early, length = self.case.settings.get("early_stopping", False), len(best.tokens)
        power = self.case.settings.get("length_penalty", 1.0)
        if len(self.finished) < self.width:
            return False
        if early == "never" and power > 0:
            length = self.case.max_new_tokens
        return early is True or self.finished[-1].score >= best.score / length**power

    def run(self) -> list[Beam]:
        beams = [Beam(0.0, [])]
        while not self.done and len(beams[0].tokens) < self.case.max_new_tokens:
            beams = self.next_beams(beams)
        if not self.done:
            whole = [beam for beam in beams if self.complete(beam)]
            # A fault: where too few of the beams are complete, the others are returned as well.
            short = beams if len(whole) < self.wanted else []
            for beam in whole + [beam for beam in short if beam not in whole]:
                self.keep(beam, self.case.max_new_tokens)
        return self.finished[: self.wanted]


def check(case: Case, prompts: slice) -> None:
    assert case.scores is not None
    for place, prompt in list(enumerate(case.prompts))[prompts]:
        expected = slice(place * case.per_prompt, (place + 1) * case.per_prompt)
        found: Any = Search(case, prompt).run()
        bodies = [beam.tokens[:-1] if beam.tokens[-1] in case.end else beam.tokens for beam in found]
        assert bodies == case.bodies[expected]
        # transformers computes and sums in float32.
        assert [beam.score for beam in found] == pytest.approx(case.scores[expected], rel=3e-5)


@pytest.mark.parametrize("case", CONSTRAINED[2::9], ids=str)
def test_a_slow_constrained_beam_search_finds_what_was_recorded(case: Case) -> None:
    check(case, slice(1))
