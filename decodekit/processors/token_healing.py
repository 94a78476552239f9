"""Token healing: prompts that end within a token."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.validation import is_count
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError
from decodekit.models.protocols import ModelWithVocabulary
from decodekit.processors._shared.token_texts import token_texts
from decodekit.processors.base import LogitsProcessor, device_ids

# A row's state: all is said, or something else was said; from 2 on, a byte of a removed text.
_FREE, _DEAD, _FIRST = 0, 1, 2


class Healing(NamedTuple):
    """How far every row has said the removed text again.

    Attributes:
        state: What is left to be said.
        start: The column in which continuations begin.
    """

    state: Int64[Tensor, " rows"]
    start: Int64[Tensor, ""]


class Tables(NamedTuple):
    """Of every state what may be said, and what is left after it.

    Attributes:
        allowed: The ids that go on with the removed text and do not lead astray.
        left: Bytes that are left to be said.
        lengths: Bytes of every id.
    """

    allowed: Bool[Tensor, "states vocab"]
    left: Int64[Tensor, " states"]
    lengths: Int64[Tensor, " vocab"]


@final
@dataclass(frozen=True, eq=False)
class TokenHealing(LogitsProcessor):
    r"""Bans every token that does not go on with a text that was taken away from the prompt's end.

    With r the bytes that are left of it, keeps $\{v : v \text{ begins with } r, \text{ or } r \text{ begins
    with } v\}$, until all of it is said; then it changes nothing. So the model is free to cut the text
    into tokens as it has learnt to, and to go on within one. A beginning after which no tokens could say the
    rest is banned too. `heal` makes it from prompts.

    Args:
        removed: For every prompt the bytes that are to be said again; none for nothing.
        token_texts: For every id the bytes that it says; ids without are banned until all is said.

    Raises:
        TypeError: If one of them is not `bytes`.
        ValueError: If there are no prompts, or the tokens cannot say what was removed.
        DecodekitError: In a run, if there are not as many removed texts as prompts.

    Example:
        >>> healing = TokenHealing([b"ht"], [b"h", b"t", b"http", b"x"])
        >>> healing.apply(*(history := dk.Prompt.from_ids([[3]]).history(9, 1), torch.zeros(1, 4)),
        ...               healing.init(history))[0]
        tensor([[0., -inf, 0., -inf]])

    Source:
        Lundberg & Ribeiro, 2023,
        https://towardsdatascience.com/the-art-of-prompt-design-prompt-boundaries-and-token-healing-3b2448b0be38.

    Hugging Face:
        `generate(token_healing=True, tokenizer=...)`, a step before decoding: it adds 10 to the logits of
        the tokens that begin with the last one's text, 11 to that one's own, and puts the chosen token in
        its place. So it may choose a token that does not begin with the text, never says the text in
        several tokens, and leaves nothing for the search to weigh. It strips whitespace from prompts, and
        looks up the decoded text, which byte-level vocabularies write otherwise where a token begins with
        a space or is not ASCII: those are left as they are.
    """

    removed: Sequence[bytes]
    token_texts: Sequence[bytes] = field(repr=False)
    first: tuple[int, ...] = field(init=False, repr=False)
    tables: Tables = field(init=False, repr=False)

    batch_independent = True

    def __post_init__(self) -> None:
        removed, texts = tuple(self.removed), tuple(self.token_texts)
        for text in (*removed, *texts):
            if not isinstance(text, bytes):
                raise TypeError(f"TokenHealing: texts must be bytes, got {text!r:.80}.")
        if not removed:
            raise ValueError("TokenHealing: there must be a text for every prompt, got none.")
        different = [text for text in dict.fromkeys(removed) if text]
        begins = accumulate(map(len, different), initial=_FIRST)
        first = {b"": _FREE} | dict(zip(different, begins, strict=False))
        states = _FIRST + sum(map(len, different))
        allowed = torch.zeros((states, len(texts)), dtype=torch.bool)
        left = torch.zeros(states, dtype=torch.long)
        allowed[_FREE] = True
        by_text = _TextsInOrder(texts)
        for text in different:
            for place, ids in enumerate(by_text.saying(text), start=first[text]):
                allowed[place, ids] = True
            if not allowed[first[text]].any():
                raise ValueError(
                    f"TokenHealing: the tokens must be able to say what was removed, got {text!r}."
                )
            left[first[text] : first[text] + len(text)] = torch.arange(len(text), 0, -1)
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
        object.__setattr__(self, "removed", removed)  # frozen fields
        object.__setattr__(self, "token_texts", texts)
        object.__setattr__(self, "first", tuple(first[text] for text in removed))
        object.__setattr__(self, "tables", Tables(allowed, left, lengths))

    def init(self, history: History) -> Healing:
        """Nothing of it is said yet."""
        batch = history.batch
        if len(self.first) != batch:
            raise DecodekitError(
                f"TokenHealing: there must be a removed text for each prompt, got {len(self.first)} for "
                f"{batch} prompts. Pass decode the prompts that heal returns."
            )
        state = history.spread(device_ids(self.first, history.tokens.device))
        return Healing(state, history.position.clone())

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Healing
    ) -> tuple[Float32[Tensor, "rows vocab"], Healing]:
        """The scores of what says the removed text, minus infinity elsewhere."""
        tables = _on_device(self, scores.shape[-1], scores.device)
        after = _after(tables, memory.state, history.last())
        state = torch.where(history.position > memory.start, after, memory.state)
        allowed = tables.allowed.index_select(0, state)
        return scores.masked_fill(~allowed, -torch.inf), memory._replace(state=state)


def heal(
    model: ModelWithVocabulary | Vocabulary,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    *,
    tokens: int = 1,
) -> tuple[Prompt, TokenHealing]:
    """Takes the last token of every prompt away, for `TokenHealing` to say its text again.

    A prompt may end where no text that the model has read would: after `http:` comes the token `://` there,
    never `//` behind a `:`. Healed, the model chooses the tokens itself. The texts that `decode`
    returns begin with what was taken away.

    A prompt's only token stays, and so does a special token with all that is before it.

    Args:
        model: A model that has a vocabulary with a tokenizer, or the vocabulary.
        prompts: What `decode` takes: strings, ids, or a tensor with its mask.
        tokens: How many tokens to take away, at least 1: a word that was cut in two may already be
            several.

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
        `generate(token_healing=True)`; `TokenHealing` says how it differs.
    """
    if not is_count(tokens, 1):
        raise ValueError(f"heal: tokens must be an integer of at least 1, got {tokens!r}.")
    vocabulary = model.vocabulary if isinstance(model, ModelWithVocabulary) else model
    if not isinstance(vocabulary, Vocabulary):
        raise DecodekitError(
            f"heal: model must be a model with a vocabulary, or the vocabulary, got {model!r:.80}. "
            "Use dk.load(name) or dk.HFModel(model, tokenizer)."
        )
    texts = token_texts("heal", vocabulary)
    prompt = Prompt.of(prompts, vocabulary)
    ids = prompt.ids()
    kept = [_kept(row, texts, tokens) for row in ids]
    removed = [b"".join(texts[token] for token in row[end:]) for row, end in zip(ids, kept, strict=True)]
    shorter = [row[:end] for row, end in zip(ids, kept, strict=True)]
    healed = Prompt.from_ids(shorter, vocabulary.pad_id).to(prompt.tokens.device)
    if prompt.source is not None:
        healed = healed.with_source(prompt.source)
    return healed, TokenHealing(removed, texts)


def _kept(ids: list[int], texts: Sequence[bytes], most: int) -> int:
    """How many ids of a prompt stay: at least one, and all up to the last that says nothing."""
    kept = len(ids)
    while kept > max(len(ids) - most, 1) and ids[kept - 1] < len(texts) and texts[ids[kept - 1]]:
        kept -= 1
    return kept


class _TextsInOrder:
    """The ids of a vocabulary by what they say."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.ids = sorted((id_ for id_, text in enumerate(texts) if text), key=texts.__getitem__)
        self.texts = [texts[id_] for id_ in self.ids]
        self.exactly: defaultdict[bytes, list[int]] = defaultdict(list)
        for text, id_ in zip(self.texts, self.ids, strict=True):
            self.exactly[text].append(id_)

    def saying(self, text: bytes) -> list[list[int]]:
        """For every place in a text the ids that go on with it, and leave a rest that can be said."""
        ids: list[list[int]] = [[] for _ in text]
        for place in reversed(range(len(text))):
            rest = text[place:]
            begin = bisect_left(self.texts, rest)
            end = bisect_right(self.texts, rest, key=itemgetter(slice(len(rest))))
            ids[place] = self.ids[begin:end]
            for length in range(1, len(rest)):
                if ids[place + length] and rest[:length] in self.exactly:
                    ids[place] = ids[place] + self.exactly[rest[:length]]
        return ids


def _after(
    tables: Tables, state: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]
) -> Int64[Tensor, " rows"]:
    """The state one token further."""
    vocab = len(tables.lengths)
    said = tokens.clamp(max=vocab - 1)
    goes_on = (tokens < vocab) & tables.allowed.view(-1).index_select(0, state * vocab + said)
    lengths = tables.lengths.index_select(0, said)
    within = torch.where(lengths < tables.left.index_select(0, state), state + lengths, _FREE)
    return torch.where(state == _FREE, _FREE, torch.where(goes_on, within, _DEAD))


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # it is kept, and may be used where gradients are taken
def _on_device(healing: TokenHealing, vocab: int, device: torch.device) -> Tables:
    """A device's copy for so many tokens, made once: a copy a step would stall the device's stream."""
    allowed, left, lengths = healing.tables
    known = min(vocab, len(lengths))
    wide = torch.zeros((len(left), vocab), dtype=torch.bool)
    wide[:, :known] = allowed[:, :known]
    wide[_FREE] = True  # those too that the tokenizer does not know
    long = torch.zeros(vocab, dtype=torch.long)
    long[:known] = lengths[:known]
    return Tables(wide.to(device), left.to(device), long.to(device))
