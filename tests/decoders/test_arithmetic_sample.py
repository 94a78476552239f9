"""Arithmetic sampling."""

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit import rng
from decodekit.decoders import arithmetic_sample
from decodekit.testing import HashModel, MarkovModel, check_captures, check_decoder
from decodekit.testing.strategies import prompts
from tests.decoders.enumerated import every_text, next_probs

MODEL = MarkovModel([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.25, 0.25, 0.5]])
# One binary digit a token, exactly: a code that is followed to the end ends in zeros.
COIN = MarkovModel([[0.5, 0.5], [0.5, 0.5]])
# 99.99 % quantiles of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {7: 29.88, 8: 31.83, 15: 44.26, 26: 61.66}
SEEDS = list(range(3000))


def chi_square(texts: list[tuple[int, ...]], probs: dict[tuple[int, ...], float]) -> float:
    """How far texts are from the distribution they should have."""
    counts = Counter(texts)
    assert not counts.keys() - probs.keys()
    return sum((counts[text] - len(texts) * p) ** 2 / (len(texts) * p) for text, p in probs.items())


def drawn(out: dk.Decoded, which: int = 0) -> list[tuple[int, ...]]:
    """One sample of every prompt."""
    return [tuple(texts[which]) for texts in out.hypotheses()]


def number_of(seed: int, stream: int, step: int) -> float:
    """What is drawn for a row and a step, or for the lattice's shift."""
    return rng.uniform(torch.tensor([seed]), torch.tensor([stream]), torch.tensor(step)).item()


def test_a_token_is_looked_up_and_the_code_goes_on_with_where_in_its_part_it_lies() -> None:
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25]] * 4, dtype=torch.float64)
    codes = torch.tensor([0.0, 0.25, 0.5, 0.9375], dtype=torch.float64)
    tokens, rest, widths = arithmetic_sample.look_up(probs, codes)
    assert tokens.tolist() == [0, 2, 2, 3]
    assert rest.tolist() == [0.0, 0.0, 0.5, 0.75]
    assert widths.tolist() == [0.25, 0.5, 0.5, 0.25]


def test_a_code_is_followed_as_long_as_another_may_lie_in_the_same_interval() -> None:
    codes, fresh = torch.tensor([0.5, 0.5, 0.5]).double(), torch.tensor([0.25, 0.25, 1.0]).double()
    followed = arithmetic_sample.follow(codes, torch.tensor([1.0, 0.99, 0.5]).double(), fresh)
    assert followed.tolist() == [0.5, 0.25, 1 - arithmetic_sample.GRID]


def test_samples_of_a_coin_are_its_texts_each_as_often_as_it_is_probable() -> None:
    coin = MarkovModel([[0.25, 0.75], [0.25, 0.75]])
    texts = dk.decode(coin, [[0]], dk.ArithmeticSample(16, seeds=[3]), max_new_tokens=2).hypotheses()[0]
    assert Counter(map(tuple, texts)) == {(0, 0): 1, (0, 1): 3, (1, 0): 3, (1, 1): 9}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 7))
