"""Token healing of prompts that end within a token."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.validation import at_least, checked_options, set_fields, shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError
from decodekit.models.protocols import ModelWithVocabulary
from decodekit.processors._shared.token_texts import token_texts
from decodekit.processors.base import LogitsProcessor, Scores, device_ids

# States of a row: removed text complete, removed text missed, and from 2 on the bytes of removed texts.
_FREE, _DEAD, _FIRST = 0, 1, 2


class HealingMemory(NamedTuple):
    """The state of every row in its removed text, and the column of the first new token."""

    state: Int64[Tensor, " rows"]
    start: Int64[Tensor, ""]


class Tables(NamedTuple):
    """The allowed ids of every state, and the byte counts that lead to the next state."""

    allowed: Bool[Tensor, "states vocab"]  # ids that leave a rest that tokens can spell
    remaining: Int64[Tensor, " states"]  # bytes of the removed text still to come
    lengths: Int64[Tensor, " vocab"]  # bytes of every id


@final
@dataclass(frozen=True, eq=False)
class TokenHealing(LogitsProcessor):
    r"""Allows only tokens that spell the text that was removed from the end of the prompt.

    With r the remaining bytes of the text, keeps $\{v : v \text{ begins with } r, \text{ or } r \text{ begins
    with } v\}$ until none remain; then it changes nothing. So the model can split the text into the tokens of
    its training, and end it within a token. A token after which no tokens could spell the rest is banned too.
    `heal` creates this processor from prompts.

    Args:
        removed: The bytes to generate again, per prompt; empty for none.
        token_texts: The bytes of every id; ids without bytes are banned until the text is complete.

    Raises:
        TypeError: If one of them is not `bytes`.
        ValueError: If there are no prompts, or the tokens cannot spell a removed text.
        DecodekitError: In a run, if the number of removed texts differs from the batch size.

    Example:
        >>> healing = TokenHealing([b"ht"], [b"h", b"t", b"http", b"x"])
        >>> healing.apply(*(history := dk.Prompt.from_ids([[3]]).history(9, 1), torch.zeros(1, 4)),
        ...               healing.init(history))[0]
        tensor([[0., -inf, 0., -inf]])

    Source:
        Lundberg & Ribeiro, 2023,
        https://towardsdatascience.com/the-art-of-prompt-design-prompt-boundaries-and-token-healing-3b2448b0be38.

    Hugging Face:
        `generate(token_healing=True, tokenizer=...)`, a step before decoding: it adds 10 to the logits of the
        tokens that begin with the last token's text, 11 to that token itself, and replaces it by the chosen
        one. So it may choose a token that does not begin with the text, never uses several tokens, and runs
        outside the search. It strips whitespace from prompts, and looks up the decoded text. Byte-level
        vocabularies spell a token with a leading space or non-ASCII characters differently: these are not
        healed.
    """

    removed: Sequence[bytes]
    token_texts: Sequence[bytes] = field(repr=False)
    first_states: tuple[int, ...] = field(init=False, repr=False)
    tables: Tables = field(init=False, repr=False)

    batch_independent = True

    def __post_init__(self) -> None:
        removed, texts = tuple(self.removed), tuple(self.token_texts)
        for text in (*removed, *texts):
            if not isinstance(text, bytes):
                raise TypeError(f"TokenHealing: texts must be bytes, got {shown(text)}.")
        if not removed:
            raise ValueError("TokenHealing: there must be a text for every prompt, got none.")
        distinct = [text for text in dict.fromkeys(removed) if text]
        begins = accumulate(map(len, distinct), initial=_FIRST)
        first = {b"": _FREE} | dict(zip(distinct, begins, strict=False))
        states = _FIRST + sum(map(len, distinct))
        allowed = torch.zeros((states, len(texts)), dtype=torch.bool)
        remaining = torch.zeros(states, dtype=torch.long)
        allowed[_FREE] = True
        for text, ids_of_places in zip(distinct, _continuing_ids(distinct, texts), strict=True):
            for place, ids in enumerate(ids_of_places, start=first[text]):
                allowed[place, ids] = True
            if not allowed[first[text]].any():
                raise ValueError(
                    f"TokenHealing: the tokens of the vocabulary cannot spell the removed text {text!r}."
                )
            remaining[first[text] : first[text] + len(text)] = torch.arange(len(text), 0, -1)
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
        set_fields(self, removed=removed, token_texts=texts, tables=Tables(allowed, remaining, lengths))
        set_fields(self, first_states=tuple(first[text] for text in removed))

    @override
    def init(self, history: History) -> HealingMemory:
        if len(self.removed) != history.batch:
            raise DecodekitError(
                f"TokenHealing: there must be a removed text for each prompt, got {len(self.removed)} for "
                f"{history.batch} prompts. Pass decode the prompts that heal returns."
            )
        state = history.to_rows(device_ids(self.first_states, history.tokens.device))
        return HealingMemory(state, history.position.clone())

    @override
    def apply(self, history: History, scores: Scores, memory: HealingMemory) -> tuple[Scores, HealingMemory]:
        tables = _on_device(self, scores.shape[-1], scores.device)
        after = _next_state(tables, memory.state, history.last())
        state = torch.where(history.position > memory.start, after, memory.state)
        allowed = tables.allowed.index_select(0, state)
        return scores.masked_fill(~allowed, -torch.inf), memory._replace(state=state)


@checked_options
def heal(
    model: ModelWithVocabulary | Vocabulary,
    prompts: Any,  # noqa: ANN401 - see Prompt.of
    *,
    tokens: int = 1,
) -> tuple[Prompt, TokenHealing]:
    """Removes the last token of every prompt, for `TokenHealing` to generate its text again.

    A prompt may end within a token of the training text: in training, `http` continues with the token `://`,
    never with `:` and then `//`. After healing, the model chooses the tokens itself. The texts that `decode`
    returns begin with the removed text.

    A prompt's only token stays, and so does a special token with everything before it.

    Args:
        model: A model that has a vocabulary with a tokenizer, or the vocabulary.
        prompts: Strings, ids, or a tensor with its mask, as `decode` takes them.
        tokens: Number of tokens to remove, at least 1; the beginning of a word may be several.

    Returns:
        The shortened prompts, and the processor for them, in the same order.

    Raises:
        ValueError: If `tokens` is not an integer of at least 1.
        DecodekitError: If there is no tokenizer, or the prompts cannot be read.

    Example:
        >>> model = dk.load()
        >>> prompts, healing = heal(model, "Once upon a ti", tokens=2)
        >>> dk.decode(model, prompts, dk.Greedy(), healing, max_new_tokens=1).texts
        [[' time']]

    Hugging Face:
        `generate(token_healing=True)`; `TokenHealing` lists the differences.
    """
    at_least(1).check("heal", "tokens", tokens)
    vocabulary = model.vocabulary if isinstance(model, ModelWithVocabulary) else model
    if not isinstance(vocabulary, Vocabulary):
        raise DecodekitError(
            f"heal: model must be a model with a vocabulary, or the vocabulary, got {shown(model)}. "
            "Use dk.load(name) or dk.HFModel(model, tokenizer)."
        )
    texts = token_texts("heal", vocabulary)
    prompt = Prompt.of(prompts, vocabulary)
    ids = prompt.ids()
    ends = [_healed_length(row, texts, tokens) for row in ids]
    removed = [b"".join(texts[token] for token in row[end:]) for row, end in zip(ids, ends, strict=True)]
    shortened = [row[:end] for row, end in zip(ids, ends, strict=True)]
    healed = Prompt.from_ids(shortened, vocabulary.pad_id).to(prompt.tokens.device)
    if prompt.source is not None:
        healed = healed.with_source(prompt.source)
    return healed, TokenHealing(removed, texts)


def _healed_length(ids: list[int], texts: Sequence[bytes], max_removed: int) -> int:
    """Count the ids of a prompt that stay: at least one, and all up to the last one without bytes."""
    length = len(ids)
    while length > max(len(ids) - max_removed, 1) and ids[length - 1] < len(texts) and texts[ids[length - 1]]:
        length -= 1
    return length


def _continuing_ids(removed: list[bytes], token_texts: Sequence[bytes]) -> Iterator[list[list[int]]]:
    """Yield, for every place in each text, the ids that continue it and leave a rest that ids can spell."""
    ids_of: defaultdict[bytes, list[int]] = defaultdict(list)
    for id_, text in enumerate(token_texts):
        ids_of[text].append(id_)
    ids_of.pop(b"", None)
    texts = sorted(ids_of)
    for text in removed:
        ids: list[list[int]] = [[] for _ in text]
        for place in reversed(range(len(text))):
            rest = text[place:]
            begin, end = bisect_left(texts, rest), bisect_right(texts, rest, key=itemgetter(slice(len(rest))))
            ids[place] = [id_ for longer in texts[begin:end] for id_ in ids_of[longer]]
            for length in range(1, len(rest)):
                if ids[place + length]:
                    ids[place] += ids_of.get(rest[:length], [])
        yield ids


def _next_state(
    tables: Tables, state: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]
) -> Int64[Tensor, " rows"]:
    vocab = len(tables.lengths)
    ids = tokens.clamp(max=vocab - 1)
    continues = (tokens < vocab) & tables.allowed.view(-1).index_select(0, state * vocab + ids)
    lengths = tables.lengths.index_select(0, ids)
    within = torch.where(lengths < tables.remaining.index_select(0, state), state + lengths, _FREE)
    return torch.where(state == _FREE, _FREE, torch.where(continues, within, _DEAD))


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # the copy may later be used where gradients are computed
def _on_device(healing: TokenHealing, vocab: int, device: torch.device) -> Tables:
    """Return a cached copy of the tables for a vocabulary: a copy at every step would stall the device."""
    allowed, remaining, lengths = healing.tables
    known = min(vocab, len(lengths))
    all_allowed = torch.zeros((len(remaining), vocab), dtype=torch.bool)
    all_allowed[:, :known] = allowed[:, :known]
    all_allowed[_FREE] = True  # including ids that the tokenizer does not know
    all_lengths = torch.zeros(vocab, dtype=torch.long)
    all_lengths[:known] = lengths[:known]
    return Tables(all_allowed.to(device), remaining.to(device), all_lengths.to(device))
