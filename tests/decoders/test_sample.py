"""Sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_decoder
from decodekit.testing.strategies import prompts

MODEL = MarkovModel([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.25, 0.25, 0.5]])
# The 99.99 % quantile of the chi-square distribution with 8 degrees of freedom (nine texts, less one).
CHI_SQUARE_8 = 31.83


def chi_square(tokens: torch.Tensor) -> float:
    """How far 2-token samples after token 0 are from the model's distribution."""
    probs = MODEL.log_probs.exp()
    expected = (probs[0][:, None] * probs).flatten() * len(tokens)
    observed = torch.bincount(tokens[:, 0] * 3 + tokens[:, 1], minlength=9)
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "sample",
    [
        dk.Sample(4000, seeds=[5]),
        dk.Sample(4000, generator=torch.Generator().manual_seed(5)),
    ],
)
def test_samples_are_distributed_as_the_model_says(sample: dk.Sample) -> None:
    out = dk.decode(MODEL, [[0]], sample, max_new_tokens=2)
    assert chi_square(out.tokens[0]) < CHI_SQUARE_8


def test_a_sampler_of_the_wrong_temperature_fails_the_same_test() -> None:
    out = dk.decode(MODEL, [[0]], dk.Sample(4000, seeds=[5]), dk.Temperature(1.3), max_new_tokens=2)
    assert chi_square(out.tokens[0]) > CHI_SQUARE_8


def test_log_probs_are_the_models_not_those_of_the_processed_scores() -> None:
    out = dk.decode(MODEL, [[0]], dk.Sample(seeds=[1]), dk.TopK(1), max_new_tokens=2)
    assert out.hypotheses() == [[[1, 0]]]
    torch.testing.assert_close(out.token_log_probs.exp(), torch.tensor([[[0.5, 0.6]]]))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(batch=prompts(vocab=6, max_batch=4), seed=st.integers(0, 2**31))
def test_with_seeds_a_prompts_samples_do_not_depend_on_the_batch(batch: list[list[int]], seed: int) -> None:
    model = HashModel(6, seed, end_ids=(2,))
    seeds = [seed + number for number in range(len(batch))]
    together = dk.decode(model, batch, dk.Sample(3, seeds=seeds), max_new_tokens=4)
    backwards = dk.decode(model, batch[::-1], dk.Sample(3, seeds=seeds[::-1]), max_new_tokens=4)
    assert together.hypotheses() == backwards.hypotheses()[::-1]
    for number, prompt in enumerate(batch):
        alone = dk.decode(model, [prompt], dk.Sample(3, seeds=[seeds[number]]), max_new_tokens=4)
        assert together.hypotheses()[number] == alone.hypotheses()[0]
        fewer = dk.decode(model, [prompt], dk.Sample(2, seeds=[seeds[number]]), max_new_tokens=4)
        assert alone.hypotheses()[0][:2] == fewer.hypotheses()[0]


def test_the_same_seed_and_prompt_give_the_same_text_and_another_seed_another() -> None:
    model = HashModel(50, scale=1.0)
    texts = dk.decode(model, [[1], [1], [1]], dk.Sample(seeds=[7, 7, 8]), max_new_tokens=10).hypotheses()
    assert texts[0] == texts[1] != texts[2]


def test_the_samples_of_a_prompt_differ() -> None:
    samples = dk.decode(HashModel(50, scale=1.0), [[1]], dk.Sample(8, seeds=[7]), max_new_tokens=10)
    assert len({tuple(text) for text in samples.hypotheses()[0]}) == 8


def test_seeds_may_be_a_tensor() -> None:
    drawn = [
        dk.decode(HashModel(9), [[1], [2]], dk.Sample(seeds=seeds), max_new_tokens=5).hypotheses()
        for seeds in ([3, 4], torch.tensor([3, 4]))
    ]
    assert drawn[0] == drawn[1]


def test_a_generator_gives_what_the_global_stream_gives() -> None:
    model = HashModel(9)
    ours = dk.decode(model, [[1]], dk.Sample(generator=torch.Generator().manual_seed(3)), max_new_tokens=6)
    torch.manual_seed(3)
    assert ours.hypotheses() == dk.decode(model, [[1]], dk.Sample(), max_new_tokens=6).hypotheses()


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(lambda numbers: dk.Sample(2, seeds=[31 * number for number in numbers]))
    check_decoder(
        lambda numbers: dk.Sample(2, generator=torch.Generator().manual_seed(len(numbers))),
        batch_gives_alone=False,
        captures=False,
    )


def test_a_generator_must_be_on_the_models_device() -> None:
    sample = dk.Sample(generator=torch.Generator())
    history = dk.History(*(torch.zeros(shape, device="meta") for shape in ((1, 2), (1, 2), ())))
    limits = dk.Limits(end_ids=(), pad_id=0, prompt_length=1, max_new_tokens=1, vocab=5)
    with pytest.raises(dk.DecodekitError, match="got one on cpu for meta"):
        sample.init(history, limits)


@pytest.mark.parametrize("number", [0, -1, 1.0])
def test_num_samples_must_be_an_integer_of_at_least_one(number: int) -> None:
    with pytest.raises(ValueError, match="Sample: num_samples must be"):
        dk.Sample(number)


def test_only_one_source_of_randomness_is_accepted() -> None:
    with pytest.raises(ValueError, match="Sample: randomness must come from one source"):
        dk.Sample(generator=torch.Generator(), seeds=[1])


@pytest.mark.parametrize("seeds", [[2**63], [1.5], ["a"], 0, 1.5, ""])
def test_seeds_must_be_64_bit_integers(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="Sample: seeds must be"):
        dk.Sample(seeds=seeds)


def test_there_must_be_a_seed_a_prompt() -> None:
    with pytest.raises(dk.DecodekitError, match="got 1 seeds for 2 prompts"):
        dk.decode(HashModel(9), [[1], [2]], dk.Sample(3, seeds=[1]), max_new_tokens=2)
