"""Lookahead: solved by hand, and its heuristic against a slow reference."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.core.limits import Limits
from decodekit.testing import HashModel, MarkovModel
from tests.equivalence.families import wrap

END = 3
# 0 emits 1 or 2; after 1 the text ends; after 2 a 4 may come, which then ends.
FORK = MarkovModel(
    [
        [0.0, 0.6, 0.4, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.98, 0.02],
        [0.0, 0.0, 0.0, 0.55, 0.45],
        [0.0, 0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 0.0],
    ],
    end_ids=(END,),
)


def looking(constraints: object, model: dk.Model = FORK, **options: object) -> dk.Lookahead:
    return dk.Lookahead(model, constraints, **{"weight": 1.0, "steps": 1, **options})  # type: ignore[arg-type]


def grow(scorer: dk.PathScorer, prompt: list[int], tokens: list[int], new: int, vocab: int) -> object:
    """The scorer's memory of a text."""
    history = dk.Prompt.from_ids([prompt]).history(len(prompt) + new, 1)
    limits = Limits(end_ids=(END,), pad_id=0, prompt_length=len(prompt), max_new_tokens=new, vocab=vocab)
    memory = scorer.init(history, limits)
    for token in tokens:
        extended = dk.ExtendedHypotheses(
            history, torch.tensor([0]), torch.tensor([token]), torch.tensor([-1.0])
        )
        memory, history = scorer.update(extended, memory), extended.history()
    return memory


def test_finds_what_a_beam_search_misses() -> None:
    def decode(scorer: dk.PathScorer) -> dk.Decoded:
        return dk.decode(FORK, [[0]], dk.BeamSearch(1, scorer=scorer), max_new_tokens=4)

    assert decode(dk.LogProb()).tokens.tolist() == [[[1, END]]]
    assert decode(looking([dk.Phrase(4)], weight=0)).tokens.tolist() == [[[1, 4, END]]]  # sees it too late
    found = decode(looking([dk.Phrase(4)]))
    assert found.tokens.tolist() == [[[2, 4, END]]]
    assert found.score.item() == pytest.approx(math.log(0.4 * 0.45), abs=1e-5)


def test_an_unmet_constraint_costs_the_penalty() -> None:
    scorer = looking([dk.Phrase(4), dk.OneOf([[2], [1, END]])], penalty=3.0)
    out = dk.decode(FORK, [[0]], dk.BeamSearch(4, scorer=scorer, num_return=3), max_new_tokens=4)
    texts = [
        tuple(tokens[:length])
        for tokens, length in zip(out.tokens[0].tolist(), out.lengths[0].tolist(), strict=True)
    ]
    scores = dict(zip(texts, out.score[0].tolist(), strict=True))
    assert scores[2, 4, END] == pytest.approx(math.log(0.4 * 0.45), abs=1e-5)
    assert scores[1, END] == pytest.approx(math.log(0.6 * 0.98) - 3, abs=1e-5)
    assert scores[2, END] == pytest.approx(math.log(0.4 * 0.55) - 3, abs=1e-5)


def test_the_heuristic_sees_steps_positions_and_is_at_least_minus_100() -> None:
    near = [grow(looking([dk.Phrase(4)], steps=steps), [0], [], 5, 5) for steps in (1, 2)]
    assert [memory.heuristic.item() for memory in near] == [0, 0]  # type: ignore[attr-defined]
    line = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for steps, ahead in ((1, -100.0), (2, 0.0)):
        scorer = looking([dk.Phrase(2)], line, steps=steps, penalty=0.0)
        assert grow(scorer, [1], [0], 9, 3).heuristic.item() == ahead  # type: ignore[attr-defined]
    assert grow(scorer, [1], [0], 2, 3).heuristic.item() == -100  # type: ignore[attr-defined]


