"""Encoder-decoders say what `generate` makes them say."""

from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from tests.equivalence.compare import NEW, Batch, batch, ours, theirs
from tests.equivalence.families import ENCODER_DECODERS, END, ENDS, PAD, START, VOCAB, build, wrap
from tests.equivalence.test_beam_search import (
    ALPHAS,
    BEAMS,
    END_SETTINGS,
    GRID,
    RULES,
    Setting,
    assert_same,
    our_processors,
    our_search,
    their_options,
)
from tests.equivalence.test_greedy import PROCESSORS
from tests.equivalence.test_sample import WARPERS

pytestmark = pytest.mark.mostly_slow(16)

ON_THE_WHOLE_GRID = "t5"
ON_A_SLICE = tuple(family for family in ENCODER_DECODERS if family != ON_THE_WHOLE_GRID)
# Families that take a decoder's text with padding to its left; the others count positions by the column.
PAD_PREFIXES = ("t5", "mt5", "umt5")


def sources(seed: int = 0, padding: tuple[int, ...] = (0, 2, 5)) -> Batch:
    """Random sources, each with so many columns of padding to its right."""
    read = batch(padding, seed=seed)
    return Batch(read.tokens.flip(1), read.mask.flip(1))


def slice_of(family: str) -> list[Setting]:
    """Twelve points of the grid: every beam width with every rule, the rest turning from family to family."""
    shift = ON_A_SLICE.index(family)
    return [
        Setting(
            beams=BEAMS[number % 4],
            alpha=ALPHAS[(number // 3 + shift) % 4],
            rule=list(RULES)[number % 3],
            processed=(number + shift // 4) % 2 == 1,
            ends=list(END_SETTINGS)[(number // 2 + shift) % 2],
        )
        for number in range(12)
    ]


CASES = [
    *((ON_THE_WHOLE_GRID, setting) for setting in GRID),
    *((family, setting) for family in ON_A_SLICE for setting in slice_of(family)),
]


@pytest.mark.parametrize("ends", [*END_SETTINGS, "no end id"])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_greedy_is_generates_on_padded_sources(family: str, ends: str) -> None:
    end_ids = END_SETTINGS.get(ends, ())
    expected = theirs(family, sources(), end_ids=end_ids, do_sample=False)
    out = ours(family, sources(), dk.Greedy(), end_ids=end_ids)
    assert expected.tolist() == out.sequences.tolist()
    assert (out.sequences[:, 0] == START).all()


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_greedy_with_processors_is_generates(family: str, processor: str) -> None:
    processors, options = PROCESSORS[processor]
    expected = theirs(family, sources(2), do_sample=False, **options)
    assert expected.tolist() == ours(family, sources(2), dk.Greedy(), processors).sequences.tolist()


# The decoder's text has no padding, so that n-grams may be blocked in a batch; the start id counts.
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_greedy_with_blocked_ngrams_is_generates(family: str, n: int) -> None:
    expected = theirs(family, sources(3), do_sample=False, no_repeat_ngram_size=n)
    out = ours(family, sources(3), dk.Greedy(), [dk.NoRepeatNGram(n)])
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_end_pad_and_start_ids_are_the_models_own(family: str) -> None:
    tokens, mask = sources(4)
    expected = build(family).generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    out = dk.decode(wrap(family), (tokens, mask), dk.Greedy(), max_new_tokens=NEW)
    assert expected.tolist() == out.sequences.tolist()
    assert out.pad_id == PAD


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_lists_of_ids_of_any_lengths_are_the_padded_tensor_with_its_mask(family: str) -> None:
    lists = [row[mask.bool()].tolist() for row, mask in zip(*sources(), strict=True)]
    expected = theirs(family, sources(), do_sample=False)
    assert expected.tolist() == ours(family, lists, dk.Greedy()).sequences.tolist()


@pytest.mark.parametrize("warper", WARPERS)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_same_global_seed_draws_the_tokens_of_generate(family: str, warper: str) -> None:
    processors, options = WARPERS[warper]
    torch.manual_seed(11)
    expected = theirs(family, sources(5), do_sample=True, **options)
    torch.manual_seed(11)
    assert expected.tolist() == ours(family, sources(5), dk.Sample(), processors).sequences.tolist()


@pytest.mark.parametrize("warper", ["nothing", "all"])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_several_samples_are_num_return_sequences(family: str, warper: str) -> None:
    processors, options = WARPERS[warper]
    torch.manual_seed(12)
    expected = theirs(family, sources(6), do_sample=True, num_return_sequences=3, end_ids=(END,), **options)
    torch.manual_seed(12)
    out = ours(family, sources(6), dk.Sample(3), processors, end_ids=(END,))
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize(("family", "setting"), CASES, ids=str)
def test_hypotheses_scores_and_beams_equal_those_of_generate(family: str, setting: Setting) -> None:
    expected = theirs(
        family,
        sources(9),
        num_return_sequences=setting.beams,
        return_dict_in_generate=True,
        output_scores=True,
        **their_options(setting),
    )
    out = ours(
        family,
        sources(9),
        our_search(setting, num_return=setting.beams),
        our_processors(setting),
        end_ids=END_SETTINGS[setting.ends],
    )
    assert_same(family, expected, out)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_batch_finds_what_generate_finds_for_each_source_alone(family: str) -> None:
    read = sources(11)
    out = ours(family, read, dk.BeamSearch(4, num_return=4), [dk.NoRepeatNGram(2)])
    for row, hypotheses in enumerate(out.hypotheses()):
        expected = theirs(
            family,
            read.alone(row),
            num_beams=4,
            num_return_sequences=4,
            do_sample=False,
            no_repeat_ngram_size=2,
        )
        length = expected.shape[1]
        assert expected.tolist() == [([START, *tokens] + [PAD] * length)[:length] for tokens in hypotheses]


def prefixes(mask: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Beginnings of the decoder's text: the start id, and what it is made to say."""
    valid = torch.tensor(mask)
    said = torch.randint(8, VOCAB, valid.shape, generator=torch.Generator().manual_seed(3))
    first = valid.cumsum(-1) == 1
    return torch.where(first & (valid == 1), START, said).masked_fill(valid == 0, PAD), valid


def with_prefix(family: str, beams: int, mask: list[list[int]]) -> dk.Decoded:
    tokens, valid = prefixes(mask)
    read = sources(7)
    prompt = dk.Prompt(tokens, valid).with_source(dk.Prompt.of(read, wrap(family).vocabulary).source)
    decoder = dk.BeamSearch(beams, num_return=beams) if beams > 1 else dk.Greedy()
    return ours(family, prompt, decoder, [dk.RepetitionPenalty(1.2), dk.MinNewTokens(3, ENDS)])


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_decoders_own_beginning_is_generates_decoder_input_ids(family: str, beams: int) -> None:
    mask = [[1, 1, 1, 1]] * 3
    expected = theirs(
        family,
        sources(7),
        decoder_input_ids=prefixes(mask)[0],
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        repetition_penalty=1.2,
        min_new_tokens=3,
    )
    assert expected.tolist() == with_prefix(family, beams, mask).sequences.tolist()


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("family", PAD_PREFIXES)
def test_beginnings_of_different_lengths_are_generates_decoder_attention_mask(
    family: str, beams: int
) -> None:
    mask = [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    tokens, valid = prefixes(mask)
    expected = theirs(
        family,
        sources(7),
        decoder_input_ids=tokens,
        decoder_attention_mask=valid,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        repetition_penalty=1.2,
        min_new_tokens=3,
    )
    assert expected.tolist() == with_prefix(family, beams, mask).sequences.tolist()


@pytest.mark.parametrize("family", [family for family in ENCODER_DECODERS if family not in PAD_PREFIXES])
def test_beginnings_of_different_lengths_are_refused_where_a_batch_would_not_give_each_alone(
    family: str,
) -> None:
    with pytest.raises(dk.ModelError, match="does not ignore left padding"):
        with_prefix(family, 1, [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])


def logits(family: str, read: Tensor, said: Tensor) -> Tensor:
    with torch.no_grad():
        return build(family)(input_ids=read, decoder_input_ids=said).logits[0]


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_scores_are_the_models_own_log_probabilities(family: str) -> None:
    out = ours(family, sources(8), dk.BeamSearch(3, num_return=3))
    scored = dk.score(wrap(family), sources(8), out)
    # float32 sums of at most 12 terms
    torch.testing.assert_close(out.log_prob, scored.log_prob, atol=1e-4, rtol=1e-5)
    for row, hypotheses in enumerate(out.hypotheses()):
        for rank, said in enumerate(hypotheses):
            text = torch.tensor([[START, *said]])
            log_probs = logits(family, sources(8).alone(row).tokens, text).log_softmax(-1)
            exact = log_probs[:-1].gather(1, text[0, 1:, None]).sum().item()
            assert scored.log_prob[row, rank].item() == pytest.approx(exact, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_distributions_have_favourites_and_depend_on_the_source(family: str) -> None:
    said = torch.cat([torch.tensor([[START]]), batch((0,)).tokens], 1)
    here, there = (logits(family, batch((0,), seed=seed).tokens, said).log_softmax(-1) for seed in (1, 2))
    entropy = -(here.exp() * here).sum(-1).mean().item()
    assert 0.5 < entropy < 0.85 * torch.tensor(VOCAB).log().item()
    assert (here - there).abs().max() > 1


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_beams_end_and_do_not_end_and_change_places(family: str) -> None:
    runs: list[Any] = [
        ours(family, sources(seed), dk.BeamSearch(5, num_return=5), end_ids=end_ids)
        for seed in range(2)
        for end_ids in ((END,), ENDS)
    ]
    assert {"end", "length"} == {reason for out in runs for row in out.finish_reason for reason in row}
    moves = [(out.parents[..., 1:] != out.parents[..., :-1]) & (out.parents[..., 1:] >= 0) for out in runs]
    assert all(moved.any() for moved in moves)
