"""`Sample` draws what `generate(do_sample=True)` draws after the same seed."""

from typing import Any

import pytest
import torch

import decodekit as dk
from tests.equivalence.compare import batch, ours, theirs
from tests.equivalence.families import END, FAMILIES

pytestmark = pytest.mark.mostly_slow(16)

# Our processors, in the order in which generate applies its options.
WARPERS: dict[str, tuple[list[dk.LogitsProcessor], dict[str, Any]]] = {
    "nothing": ([], {"top_k": 0}),
    "temperature": ([dk.Temperature(0.6)], {"top_k": 0, "temperature": 0.6}),
    "top-k": ([dk.TopK(5)], {"top_k": 5}),
    "top-p": ([dk.TopP(0.7)], {"top_k": 0, "top_p": 0.7}),
    "min-p": ([dk.MinP(0.2)], {"top_k": 0, "min_p": 0.2}),
    "penalty": ([dk.RepetitionPenalty(1.5)], {"top_k": 0, "repetition_penalty": 1.5}),
    "all": (
        [dk.RepetitionPenalty(1.2), dk.Temperature(1.3), dk.TopK(12), dk.TopP(0.9), dk.MinP(0.05)],
        {"repetition_penalty": 1.2, "temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ),
}


@pytest.mark.parametrize("warper", WARPERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_global_seed_draws_the_tokens_of_generate(family: str, warper: str) -> None:
    processors, options = WARPERS[warper]
    prompts = batch(seed=5)
    torch.manual_seed(11)
    expected = theirs(family, prompts, do_sample=True, **options)
    torch.manual_seed(11)
    out = ours(family, prompts, dk.Sample(), processors)
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("warper", ["nothing", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_several_samples_are_num_return_sequences(family: str, warper: str) -> None:
    processors, options = WARPERS[warper]
    prompts = batch(seed=6)
    torch.manual_seed(12)
    expected = theirs(family, prompts, do_sample=True, num_return_sequences=3, end_ids=(END,), **options)
    torch.manual_seed(12)
    out = ours(family, prompts, dk.Sample(3), processors, end_ids=(END,))
    assert expected.tolist() == out.sequences.tolist()
    assert out.lengths.shape == (3, 3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3-mixed", "bloom"])
def test_a_generator_draws_what_the_global_seed_does_and_leaves_the_global_stream_alone(family: str) -> None:
    prompts = batch(seed=7)
    torch.manual_seed(13)
    expected = theirs(family, prompts, do_sample=True, top_k=0, num_return_sequences=3)
    before = torch.get_rng_state()
    out = ours(family, prompts, dk.Sample(3, generator=torch.Generator().manual_seed(13)))
    assert expected.tolist() == out.sequences.tolist()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_generator_over_several_calls_is_one_stream(family: str) -> None:
    generator = torch.Generator().manual_seed(14)
    torch.manual_seed(14)
    for seed in range(4):
        expected = theirs(family, batch(seed=seed), do_sample=True, top_k=0, new=5)
        out = ours(family, batch(seed=seed), dk.Sample(generator=generator), new=5)
        assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_truncation_to_one_token_is_greedy(family: str) -> None:
    greedy = theirs(family, batch(seed=8), do_sample=False)
    for processor in (dk.TopK(1), dk.TopP(0.0), dk.MinP(1.0)):
        out = ours(family, batch(seed=8), dk.Sample(), [processor])
        assert greedy.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("warper", WARPERS)
def test_the_prompts_show_what_a_warper_and_a_seed_do(warper: str) -> None:
    prompts, processors = batch(seed=5), WARPERS[warper][0]
    for family in ("gpt2", "llama", "gemma3-mixed"):
        draws = [
            ours(
                family, prompts, dk.Sample(generator=torch.Generator().manual_seed(seed)), chosen, end_ids=()
            ).hypotheses()
            for seed, chosen in ((11, []), (11, processors), (12, processors))
        ]
        assert (draws[0] == draws[1]) == (warper == "nothing")
        assert draws[1] != draws[2]


# The truncations of generate keep more tokens under beams: random calls compare them, in test_fuzz.
@pytest.mark.parametrize("warper", ["nothing", "temperature", "penalty"])
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_sampling_is_generates_after_the_same_seed(family: str, warper: str) -> None:
    processors, options = WARPERS[warper]
    prompts = batch(seed=9)
    torch.manual_seed(15)
    expected = theirs(
        family,
        prompts,
        do_sample=True,
        num_beams=3,
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    torch.manual_seed(15)
    out = ours(family, prompts, dk.BeamSearch(3, expansion=dk.SampledExpansion(), num_return=3), processors)
    assert expected.sequences.tolist() == out.sequences.tolist()
    assert expected.beam_indices.tolist() == out.parents.flatten(0, 1).tolist()
    # Bit for bit in float64; in float32 two ways to the same logits differ in their last bits.
    torch.testing.assert_close(out.score.flatten(), expected.sequences_scores, rtol=1e-5, atol=1e-5)
