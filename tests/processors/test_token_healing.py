from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.processors._shared.token_texts import token_texts
from decodekit.testing import HashModel, MarkovModel, check_captures, check_processor
from tests.processors.parity import LAWS

BANNED = -torch.inf
URL = [b"h", b"t", b"tp", b"http", b":", b"://", b"/", b""]
HTTP, COLON, WHOLE, SLASH, END = 3, 4, 5, 6, 7


class Letters:
    """Longest match over some texts."""

    def __init__(self, texts: list[bytes]) -> None:
        self.texts = texts

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        left, ids = text.encode(), []
        while left:
            token = max(
                (i for i, t in enumerate(self.texts) if t and left.startswith(t)),
                key=lambda i: len(self.texts[i]),
            )
            ids.append(token)
            left = left[len(self.texts[token]) :]
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return b"".join(self.texts[token] for token in token_ids).decode()


def first_ids(texts: list[bytes], rest: bytes) -> set[int]:
    """The first ids of all sequences of ids that spell `rest`, by brute force."""
    if not rest:
        return set(range(len(texts)))
    return {
        token
        for token, text in enumerate(texts)
        if text and (text.startswith(rest) or (rest.startswith(text) and first_ids(texts, rest[len(text) :])))
    }


def allowed_after(
    processor: dk.TokenHealing, emitted: list[int], prompts: int, row: int, vocab: int
) -> set[int]:
    history = dk.Prompt.from_ids([[0]] * prompts).history(2 + len(emitted), 1)
    memory, scores = processor.init(history), torch.zeros(prompts, vocab)
    out, memory = processor.apply(history, scores, memory)
    for token in emitted:
        history = history.append(torch.full((prompts,), token))
        out, memory = processor.apply(history, scores, memory)
    return set(torch.where(out[row] > BANNED)[0].tolist())


def test_token_healing_allows_continuations_of_the_removed_text_until_it_is_complete() -> None:
    texts = [b"t", b"h", b"ht", b"http", b"tp", b"x", b""]
    processor = dk.TokenHealing([b"htt", b""], texts)
    # h and ht continue it, http goes beyond it; tp begins with the rest after ht.
    assert {1, 2, 3} == allowed_after(processor, [], 2, 0, 7)
    assert {0, 4} == allowed_after(processor, [2], 2, 0, 7)
    assert {0} == allowed_after(processor, [1], 2, 0, 7)
    assert {0, 4} == allowed_after(processor, [1, 0], 2, 0, 7)
    for emitted in ([3], [2, 0], [2, 4], [1, 0, 0], [3, 5, 5]):
        assert set(range(7)) == allowed_after(processor, emitted, 2, 0, 7)
    assert set(range(7)) == allowed_after(processor, [], 2, 1, 7)  # nothing was removed there
    assert set() == allowed_after(processor, [5], 2, 0, 7)


def test_token_healing_bans_a_beginning_after_which_no_tokens_spell_the_rest() -> None:
    processor = dk.TokenHealing([b"abc"], [b"a", b"ab", b"b", b"abc", b"c"])
    assert {0, 1, 3} == allowed_after(processor, [], 1, 0, 5)
    all_banned = dk.TokenHealing([b"abc"], [b"a", b"ab", b"bcd", b"abc"])
    assert {0, 3} == allowed_after(all_banned, [], 1, 0, 4)


def test_tokens_that_the_tokenizer_does_not_know_are_allowed_once_the_text_is_complete() -> None:
    processor = dk.TokenHealing([b"a"], [b"a", b"b"])
    assert {0} == allowed_after(processor, [], 1, 0, 5)
    assert {0, 1, 2, 3, 4} == allowed_after(processor, [0], 1, 0, 5)
    assert set() == allowed_after(processor, [4], 1, 0, 5)
    assert set() == allowed_after(dk.TokenHealing([b"b"], [b"a", b"b"]), [], 1, 0, 1)