def test_each_text_is_the_one_at_its_code_in_exact_arithmetic(seed: int, number: int) -> None:
    """By fractions, and by intervals of the whole text instead of codes that are stretched."""
    model, chain, new = HashModel(5, seed, scale=1.0, end_ids=(2,)), dk.TopP(0.9), 6
    out = dk.decode(model, [[1]], dk.ArithmeticSample(number, seeds=[seed]), chain, max_new_tokens=new)
    for row, text in enumerate(out.hypotheses()[0]):
        code = (Fraction(row, number) + Fraction(number_of(seed, arithmetic_sample.SHIFT, 0))) % 1
        low, width, said = Fraction(0), Fraction(1), list[int]()
        while not said or (said[-1] != 2 and len(said) < new):
            probs = [Fraction(prob) for prob in next_probs(model, dk.Chain(chain), [1], said, 1 + new)]
            token = 0
            while code >= low + width * probs[token] / sum(probs):
                low += width * probs[token] / sum(probs)
                token += 1
            width *= probs[token] / sum(probs)
            if width * number < 1:
                code = low + width * Fraction(number_of(seed, row, len(said)))
            said.append(token)
        assert said == text


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 40))
def test_what_begins_alike_is_drawn_as_often_as_its_probability_says_rounded(seed: int, number: int) -> None:
    model = HashModel(4, seed, scale=1.0, end_ids=(2,))
    out = dk.decode(model, [[1]], dk.ArithmeticSample(number, seeds=[seed]), max_new_tokens=3)
    probs = every_text(model, [1], dk.Chain(), 3, (2,))
    for begin in {text[:length] for text in probs for length in (1, 2, 3)}:
        mass = sum(p for text, p in probs.items() if text[: len(begin)] == begin)
        count = sum(tuple(text[: len(begin)]) == begin for text in out.hypotheses()[0])
        assert math.floor(number * mass - 1e-9) <= count <= math.ceil(number * mass + 1e-9)


@pytest.mark.parametrize(("number", "which"), [(1, 0), (4, 0), (4, 2)])
def test_each_sample_is_distributed_as_the_model_says(number: int, which: int) -> None:
    sample = dk.ArithmeticSample(number, seeds=SEEDS)
    out = dk.decode(MODEL, [[0]] * len(SEEDS), sample, max_new_tokens=2)
    assert chi_square(drawn(out, which), every_text(MODEL, [0], dk.Chain(), 2)) < CHI_SQUARE[8]


def test_a_sampler_that_forgets_to_stretch_the_code_fails_the_same_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_up = arithmetic_sample.look_up
    monkeypatch.setattr(
        arithmetic_sample, "look_up", lambda probs, codes: (look_up(probs, codes)[0], codes, probs.amax(-1))
    )
    out = dk.decode(MODEL, [[0]] * 3000, dk.ArithmeticSample(4, seeds=SEEDS), max_new_tokens=2)
    assert chi_square(drawn(out), every_text(MODEL, [0], dk.Chain(), 2)) > CHI_SQUARE[8]


@pytest.mark.parametrize(
    "chain",
    [
        dk.Chain(dk.Temperature(1.5)),
        dk.Chain(dk.TopP(0.7)),
        dk.Chain(dk.NoRepeatNGram(1), dk.MirostatV2(1.0)),
    ],
)
def test_each_sample_is_distributed_as_the_processors_leave_it(chain: dk.Chain) -> None:
    model = HashModel(4, seed=5, scale=0.7)
    probs = every_text(model, [1], chain, 2)
    out = dk.decode(model, [[1]] * 3000, dk.ArithmeticSample(2, seeds=SEEDS), chain, max_new_tokens=2)
    # Fewer texts than 27 here: the test is the stricter.
    assert len(probs) <= 27
    assert chi_square(drawn(out, 1), probs) < CHI_SQUARE[26]


def ends_of_long_texts(model: MarkovModel) -> float:
    """How far the last three tokens of texts of 100 bits and more are from the model's distribution."""
    new = 120
    last = torch.linalg.matrix_power(model.log_probs.exp(), new - 3)[0]
    joint: dict[tuple[int, ...], float] = {}
    for first in range(len(last)):
        for text, p in every_text(model, [first], dk.Chain(), 3).items():
            joint[text] = joint.get(text, 0.0) + float(last[first]) * p
    out = dk.decode(model, [[0]] * 3000, dk.ArithmeticSample(seeds=SEEDS), max_new_tokens=new)
    return chi_square([text[-3:] for text in drawn(out)], joint)


def test_long_texts_are_distributed_as_the_model_says() -> None:
    assert ends_of_long_texts(MODEL) < CHI_SQUARE[26]
    assert ends_of_long_texts(COIN) < CHI_SQUARE[7]


