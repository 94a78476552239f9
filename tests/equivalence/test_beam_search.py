"""`BeamSearch` finds what `generate(num_beams=...)` finds, on a grid of everything that steers it."""

from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch

import decodekit as dk
from tests.equivalence.compare import batch, ours, theirs
from tests.equivalence.families import ALL, END, ENDS, FAMILIES, PAD

pytestmark = pytest.mark.mostly_slow(16)

BEAMS = (2, 3, 5, 8)
ALPHAS = (-1.0, 0.0, 1.0, 2.0)
# generate's early_stopping, and our rule.
RULES: dict[str, tuple[bool | str, dk.StopRule]] = {
    "when full": (True, dk.WhenFull()),
    "heuristic": (False, dk.Heuristic()),
    "proved": ("never", dk.Proved()),
}
END_SETTINGS = {"one end id": (END,), "several end ids": ENDS}


class Setting(NamedTuple):
    """One point of the grid."""

    beams: int
    alpha: float
    rule: str
    processed: bool
    ends: str

    def __str__(self) -> str:
        processed = "processors" if self.processed else "bare"
        return f"{self.beams} beams-{self.alpha}-{self.rule}-{processed}-{self.ends}"


GRID = [Setting(*values) for values in product(BEAMS, ALPHAS, RULES, (False, True), END_SETTINGS)]
ON_THE_WHOLE_GRID = ("gpt2", "llama", "gemma3-mixed")
ON_A_SLICE = tuple(family for family in FAMILIES if family not in ON_THE_WHOLE_GRID)


