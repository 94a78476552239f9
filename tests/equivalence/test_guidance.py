"""`ClassifierFreeGuidance` is `generate(guidance_scale=...)`, except under beams.

There an exact recomputation says who is right (Q5).
"""

from typing import Any

import pytest
import torch

import decodekit as dk
from tests.equivalence.compare import Batch, batch, ours, theirs
from tests.equivalence.families import FAMILIES, wrap
from tests.equivalence.test_second_models import exact_beams, plain

pytestmark = pytest.mark.mostly_slow(16)

# Of the comparison under beams.
PROMPTS, STEPS, SCALE = 10, 8, 1.5


def guided(family: str, scale: float, prompts: Any = None) -> list[dk.LogitsProcessor]:  # noqa: ANN401
    return [dk.ClassifierFreeGuidance(wrap(family), scale, prompts)]


def negative(prompts: Batch) -> dict[str, Any]:
    return {"negative_prompt_ids": prompts.tokens, "negative_prompt_attention_mask": prompts.mask}


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3-mixed"])
def test_guidance_is_generates_under_greedy_search(family: str, scale: float) -> None:
    prompts = batch(seed=21)
    expected = theirs(family, prompts, do_sample=False, guidance_scale=scale)
    out = ours(family, prompts, dk.Greedy(), guided(family, scale))
    assert expected.tolist() == out.sequences.tolist()
    assert out.sequences.tolist() != ours(family, prompts, dk.Greedy()).sequences.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_of_every_family_is_generates(family: str) -> None:
    prompts = batch(seed=22)
    expected = theirs(family, prompts, do_sample=False, guidance_scale=1.6)
    out = ours(family, prompts, dk.Greedy(), guided(family, 1.6))
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3-mixed"])
def test_guided_samples_are_generates(family: str) -> None:
    prompts = batch(seed=23)
    torch.manual_seed(31)
    expected = theirs(
        family, prompts, do_sample=True, guidance_scale=1.5, temperature=0.9, top_p=0.95, top_k=0
    )
    torch.manual_seed(31)
    out = ours(family, prompts, dk.Sample(), [*guided(family, 1.5), dk.Temperature(0.9), dk.TopP(0.95)])
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_several_guided_samples_are_generates(family: str) -> None:
    prompts = batch(seed=24)
    options: dict[str, Any] = {"num_return_sequences": 3, "guidance_scale": 2.0, "top_k": 0}
    torch.manual_seed(32)
    expected = theirs(family, prompts, do_sample=True, **options)
    torch.manual_seed(32)
    out = ours(family, prompts, dk.Sample(3), guided(family, 2.0))
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3-mixed"])
def test_negative_prompts_are_generates(family: str) -> None:
    prompts, away = batch(seed=25), batch((0, 0, 0), seed=26, length=5)
    expected = theirs(family, prompts, do_sample=False, guidance_scale=2.0, **negative(away))
    out = ours(family, prompts, dk.Greedy(), guided(family, 2.0, away))
    assert expected.tolist() == out.sequences.tolist()
    assert (
        out.sequences.tolist() != ours(family, prompts, dk.Greedy(), guided(family, 2.0)).sequences.tolist()
    )


def test_padded_negative_prompts_have_the_results_of_each_prompt_alone() -> None:
    """Theirs passes no positions along, so that absolute ones begin in the padding."""
    prompts, away = batch((0,) * 6, seed=27), batch((0, 1, 2, 3, 4, 6), seed=28)
    together = theirs("gpt2", prompts, do_sample=False, guidance_scale=2.0, end_ids=(), **negative(away))
    out = ours("gpt2", prompts, dk.Greedy(), guided("gpt2", 2.0, away), end_ids=())
    alone = [
        theirs(
            "gpt2",
            prompts.alone(row),
            do_sample=False,
            guidance_scale=2.0,
            end_ids=(),
            **negative(away.alone(row)),
        )[0].tolist()
        for row in range(6)
    ]
    assert alone == out.sequences.tolist()
    assert sum(row != own for row, own in zip(together.tolist(), alone, strict=True)) >= 3


# Q5: the second cache of generate stays where it is when beams are reordered.


def best_of(family: str, prompt: list[int], beams: int) -> list[int]:
    """The best text under the recomputed scores: every text read anew, alone, without a cache."""

    def scores(text: list[int]) -> list[float]:
        conditional = plain(family, 0, tuple(text))
        unconditional = plain(family, 0, (prompt[-1], *text[len(prompt) :]))
        numbers: list[float] = (SCALE * (conditional - unconditional) + unconditional).tolist()
        return numbers

    return exact_beams(scores, prompt, beams, end_ids=(), new=STEPS)[0]


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_guided_beams_are_exact_and_most_beams_of_generate_are_wrong(family: str, beams: int) -> None:
    prompts = batch((0,) * PROMPTS, seed=29)
    expected = [best_of(family, prompt, beams) for prompt in prompts.tokens.tolist()]
    out = ours(family, prompts, dk.BeamSearch(beams), guided(family, SCALE), new=STEPS, end_ids=())
    assert expected == out.tokens[:, 0].tolist()
    options: dict[str, Any] = {"num_beams": beams, "do_sample": False, "guidance_scale": SCALE}
    texts = theirs(family, prompts, new=STEPS, end_ids=(), **options)[:, 9:].tolist()
    wrong = sum(text != exact for text, exact in zip(texts, expected, strict=True))
    assert wrong == 0 if beams == 1 else wrong > PROMPTS // 2


def test_negative_prompts_of_beams_need_no_copies_where_generate_wants_one_a_beam() -> None:
    prompts, away = batch(seed=25), batch((0, 0, 0), seed=26, length=5)
    out = ours("gpt2", prompts, dk.BeamSearch(2), guided("gpt2", 2.0, away))
    assert out.lengths.shape == (3, 1)
    with pytest.raises(RuntimeError, match="size"):
        theirs("gpt2", prompts, do_sample=False, num_beams=2, guidance_scale=2.0, **negative(away))