def slow_heuristic(
    model: HashModel, phrases: list[list[int]], prompt: list[int], tokens: list[int], steps: int, room: int
) -> float:
    """The formula, one text at a time."""

    def log_probs(text: list[int]) -> list[float]:
        return (
            model.start(dk.Prompt.from_ids([text]), rows_per_prompt=1, capacity=99)[1][0]
            .log_softmax(-1)
            .tolist()
        )

    def of(text: list[int], ids: list[int]) -> float:
        return sum(log_probs(text + ids[:place])[token] for place, token in enumerate(ids))

    unmet = [ids for ids in phrases if not any(tokens[i : i + len(ids)] == ids for i in range(len(tokens)))]
    if not unmet or tokens[-1] == END:
        return 0.0
    rests = [ids[there:] for ids in unmet for there in range(1, len(ids)) if tokens[-there:] == ids[:there]]
    text, values = prompt + tokens, [-100.0]
    values += [of(text, rest) for rest in rests if len(rest) <= room]
    for place in range(steps):
        values += [of(text, ids) for ids in unmet if len(ids) <= room - place]
        following = log_probs(text)
        text = [*text, following.index(max(following))]
        if text[-1] == END:
            break
    return max(values)


PHRASES = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    PHRASES,
    st.lists(st.sampled_from([0, 1, 2, 4]), max_size=4),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(0, 4),
)
def test_the_heuristic_is_that_of_the_formula(
    seed: int, phrases: list[list[int]], tokens: list[int], last: int, steps: int, room: int
) -> None:
    model = HashModel(5, seed, end_ids=(END,))
    tokens = [*tokens, last]
    scorer = looking([dk.Phrase(ids) for ids in phrases], model, steps=steps)
    memory = grow(scorer, [1, 2], tokens, len(tokens) + room, 5)
    slow = slow_heuristic(model, phrases, [1, 2], tokens, steps, room) if room else 0.0
    assert memory.heuristic.item() == pytest.approx(slow, abs=1e-4)  # type: ignore[attr-defined]


def test_constraints_per_prompt_give_the_results_of_each_prompt_alone() -> None:
    model = HashModel(6, 3, end_ids=(END,))
    prompts = [[1], [2, 4, 1], [0, 0]]
    each = [[dk.Phrase([2, 5]), dk.Phrase(0)], [], [dk.OneOf([[4, 4], [1, 2, 1]])]]
    chain = [dk.Temperature(1.5), dk.NoRepeatNGram(2)]

    def decode(numbers: list[int]) -> list[tuple[list[list[int]], list[float]]]:
        scorer = looking([each[number] for number in numbers], model, steps=3)
        search = dk.BeamSearch(3, scorer=scorer, num_return=2)
        out = dk.decode(model, [prompts[number] for number in numbers], search, chain, max_new_tokens=6)
        rows = [
            [tokens[:length] for tokens, length in zip(*pair, strict=True)]
            for pair in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True)
        ]
        return list(zip(rows, out.score.tolist(), strict=True))

    together = decode([0, 1, 2])
    assert together == [one for number in range(3) for one in decode([number])]
    text = together[0][0][0]
    assert 0 in text
    assert [2, 5] in [list(pair) for pair in itertools.pairwise(text)]


def test_without_weight_and_penalty_it_is_the_base() -> None:
    model = HashModel(6, 1, end_ids=(END,))
    base = dk.LengthPenalty(1.0)
    scorer = looking([dk.Phrase(2)], model, weight=0, penalty=0, base=base)
    plain, guided = (
        dk.decode(model, [[1], [2, 4]], dk.BeamSearch(3, scorer=one, num_return=3), max_new_tokens=5)
        for one in (base, scorer)
    )
    assert torch.equal(plain.tokens, guided.tokens)
    assert torch.equal(plain.score, guided.score)