def slice_of(family: str) -> list[Setting]:
    """Twelve points: every beam width with every rule, the rest turning from family to family."""
    shift = ON_A_SLICE.index(family)
    return [
        Setting(
            beams=BEAMS[number % 4],
            alpha=ALPHAS[(number // 3 + shift) % 4],
            rule=list(RULES)[number % 3],
            processed=(number + shift // 4) % 2 == 1,
            ends=list(END_SETTINGS)[(number // 2 + shift // 8) % 2],
        )
        for number in range(12)
    ]


CASES = [
    *((family, setting) for family in ON_THE_WHOLE_GRID for setting in GRID),
    *((family, setting) for family in ON_A_SLICE for setting in slice_of(family)),
]


def their_options(setting: Setting) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_beams": setting.beams,
        "do_sample": False,
        "length_penalty": setting.alpha,
        "early_stopping": RULES[setting.rule][0],
        "end_ids": END_SETTINGS[setting.ends],
    }
    if setting.processed:
        # No text may say the pad id: then it does not matter that generate takes padding for text.
        options |= {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 2,
            "min_new_tokens": 4,
            "suppress_tokens": [PAD, 11, 30],
        }
    return options


def our_search(setting: Setting, num_return: int) -> dk.BeamSearch:
    return dk.BeamSearch(
        setting.beams,
        scorer=dk.LengthPenalty(setting.alpha),
        stop_rule=RULES[setting.rule][1],
        num_return=num_return,
    )


def our_processors(setting: Setting) -> list[dk.LogitsProcessor]:
    if not setting.processed:
        return []
    return [
        dk.RepetitionPenalty(1.2),
        dk.NoRepeatNGram(2),
        dk.MinNewTokens(4, END_SETTINGS[setting.ends]),
        dk.SuppressTokens([PAD, 11, 30]),
    ]


@cache
def search(family: str, setting: Setting) -> dk.Decoded:
    """All that a search finds."""
    return ours(
        family,
        batch(seed=9),
        our_search(setting, num_return=setting.beams),
        our_processors(setting),
        end_ids=END_SETTINGS[setting.ends],
    )


def assert_same(family: str, expected: Any, out: dk.Decoded) -> None:  # noqa: ANN401 - generate's output
    """Tokens, beams and scores."""
    assert expected.sequences.tolist() == out.sequences.tolist()
    assert expected.beam_indices.tolist() == out.parents.flatten(0, 1).tolist()
    assert out.valid.all()
    if ALL[family].dtype == torch.float64:
        assert expected.sequences_scores.tolist() == out.score.flatten().tolist()
    else:
        # generate computes a prompt once a beam and we once, and in float32 the same product over another
        # number of rows differs in its last bits; they grow with the sum, here up to some hundred nats.
        torch.testing.assert_close(out.score.flatten(), expected.sequences_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "setting"), CASES, ids=str)
def test_hypotheses_scores_and_beams_equal_those_of_generate(family: str, setting: Setting) -> None:
    expected = theirs(
        family,
        batch(seed=9),
        num_return_sequences=setting.beams,
        return_dict_in_generate=True,
        output_scores=True,
        **their_options(setting),
    )
    assert_same(family, expected, search(family, setting))


@pytest.mark.parametrize(
    ("family", "setting"),
    [(family, setting) for family in ON_A_SLICE for setting in slice_of(family)[::3]],
    ids=str,
)
def test_the_best_hypothesis_alone_is_generates(family: str, setting: Setting) -> None:
    prompts = batch(seed=10)
    expected = theirs(
        family, prompts, return_dict_in_generate=True, output_scores=True, **their_options(setting)
    )
    out = ours(
        family,
        prompts,
        our_search(setting, num_return=1),
        our_processors(setting),
        end_ids=END_SETTINGS[setting.ends],
    )
    assert_same(family, expected, out)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_finds_what_generate_finds_for_each_prompt_alone(family: str) -> None:
    prompts = batch(seed=11)
    out = ours(family, prompts, dk.BeamSearch(4, num_return=4), [dk.NoRepeatNGram(2)])
    for row, (prompt, hypotheses) in enumerate(zip(out.prompt.ids(), out.hypotheses(), strict=True)):
        expected = theirs(
            family,
            prompts.alone(row),
            num_beams=4,
            num_return_sequences=4,
            do_sample=False,
            no_repeat_ngram_size=2,
        )
        length = expected.shape[1]
        padded = [(prompt + tokens + [PAD] * length)[:length] for tokens in hypotheses]
        assert expected.tolist() == padded


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_end_ids_every_hypothesis_takes_all_steps_as_generates_do(family: str, rule: str) -> None:
    setting = Setting(3, 1.0, rule, processed=False, ends="one end id")
    options = their_options(setting) | {"end_ids": ()}
    expected = theirs(family, batch((0, 4)), new=5, num_return_sequences=3, **options)
    out = ours(family, batch((0, 4)), our_search(setting, num_return=3), new=5, end_ids=())
    assert expected.tolist() == out.sequences.tolist()
    assert out.finish_reason == [["length"] * 3] * 2


def test_every_slice_has_every_value_and_together_they_are_the_grid() -> None:
    for family in ON_A_SLICE:
        for values, axis in zip((BEAMS, ALPHAS, RULES, (False, True), END_SETTINGS), range(5), strict=True):
            assert set(values) == {setting[axis] for setting in slice_of(family)}
    assert set(GRID) == {setting for family in ON_A_SLICE for setting in slice_of(family)}


@pytest.mark.slow
@pytest.mark.parametrize("family", ON_THE_WHOLE_GRID)
def test_on_the_grid_any_two_values_of_an_axis_differ_somewhere(family: str) -> None:
    best = {setting: [row[0] for row in search(family, setting).hypotheses()] for setting in GRID}
    for axis, values in (
        ("beams", BEAMS),
        ("alpha", ALPHAS),
        ("rule", RULES),
        ("processed", (False, True)),
        ("ends", END_SETTINGS),
    ):
        for one, other in combinations(values, 2):
            assert any(
                best[setting._replace(**{axis: one})] != best[setting._replace(**{axis: other})]
                for setting in GRID
            ), f"{axis}: {one} and {other} are the same everywhere"