@LAWS
@given(
    st.lists(st.binary(max_size=4).map(lambda raw: bytes(byte % 3 for byte in raw)), min_size=1, max_size=12),
    st.lists(st.binary(max_size=5).map(lambda raw: bytes(byte % 3 for byte in raw)), min_size=1, max_size=3),
    st.integers(0, 999),
)
def test_token_healing_allows_exactly_the_tokens_that_can_spell_the_removed_text(
    texts: list[bytes], removed: list[bytes], seed: int
) -> None:
    texts += removed  # so that each can be emitted
    processor = dk.TokenHealing(removed, texts)
    generator = torch.Generator().manual_seed(seed)
    for row, rest in enumerate(removed):
        emitted: list[int] = []
        for _ in range(len(rest) + 2):
            expected = first_ids(texts, rest)
            assert expected == allowed_after(processor, emitted, len(removed), row, len(texts))
            emitted.append(sorted(expected)[int(torch.randint(0, len(expected), (), generator=generator))])
            rest = rest[len(texts[emitted[-1]]) :]  # noqa: PLW2901 - the rest


@pytest.mark.parametrize("seed", range(5))
def test_healed_beams_are_the_best_of_all_texts_that_begin_with_the_removed_one(seed: int) -> None:
    texts, removed, steps = [b"a", b"b", b"ab", b"ba", b""], [b"ab", b"", b"bab"], 3
    model = HashModel(len(texts), seed=seed)
    prompts = [[0], [1, 4], [2]]
    out = dk.decode(
        model,
        prompts,
        dk.BeamSearch(125, scorer=dk.LogProb(), num_return=5),
        dk.TokenHealing(removed, texts),
        max_new_tokens=steps,
    )
    log_probs = dk.testing.next_log_probs(model)
    for prompt, rest, hypotheses in zip(prompts, removed, out.hypotheses(), strict=True):
        scored = {}
        for tokens in product(range(len(texts)), repeat=steps):
            if all(
                token in first_ids(texts, rest[len(b"".join(texts[t] for t in tokens[:place])) :])
                for place, token in enumerate(tokens)
            ):
                steps_ = [
                    log_probs(prompt + list(tokens[:place]))[token] for place, token in enumerate(tokens)
                ]
                scored[tokens] = sum(steps_)
        best = sorted(scored, key=scored.__getitem__, reverse=True)[:5]
        assert best == [tuple(text) for text in hypotheses]
        assert all(b"".join(texts[token] for token in text).startswith(rest) for text in hypotheses)


def test_a_healed_prompt_continues_with_the_token_that_was_cut_in_two() -> None:
    # After `http` the token `://` is likely; after a colon two slashes never occurred.
    rows = [[0.125] * 8 for _ in range(8)]
    rows[HTTP] = [0, 0, 0, 0, 0.25, 0.75, 0, 0]
    rows[COLON] = [0, 0, 0, 0, 0, 0, 0, 1]
    rows[WHOLE] = [0, 0, 0, 0, 0, 0, 0, 1]
    model: Any = MarkovModel(rows, end_ids=(END,))
    model.vocabulary = dk.Vocabulary(size=8, end_ids=(END,), tokenizer=Letters(URL))
    cut = dk.decode(model, "http:", dk.Greedy(), max_new_tokens=3)
    prompts, healing = dk.heal(model, "http:")
    healed = dk.decode(model, prompts, dk.Greedy(), healing, max_new_tokens=3)
    assert prompts.ids() == [[HTTP]]
    assert ["http:" + cut.texts[0][0], "http" + healed.texts[0][0]] == ["http:", "http://"]


def test_heal_removes_the_last_token_of_every_prompt_but_the_only_one() -> None:
    vocabulary = dk.Vocabulary(size=8, end_ids=(END,), tokenizer=Letters(URL))
    prompts, healing = dk.heal(vocabulary, ["http://", "h", "http://t", "http:/"])
    assert prompts.ids() == [[HTTP], [0], [HTTP, WHOLE], [HTTP, COLON]]
    assert healing.removed == (b"://", b"", b"t", b"/")
    # Ids and tensors too; a token without text stays, with everything before it.
    prompts, healing = dk.heal(vocabulary, [[HTTP, COLON, END], [HTTP, END, COLON, SLASH]], tokens=3)
    assert prompts.ids() == [[HTTP, COLON, END], [HTTP, END]]
    assert healing.removed == (b"", b":/")
    tensor = (torch.tensor([[0, HTTP, COLON]]), torch.tensor([[0, 1, 1]]))
    assert dk.heal(vocabulary, tensor)[0].ids() == [[HTTP]]