def test_a_proof_holds_against_enumeration() -> None:
    model = HashModel(4, 5, end_ids=(END,))
    scorer = looking([dk.Phrase([1, 2])], model, penalty=2.0)
    search = dk.BeamSearch(64, scorer=scorer, stop_rule=dk.Proved())
    found = dk.decode(model, [[0]], search, max_new_tokens=4)
    texts = [
        [*text, END] if len(text) < 4 else list(text)
        for length in range(5)
        for text in itertools.product(range(3), repeat=length)
    ]
    texts += [[*text, END] for text in itertools.product(range(3), repeat=3)]
    scores = [
        dk.score(model, [[0]], [text]).token_log_probs.sum().item()
        - 2.0 * ([1, 2] not in [list(pair) for pair in itertools.pairwise(text)])
        for text in texts
    ]
    assert found.score.item() == pytest.approx(max(scores), abs=1e-4)


def test_every_text_is_read_with_its_own_source() -> None:
    model = wrap("t5")
    scorer = looking([dk.Phrase([5, 9])], model, steps=3)

    def ahead(sources: list[list[int]]) -> list[float]:
        prompt = dk.Prompt.of(sources, model.vocabulary)
        history, rows = prompt.history(7, 2), torch.arange(2 * len(sources))
        limits = Limits(end_ids=(), pad_id=0, prompt_length=1, max_new_tokens=6, vocab=37)
        extended = dk.ExtendedHypotheses(history, rows, 10 + rows % 2, torch.zeros(len(rows)))
        return scorer.update(extended, scorer.init(history, limits)).heuristic.tolist()

    sources = [[8, 9, 10, 11], [14], [15, 16, 17]]
    alone = [ahead([source]) for source in sources]
    assert ahead(sources) == pytest.approx([one for pair in alone for one in pair], abs=1e-3)
    assert len({round(one, 2) for pair in alone for one in pair}) == 6  # they do depend on the source
    search = dk.BeamSearch(2, scorer=scorer)
    assert dk.decode(model, sources, search, max_new_tokens=5).tokens.shape[0] == 3


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight": -1}, ValueError, "Lookahead: weight must be a finite number of at least 0, got -1"),
        ({"weight": math.inf}, ValueError, "weight must be a finite number"),
        ({"penalty": -0.5}, ValueError, "penalty must be a finite number of at least 0, got -0.5"),
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1, got 0"),
        ({"steps": 1.5}, ValueError, "steps must be an integer"),
        ({"base": 3}, TypeError, "base must be a Scorer or PathScorer such as .*, got 3"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model must be a decodekit.Model, got Linear"),
        ({"model": HashModel}, TypeError, "model must be a decodekit.Model"),
        ({"constraints": [[5, 7]]}, TypeError, "constraints must be a list of Phrase and OneOf"),
        ({"constraints": dk.Phrase(5)}, TypeError, "constraints must be a list of Phrase and OneOf"),
        ({"constraints": "ab"}, TypeError, "constraints must be a list of Phrase and OneOf"),
        ({"constraints": [dk.Phrase]}, TypeError, "constraints must be a list of Phrase and OneOf"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        looking(**{"constraints": [dk.Phrase(1)], **options})  # type: ignore[arg-type]


def test_arguments_that_do_not_fit_the_run_are_refused() -> None:
    def run(scorer: dk.PathScorer) -> None:
        dk.decode(FORK, [[0], [1]], dk.BeamSearch(2, scorer=scorer), max_new_tokens=2)

    with pytest.raises(
        dk.DecodekitError, match="one list of constraints, or one per prompt, got 1 for 2 prompts"
    ):
        run(looking([[dk.Phrase(1)]]))
    with pytest.raises(dk.DecodekitError, match="below the vocabulary size 5, got 5"):
        run(looking([dk.Phrase(5)]))
    with pytest.raises(dk.DecodekitError, match="same vocabulary, got 7 tokens for 5"):
        run(looking([dk.Phrase(4)], HashModel(7)))
    with pytest.raises(dk.DecodekitError, match="reads the source of the run, but the run has none"):
        run(looking([dk.Phrase(4)], wrap("t5")))
