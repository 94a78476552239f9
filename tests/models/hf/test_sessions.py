"""Sessions with one entry per row: eviction and merging give every family the logits of each prompt alone."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.core.history import Source
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.sessions import RowSession
from decodekit.models.hf.trie_cache.session import TrieSession
from tests.equivalence.families import ENCODER_DECODERS, FAMILIES, VOCAB, build, wrap

STEPS = 21
# Windows are cropped by transformers' own cache, one entry a row; the trie keeps all and masks them.
WINDOWS = ["mistral-window", "gemma2-mixed", "gemma3-mixed"]
# Their decoders count positions by the cache's length: the trie tells them better, one entry a row does not.
RELATIVE = ["t5", "mt5", "umt5"]
COUNTING = [family for family in ENCODER_DECODERS if family not in RELATIVE]
PLAIN = [family for family in FAMILIES if family not in WINDOWS]


# A prompt of the decoder, and a source of the encoder; empty for a decoder-only model.
Text = tuple[list[int], tuple[int, ...]]


def start(hf: dk.HFModel, texts: list[Text], beams: int, new: int = STEPS + 4) -> tuple[Any, Tensor]:
    prompt = dk.Prompt.from_ids([text for text, _ in texts])
    if texts[0][1]:
        longest = max(len(source) for _, source in texts)
        tokens = torch.tensor([[*source, *[0] * (longest - len(source))] for _, source in texts])
        lengths = torch.tensor([len(source) for _, source in texts])
        prompt = prompt.with_source(Source(tokens, torch.arange(longest) < lengths[:, None]))
    return hf.start(prompt, rows_per_prompt=beams, capacity=prompt.tokens.shape[1] + new)


def wander(hf: dk.HFModel, beams: int, seed: int) -> tuple[Any, list[tuple[Tensor, list[Text]]]]:
    """Moves beams, and merges and evicts prompts; the logits of some steps, and every row's sequence."""
    chance = random.Random(seed)  # noqa: S311 - a seed, no secret
    begins_with = hf.vocabulary.decoder_start_id

    def prompts() -> list[Text]:
        read = [[chance.randrange(8, VOCAB) for _ in range(chance.randint(1, 7))] for _ in range(2)]
        return [(text, ()) if begins_with is None else ([begins_with], tuple(text)) for text in read]

    new = prompts()
    session, _ = start(hf, new, beams)
    texts, seen = [text for text in new for _ in range(beams)], []
    for step in range(STEPS):
        if step in {0, 4, 9, 15}:
            new = prompts()
            session.merge(start(hf, new, beams)[0])
            texts += [text for text in new for _ in range(beams)]
        if step in {7, 9, 14, 18}:
            batch = len(texts) // beams
            stay = sorted(chance.sample(range(batch), 2 if step == 14 else batch - 1))
            session.keep_prompts(torch.tensor(stay))
            texts = [texts[beams * prompt + beam] for prompt in stay for beam in range(beams)]
        width = chance.randint(1, beams)
        rows = range(len(texts))
        sources = [row if beams == 1 else row // beams * beams + chance.randrange(width) for row in rows]
        tokens = [chance.randrange(8, VOCAB) for _ in rows]
        texts = [([*texts[old][0], token], texts[old][1]) for old, token in zip(sources, tokens, strict=True)]
        moved = None if step % 5 == 4 and sources == list(rows) else torch.tensor(sources)
        logits = session.advance(torch.tensor(tokens), moved)
        if step in {0, 4, 9, 10, 15, 20}:
            seen.append((logits, texts))
    return session, seen


def alone(hf: dk.HFModel, texts: list[Text]) -> Tensor:
    """The logits after each text; of an encoder-decoder one by one, since not all ignore padding."""
    if not texts[0][1]:
        return start(hf, texts, 1)[1]
    return torch.cat([start(hf, [text], 1)[1] for text in texts])


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize(("beams", "cache"), [(1, "auto"), (3, "auto"), (2, "rows")])
@pytest.mark.parametrize("family", PLAIN)
def test_merged_prompts_get_the_logits_they_get_alone(family: str, beams: int, cache: Any) -> None:  # noqa: ANN401
    hf = dk.HFModel(build(family), cache=cache)
    session, seen = wander(hf, beams, seed=beams)
    assert isinstance(session, dk.MergeableSession)
    assert session.can_merge()
    for logits, texts in seen:
        expected = alone(hf, texts)
        exact = build(family).dtype == torch.float64
        torch.testing.assert_close(logits, expected, atol=1e-6 if exact else 1e-3, rtol=0)


@pytest.mark.parametrize("family", WINDOWS)
def test_sessions_over_a_trie_merge_with_sliding_windows(family: str) -> None:
    hf = dk.HFModel(build(family), cache="trie")
    session, seen = wander(hf, 3, seed=3)
    assert isinstance(session, TrieSession)
    assert session.can_merge()
    for logits, texts in seen:
        expected = alone(hf, texts)
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.mostly_slow(5)
@pytest.mark.parametrize(
    ("family", "beams", "cache"),
    [(family, 3, "auto") for family in ENCODER_DECODERS]
    + [(family, beams, "rows") for family in RELATIVE for beams in (1, 2)],
)
def test_encoder_decoder_sessions_merge(family: str, beams: int, cache: Any) -> None:  # noqa: ANN401
    hf = dk.HFModel(build(family), cache=cache)
    session, seen = wander(hf, beams, seed=5)
    assert isinstance(session, TrieSession if cache == "auto" else RowSession)
    assert session.can_merge()
    for logits, texts in seen[1::2]:
        exact = build(family).dtype == torch.float64 and family != "led-window"
        torch.testing.assert_close(logits, alone(hf, texts), atol=1e-5 if exact else 1e-3, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox", "mistral-window"])
def test_recorded_sessions_of_single_rows_merge(family: str) -> None:
    # A model of its own: one that has shown its states keeps transformers' hooks, and is not recorded.
    hf = dk.HFModel(build.__wrapped__(family), recorded=True)
    session, seen = wander(hf, 1, seed=4)
    assert isinstance(session, TrieSession)
    assert session.can_merge()
    for logits, texts in seen:
        expected = alone(hf, texts)
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "beams"),
    [(family, beams) for family in WINDOWS for beams in (1, 2)] + [(family, 1) for family in COUNTING],
)
def test_a_session_that_cannot_merge_says_so(family: str, beams: int) -> None:
    hf = wrap(family)
    prompt = dk.Prompt.of([[8, 9]], hf.vocabulary)
    session, _ = hf.start(prompt, rows_per_prompt=beams, capacity=9)
    assert isinstance(session, RowSession | TrieSession)
    assert not session.can_merge()


