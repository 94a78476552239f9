"""A processor, a scorer, a decoder and a model as a user writes them, with types."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Unpack

import decodekit as dk


@dataclass(frozen=True)
class OnlySeenTokens(dk.StatelessProcessor):
    """Bans every token that the hypothesis does not contain yet."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        vocab = scores.shape[-1]
        tokens = torch.where(history.valid, history.tokens, vocab)  # padding counts as a spare token
        seen = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=scores.device)
        seen = seen.scatter(1, tokens, torch.ones_like(tokens, dtype=torch.bool))
        return scores.masked_fill(~seen[:, :vocab], -torch.inf)


@dataclass(frozen=True)
class TokenReward(dk.Scorer):
    """The log-probability, and a reward for every token."""

    reward: float

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return log_probs + self.reward * lengths

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return log_probs + self.reward * torch.full_like(lengths, max_length)


@dataclass(frozen=True)
class BranchOnce(dk.Decoder[dk.RowState]):
    """Starts with each of the most probable tokens, then emits the most probable token at every step."""

    branches: int

    @property
    def rows_per_prompt(self) -> int:
        return self.branches

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        ranked = scores.topk(self.branches).indices
        rank = torch.arange(len(scores), device=scores.device) % self.branches
        first = ranked.gather(1, rank[:, None])[:, 0]
        return state.emit(torch.where(state.step == 0, first, ranked[:, 0]), scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=self.branches)


class SecondBest(dk.RowDecoder):
    """Emits the second most probable token at every step."""

    def choose(self, scores: Tensor, state: dk.RowState) -> Tensor:
        del state
        return scores.topk(2).indices[:, 1]


@dataclass(frozen=True)
class Without(dk.AdjustingDecoder[dk.RowState, None]):
    """Greedy search that never emits one token."""

    token: int

    @property
    def rows_per_prompt(self) -> int:
        return 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def adjust(self, scores: Tensor, state: dk.RowState) -> Tensor:
        del state
        ids = torch.arange(scores.shape[-1], device=scores.device)
        return scores.masked_fill(ids == self.token, -torch.inf)

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.argmax(-1), scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded[None]:
        return state.decoded(hypotheses=1)


def greedy_texts(model: dk.Model, prompts: list[str], **options: Unpack[dk.DecodeOptions]) -> list[str]:
    """The texts of `decode`, with any of its options."""
    out = dk.decode(model, prompts, dk.Greedy(), **options)
    return [texts[0] for texts in out.texts or []]


def greedy_texts_as_finished(
    model: dk.Model, prompts: list[str], **options: Unpack[dk.EachOptions]
) -> dict[int, str]:
    """The texts of `decode_each`, with any of its options."""
    results = dk.decode_each(model, prompts, dk.Greedy(), **options)
    return {number: (out.texts or [[""]])[0][0] for number, out in results}


def greedy_stream(model: dk.Model, prompt: str, **options: Unpack[dk.StreamOptions]) -> str:
    """The text of `stream`, with any of its options."""
    return "".join(chunk.text for chunk in dk.stream(model, prompt, dk.Greedy(), **options))


def same_texts(model: dk.Model, prompt: str, **options: Unpack[dk.RunOptions]) -> bool:
    """True if all three calls give the same text with the options that they share."""
    [text] = greedy_texts(model, [prompt], **options)
    as_finished = greedy_texts_as_finished(model, [prompt], **options)
    return text == as_finished[0] == greedy_stream(model, prompt, **options)


class Letters:
    """A tokenizer of 27 tokens: the space and the letters."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return [0 if letter == " " else ord(letter) - ord("a") + 1 for letter in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        del skip_special_tokens
        return "".join(" abcdefghijklmnopqrstuvwxyz"[token] for token in token_ids)


class Bigrams:
    """A language model that knows the probability of each letter after each letter."""

    def __init__(self, log_probs: Tensor) -> None:
        self.vocabulary = dk.Vocabulary(size=27, end_ids=(), tokenizer=Letters())
        self.log_probs = log_probs

    def start(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["BigramSession", Tensor]:
        del capacity  # there is no cache
        last = prompt.tokens[:, -1].repeat_interleave(rows_per_prompt)
        return BigramSession(self.log_probs), self.log_probs[last]


class BigramSession:
    """A run of the model. Its logits depend on the last letter only."""

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        del source_rows  # there is no cache to reorder
        return self.log_probs[tokens]


def alphabet() -> Bigrams:
    """A model that most often goes on with the next letter, and else repeats the last one."""
    letters = torch.arange(27)
    log_probs = torch.full((27, 27), -10.0)
    log_probs = log_probs.index_put((letters, letters), torch.tensor(-5.0))
    return Bigrams(log_probs.index_put((letters, (letters + 1) % 27), torch.tensor(0.0)))


def decode_with_all() -> tuple[dk.Decoded, dk.Decoded, dk.Decoded]:
    """Beam search with the scorer and the processor, and both decoders, over the model."""
    model: dk.Model = alphabet()
    search = dk.BeamSearch(2, scorer=TokenReward(0.5), stop_rule=dk.Proved())
    chain = dk.Chain(OnlySeenTokens(), dk.Temperature(0.5))
    return (
        dk.decode(model, "abcd a", search, chain, max_new_tokens=3),
        dk.decode(model, ["a", "b"], BranchOnce(2), max_new_tokens=3),
        dk.decode(model, "a", SecondBest(), max_new_tokens=3),
    )