def test_heal_removes_the_given_number_of_tokens() -> None:
    model = dk.load()
    ids = model.vocabulary.ids("Once upon a ti")
    for tokens in range(1, 9):
        prompts, healing = dk.heal(model, "Once upon a ti", tokens=tokens)
        kept = max(len(ids) - tokens, 1)
        assert [ids[:kept]] == prompts.ids()
        assert model.tokenizer.decode(ids[kept:]) == healing.removed[0].decode()
    with pytest.raises(ValueError, match=r"^heal: tokens must be an integer of at least 1, got 0"):
        dk.heal(model, "Once upon", tokens=0)


def test_heal_keeps_the_source() -> None:
    source = dk.core.history.Source(torch.tensor([[3, 4]]), torch.tensor([[True, True]]))
    prompt = dk.Prompt.from_ids([[6, HTTP, COLON]]).with_source(source)
    vocabulary = dk.Vocabulary(size=8, decoder_start_id=6, tokenizer=Letters(URL))
    healed, _ = dk.heal(vocabulary, prompt)
    assert healed.ids() == [[6, HTTP]]
    assert healed.source is source


@pytest.mark.parametrize(
    "decoder", [dk.Greedy(), dk.Sample(3, seeds=[1, 2, 3, 4]), dk.BeamSearch(3, num_return=3)]
)
def test_healed_texts_begin_with_the_removed_bytes_in_any_batch(decoder: Any) -> None:  # noqa: ANN401
    model = dk.load()
    texts = ["the kin", "She went to the caf\u00e9", "He said, \u201c", "and the old wo"]
    known = token_texts("test", model.vocabulary)
    prompts, healing = dk.heal(model, texts, tokens=2)
    out = dk.decode(model, prompts, decoder, healing, max_new_tokens=8)
    for removed, hypotheses in zip(healing.removed, out.hypotheses(), strict=True):
        assert removed
        for tokens in hypotheses:
            assert b"".join(known[token] for token in tokens).startswith(removed)
    alone = dk.heal(model, texts[1], tokens=2)
    single = type(decoder)(3, seeds=[2]) if isinstance(decoder, dk.Sample) else decoder
    assert (
        out.hypotheses()[1] == dk.decode(model, alone[0], single, alone[1], max_new_tokens=8).hypotheses()[0]
    )


@pytest.mark.parametrize("model", [None, "gpt2", HashModel])
def test_heal_refuses_models_without_vocabulary(model: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match=r"^heal: model must be a model with a vocabulary"):
        dk.heal(model, "a")


def test_heal_refuses_a_vocabulary_without_tokenizer() -> None:
    with pytest.raises(dk.DecodekitError, match=r"^heal: the vocabulary must have a tokenizer"):
        dk.heal(HashModel(4), [[1, 2]])


@pytest.mark.parametrize(
    ("removed", "texts", "kind", "message"),
    [
        ([], [b"a"], ValueError, "there must be a text for every prompt"),
        ([b"b"], [b"a"], ValueError, "the tokens of the vocabulary cannot spell the removed text"),
        ([b"ab"], [b"a", b""], ValueError, "the tokens of the vocabulary cannot spell the removed text"),
        (["a"], [b"a"], TypeError, "texts must be bytes"),
        ([b"a"], ["a"], TypeError, "texts must be bytes"),
        (b"a", [b"a"], TypeError, "texts must be bytes"),
    ],
)
def test_token_healing_refuses(
    removed: Any,  # noqa: ANN401
    texts: Any,  # noqa: ANN401
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=f"^TokenHealing: {message}"):
        dk.TokenHealing(removed, texts)


def test_token_healing_refuses_another_number_of_prompts() -> None:
    processor = dk.TokenHealing([b"a", b"a"], [b"a"])
    with pytest.raises(
        dk.DecodekitError, match=r"^TokenHealing: there must be a removed text for each prompt"
    ):
        processor.init(dk.Prompt.from_ids([[0]]).history(3, 2))


def test_token_healing_keeps_the_contract_of_processors() -> None:
    texts = [b"h", b"t", b"ht", b"http", b"x", b"", b"p", b"tp", b"\xff"]
    removed = [b"htp", b"", b"\xff\xff", b"t"]
    for known in (texts, [*texts[:5], b"p", b"tp", b"\xff"]):
        check_processor(
            lambda prompts, known=known: dk.TokenHealing([removed[number % 4] for number in prompts], known),
            max_examples=20,
        )


def test_a_beam_search_with_token_healing_can_be_captured() -> None:
    check_captures(dk.BeamSearch(3), [dk.TokenHealing([b"ab", b"", b"b"], [b"a", b"b", b"ab"])])