def test_a_recomputing_session_does_not_merge() -> None:
    session, _ = start(dk.HFModel(build("gpt2"), cache="none"), [([8, 9], ())], 1)
    assert not isinstance(session, dk.MergeableSession)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_model_that_would_continue_wrong_is_not_merged(beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = dk.HFModel(build("gpt2"))
    session, _ = start(hf, [([8, 9], ())], beams)
    assert session.can_merge()

    merge = Cache.merge

    def one_too_far(self: Any, other: Any, shifts: tuple[int, int], columns: int, capacity: int) -> None:  # noqa: ANN401
        merge(self, other, (shifts[0], shifts[1] - 1), columns, capacity)

    monkeypatch.setattr(Cache, "merge", one_too_far)
    hf = dk.HFModel(build("gpt2"))
    session, _ = start(hf, [([8, 9], ())], beams)
    assert not session.can_merge()


@pytest.mark.parametrize(("beams", "cache"), [(1, "auto"), (2, "trie"), (2, "rows")])
def test_columns_of_an_evicted_longest_prompt_are_dropped(beams: int, cache: Any) -> None:  # noqa: ANN401
    session, _ = start(dk.HFModel(build("llama"), cache=cache), [([8] * 9, ())], beams)
    session.merge(start(dk.HFModel(build("llama"), cache=cache), [([9] * 3, ())], beams)[0])
    session.keep_prompts(torch.tensor([1]))
    assert (session._tree.slots if cache == "trie" else session._cache.content.layers[0].keys.shape[2]) == 3


@pytest.mark.parametrize(("beams", "cache"), [(1, "auto"), (2, "trie"), (2, "rows")])
def test_columns_without_a_valid_row_are_dropped(beams: int, cache: Any) -> None:  # noqa: ANN401
    hf = dk.HFModel(build("llama"), cache=cache)
    session, logits = start(hf, [([8] * 9, ())], beams, new=9)
    longest = 0
    for _ in range(12):  # every prompt says four tokens beside the next one, then leaves
        session.merge(start(hf, [([9] * 3, ())], beams, new=9)[0])
        for step in range(4):
            rows = 2 * beams if step < 2 else beams
            if step == 2:
                session.keep_prompts(torch.tensor([1]))
            logits = session.advance(torch.full((rows,), 10), None)
        slots = session._tree.slots if cache == "trie" else session._cache.content.layers[0].keys.shape[2]
        longest = max(longest, slots)
    # Dead branches of a trie wait for its next count, up to 16 steps of them.
    assert longest <= 9 + beams * (8 if cache != "trie" else 8 + 16)
    _, expected = start(hf, [([9] * 3 + [10] * 4, ())], 1)
    torch.testing.assert_close(logits[:1], expected, atol=1e-6, rtol=0)