def test_a_sampler_that_follows_its_codes_to_the_end_fails_the_same_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arithmetic_sample, "follow", lambda codes, *_: codes)
    assert ends_of_long_texts(COIN) > CHI_SQUARE[7]


@pytest.mark.parametrize("which", [0, 3])
def test_samples_that_were_alone_with_their_text_are_distributed_as_the_model_says(which: int) -> None:
    model, new = MarkovModel([[0.35, 0.65], [0.55, 0.45]]), 4
    out = dk.decode(model, [[0]] * 3000, dk.ArithmeticSample(4, seeds=SEEDS), max_new_tokens=new)
    assert chi_square(drawn(out, which), every_text(model, [0], dk.Chain(), new)) < CHI_SQUARE[15]


def test_a_sampler_that_asks_who_is_alone_fails_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    # A new code wherever the row's is alone in the middle of its interval: those at the rims are left over.
    monkeypatch.setattr(
        arithmetic_sample,
        "follow",
        lambda codes, share, fresh: torch.where((codes - 0.5).abs() * share < 0.5, fresh.double(), codes),
    )
    model, new = MarkovModel([[0.35, 0.65], [0.55, 0.45]]), 4
    out = dk.decode(model, [[0]] * 3000, dk.ArithmeticSample(4, seeds=SEEDS), max_new_tokens=new)
    assert chi_square(drawn(out), every_text(model, [0], dk.Chain(), new)) > CHI_SQUARE[15]


@pytest.mark.slow
def test_in_single_precision_too_a_prompts_samples_do_not_depend_on_the_batch() -> None:
    texts = ["Once upon a time", "The king", "There was once a poor woodcutter who", "One day", "In the wood"]
    model = dk.load()
    together = dk.decode(model, texts, dk.ArithmeticSample(4, seeds=range(5)), max_new_tokens=40)
    for number, text in enumerate(texts):
        alone = dk.decode(model, text, dk.ArithmeticSample(4, seeds=[number]), max_new_tokens=40)
        assert together.hypotheses()[number] == alone.hypotheses()[0]


def test_averages_vary_less_than_those_of_independent_samples() -> None:
    """Of how often the second of three tokens is said, over 200 prompts of 16 samples."""
    variances = []
    for sample in (dk.ArithmeticSample(16, seeds=range(200)), dk.Sample(16, seeds=range(200))):
        out = dk.decode(MODEL, [[0]] * 200, sample, max_new_tokens=4)
        variances.append(float((out.tokens == 1).double().mean((1, 2)).var()))
    assert variances[0] < variances[1] / 2


def test_there_are_more_different_texts_than_among_independent_samples() -> None:
    numbers = []
    for sample in (dk.ArithmeticSample(16, seeds=range(50)), dk.Sample(16, seeds=range(50))):
        out = dk.decode(MODEL, [[0]] * 50, sample, max_new_tokens=4)
        numbers.append(sum(len(set(map(tuple, texts))) for texts in out.hypotheses()))
    assert numbers[0] > 1.1 * numbers[1]


@settings(max_examples=20, deadline=None)
@given(batch=prompts(vocab=6, max_batch=4), seed=st.integers(0, 2**31))
def test_a_prompts_samples_do_not_depend_on_the_batch(batch: list[list[int]], seed: int) -> None:
    model, chain = HashModel(6, seed, end_ids=(2,)), [dk.NoRepeatNGram(2), dk.TopP(0.95)]
    seeds = [seed + number for number in range(len(batch))]
    together = dk.decode(model, batch, dk.ArithmeticSample(3, seeds=seeds), chain, max_new_tokens=4)
    for number, prompt in enumerate(batch):
        alone = dk.ArithmeticSample(3, seeds=[seeds[number]])
        out = dk.decode(model, [prompt], alone, chain, max_new_tokens=4)
        assert together.hypotheses()[number] == out.hypotheses()[0]


def test_a_generator_draws_the_seeds_and_is_the_global_stream_if_not_given() -> None:
    model = HashModel(9)
    given_one = dk.ArithmeticSample(3, generator=torch.Generator().manual_seed(3))
    ours = dk.decode(model, [[1], [2]], given_one, max_new_tokens=6)
    again = dk.decode(model, [[1], [2]], given_one, max_new_tokens=6)
    torch.manual_seed(3)
    theirs = dk.decode(model, [[1], [2]], dk.ArithmeticSample(3), max_new_tokens=6)
    assert ours.hypotheses() == theirs.hypotheses() != again.hypotheses()


def test_seeds_may_be_a_tensor() -> None:
    outs = [
        dk.decode(HashModel(9), [[1], [2]], dk.ArithmeticSample(2, seeds=seeds), max_new_tokens=5)
        for seeds in ([3, 4], torch.tensor([3, 4]))
    ]
    assert outs[0].hypotheses() == outs[1].hypotheses()


def test_log_probs_are_the_models_not_those_of_the_processed_scores() -> None:
    out = dk.decode(MODEL, [[0]], dk.ArithmeticSample(seeds=[1]), dk.TopK(1), max_new_tokens=2)
    assert out.hypotheses() == [[[1, 0]]]
    torch.testing.assert_close(out.token_log_probs.exp(), torch.tensor([[[0.5, 0.6]]]))


def test_a_prompt_with_every_token_banned_is_named() -> None:
    all_banned = MarkovModel([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 1"):
        dk.decode(
            all_banned,
            [[0], [1]],
            dk.ArithmeticSample(2, seeds=[1, 2]),
            dk.SuppressTokens([1]),
            max_new_tokens=2,
        )


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(
        lambda numbers: dk.ArithmeticSample(3, seeds=[31 * number for number in numbers]), max_examples=10
    )
    check_decoder(
        lambda numbers: dk.ArithmeticSample(2, seeds=[31 * number for number in numbers]),
        stop=dk.EndIds(4) | dk.RepetitionLoop(2),
        max_examples=5,
    )
    check_decoder(
        lambda numbers: dk.ArithmeticSample(2, generator=torch.Generator().manual_seed(len(numbers))),
        batch_gives_alone=False,
        max_examples=10,
    )
    check_captures(dk.ArithmeticSample(4), [dk.NoRepeatNGram(2), dk.TopP(0.9)])


@pytest.mark.cuda
def test_on_a_gpu_it_draws_what_it_draws_without_one() -> None:
    model = dk.load()
    texts = [
        dk.decode(
            dk.HFModel(model.model.to(device), model.tokenizer),
            "Once upon a time",
            dk.ArithmeticSample(8, seeds=[3]),
            dk.TopP(0.9),
            max_new_tokens=8,
        ).texts
        for device in ("cpu", "cuda")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_num_samples_must_be_an_integer_of_at_least_one(number: int) -> None:
    with pytest.raises(ValueError, match="ArithmeticSample: num_samples must be"):
        dk.ArithmeticSample(number)


def test_only_one_source_of_randomness_is_accepted() -> None:
    with pytest.raises(ValueError, match="ArithmeticSample: randomness must come from one source"):
        dk.ArithmeticSample(generator=torch.Generator(), seeds=[1])
    with pytest.raises(ValueError, match="ArithmeticSample: generator must be"):
        dk.ArithmeticSample(generator=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [[2**63], [1.5], ["a"], 0, 1.5, ""])
def test_seeds_must_be_64_bit_integers(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="ArithmeticSample: seeds must be"):
        dk.ArithmeticSample(seeds=seeds)


def test_there_must_be_a_seed_a_prompt() -> None:
    with pytest.raises(dk.DecodekitError, match=r"ArithmeticSample: .* got 1 seeds for 2 prompts"):
        dk.decode(HashModel(9), [[1], [2]], dk.ArithmeticSample(3, seeds=[1]), max_new_tokens=2)
