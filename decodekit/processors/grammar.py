"""Output that a grammar accepts."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import read_ids, set_fields, shown
from decodekit.core.vocabulary import Tokenizer, Vocabulary
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor, Scores

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


@final
@dataclass(frozen=True)
class MatcherState:
    """The state of the grammar after the new tokens of a row."""

    matcher: "LLMatcher | None"  # None: rejected. Rows may share it, so it is copied before it reads more.
    ended: bool = False  # after an end id


class GrammarMemory(NamedTuple):
    """The state of the grammar for every row."""

    states: tuple[MatcherState, ...]  # of the rows at the last step
    rows: Int64[Tensor, " rows"]  # each row's index into them; reordered with the beams
    position: int  # the position of the history at the last step


@final
@dataclass(frozen=True, eq=False)
class Grammar(LogitsProcessor):
    r"""Bans every token after which no continuation would match a grammar.

    Keeps $\{v : \exists w : y_{<t} v w \in L\}$ for the language L of a JSON schema, a regular expression or
    a Lark grammar, matched byte by byte, so that tokenization does not matter. End ids are allowed exactly
    where the output so far is in L. If it is in L and cannot be extended within L, only end ids are allowed.
    The prompt is not matched. An output that reaches `max_new_tokens` may be an incomplete string of L.

    Each row has a matcher on the host, which takes a fraction of a millisecond per step and follows the row
    when beams are reordered.

    Needs the package llguidance: `pip install decodekit[grammar]`.

    Args:
        grammar: In Lark's notation with the extensions of llguidance, or its JSON form. `Grammar.regex`,
            `Grammar.json_schema` and `Grammar.lark` create it.
        tokenizer: A fast tokenizer of Hugging Face, or a `Vocabulary` that has one, such as
            `model.vocabulary`.
        end_ids: The ids that end an output; None: the end ids of the vocabulary or tokenizer.

    Raises:
        ImportError: If llguidance is not installed.
        TypeError: If `tokenizer` is not a fast one.
        ValueError: If the grammar cannot be read, or there are no end ids.
        DecodekitError: In a run, if the grammar takes more memory or time than llguidance allows.

    Example:
        >>> model = dk.load()
        >>> year = Grammar.regex("in the year 1[0-9]{3}", model.vocabulary)
        >>> dk.decode(model, "It was ", dk.BeamSearch(3), year, max_new_tokens=20).texts[0][0][:13]
        'in the year 1'

    Source:
        Willard & Louf, 2023, https://arxiv.org/abs/2307.09702; matchers by llguidance,
        https://github.com/guidance-ai/llguidance.

    Hugging Face:
        None.
    """

    grammar: str
    tokenizer: Tokenizer | Vocabulary = field(repr=False)
    _: KW_ONLY
    end_ids: int | Iterable[int] | None = None
    start: MatcherState = field(init=False, repr=False)
    size: int = field(init=False, repr=False)

    capturable = False  # its matchers run on the host
    batch_independent = True

    def __post_init__(self) -> None:
        llguidance = _llguidance()
        tokenizer, end_ids = _tokenizer_and_end_ids(self.tokenizer, self.end_ids)
        read = _read_tokenizer(tokenizer, end_ids)
        matcher = llguidance.LLMatcher(read, self.grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"Grammar: the grammar cannot be read: {matcher.get_error()}")
        set_fields(self, end_ids=end_ids, start=MatcherState(matcher), size=read.vocab_size)

    @classmethod
    def json_schema(
        cls,
        schema: str | Mapping[str, Any],
        tokenizer: Tokenizer | Vocabulary,
        *,
        whitespace: bool = True,
        end_ids: int | Iterable[int] | None = None,
    ) -> "Grammar":
        """JSON that a schema allows; `{}` allows any.

        Args:
            schema: As a mapping or as text.
            tokenizer: A fast tokenizer of Hugging Face, or a `Vocabulary` that has one.
            whitespace: True to allow any amount of whitespace between the parts. A weak model may then emit
                nothing but whitespace, and never end.
            end_ids: The ids that end an output; None: the end ids of the vocabulary or tokenizer.
        """
        if not isinstance(schema, str | Mapping):
            raise TypeError(f"Grammar: a schema must be a mapping or text, got {shown(schema)}.")
        given = schema if isinstance(schema, str) else dict(schema)
        make = _llguidance().LLMatcher.grammar_from_json_schema
        try:
            grammar = make(given, overrides={"whitespace_flexible": whitespace})
        except (TypeError, ValueError) as error:
            raise ValueError(f"Grammar: the grammar cannot be read: {error}") from error
        return cls(grammar, tokenizer, end_ids=end_ids)

    @classmethod
    def regex(
        cls, pattern: str, tokenizer: Tokenizer | Vocabulary, *, end_ids: int | Iterable[int] | None = None
    ) -> "Grammar":
        """Text that a regular expression matches as a whole; the syntax is that of Rust's `regex`."""
        if not isinstance(pattern, str):
            raise TypeError(f"Grammar: a pattern must be text, got {shown(pattern)}.")
        return cls(_llguidance().LLMatcher.grammar_from_regex(pattern), tokenizer, end_ids=end_ids)

    @classmethod
    def lark(
        cls, grammar: str, tokenizer: Tokenizer | Vocabulary, *, end_ids: int | Iterable[int] | None = None
    ) -> "Grammar":
        """Text that a context-free grammar in Lark's notation derives from `start`."""
        if not isinstance(grammar, str):
            raise TypeError(f"Grammar: a grammar must be text, got {shown(grammar)}.")
        return cls(_llguidance().LLMatcher.grammar_from_lark(grammar), tokenizer, end_ids=end_ids)

    @override
    def init(self, history: History) -> GrammarMemory:
        rows = torch.arange(len(history.tokens), device=history.tokens.device)
        return GrammarMemory((self.start,) * len(rows), rows, int(history.position))

    @override
    def apply(self, history: History, scores: Scores, memory: GrammarMemory) -> tuple[Scores, GrammarMemory]:
        states = [memory.states[row] for row in memory.rows.tolist()]
        position = int(history.position)
        if position > memory.position:
            states = list(map(self._after, states, history.last().tolist()))
        # Rows that share a state, as all do at first, share a mask.
        masks = {id(state): self._allowed(state, scores.shape[-1]) for state in states}
        allowed = torch.stack([masks[id(state)] for state in states]).to(scores.device)
        rows = torch.arange(len(states), device=history.tokens.device)
        return scores.masked_fill(~allowed, -torch.inf), GrammarMemory(tuple(states), rows, position)

    def _after(self, state: MatcherState, token: int) -> MatcherState:
        """Return the state one token further; after an end id it stays the same."""
        if state.ended or state.matcher is None:
            return state
        if token in self._end_ids:
            is_accepted = state.matcher.is_accepting()
            return MatcherState(state.matcher, ended=True) if is_accepted else MatcherState(None)
        if token >= self.size or not state.matcher.validate_tokens([token]):
            return MatcherState(None)
        matcher = state.matcher.deep_copy()
        if not matcher.consume_token(token):
            raise _limit_error(matcher)
        return MatcherState(matcher)

    def _allowed(self, state: MatcherState, vocab: int) -> Bool[Tensor, " vocab"]:
        """Return True for every one of the model's tokens that is allowed next."""
        allowed = torch.zeros(vocab, dtype=torch.bool)
        if state.matcher is None:
            return allowed
        if max(self._end_ids) >= vocab:
            raise DecodekitError(
                f"Grammar: end ids must be below the vocabulary size {vocab}, got {max(self._end_ids)}."
            )
        if not state.ended and not state.matcher.is_stopped():
            # One bit per token; the model may have more tokens than the tokenizer, or fewer.
            packed = np.frombuffer(state.matcher.compute_bitmask(), dtype=np.uint8)
            bits = torch.from_numpy(np.unpackbits(packed, bitorder="little")[: min(self.size, vocab)])
            allowed[: len(bits)] = bits.bool()
        if state.matcher.is_error():
            raise _limit_error(state.matcher)
        allowed[list(self._end_ids)] = state.ended or state.matcher.is_accepting()
        return allowed

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return self.end_ids  # type: ignore[return-value]  # set by __post_init__


def _llguidance() -> Any:  # noqa: ANN401 - a module
    try:
        import llguidance  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("Grammar: llguidance must be installed. pip install decodekit[grammar]") from error
    return llguidance


def _limit_error(matcher: "LLMatcher") -> DecodekitError:
    return DecodekitError(f"Grammar: the grammar exceeds llguidance's limits: {matcher.get_error()}")


def _tokenizer_and_end_ids(
    given: Tokenizer | Vocabulary, end_ids: int | Iterable[int] | None
) -> tuple[Any, tuple[int, ...]]:
    """Return the tokenizer itself, and the ids that end an output."""
    tokenizer = given.tokenizer if isinstance(given, Vocabulary) else given
    if end_ids is None:
        eos_id = getattr(tokenizer, "eos_token_id", None)
        end_ids = given.end_ids if isinstance(given, Vocabulary) else () if eos_id is None else eos_id
    read = read_ids("Grammar", end_ids)
    if not read:
        raise ValueError("Grammar: there must be at least one end id, got none. Pass end_ids=...")
    return tokenizer, read


def _read_tokenizer(tokenizer: Any, end_ids: tuple[int, ...]) -> "LLTokenizer":  # noqa: ANN401
    """Return the tokenizer in llguidance's form."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TypeError(
            "Grammar: tokenizer must be a fast tokenizer of Hugging Face, or a vocabulary that has one, got "
            f"{shown(tokenizer)}."
        )
    from llguidance.hf import from_tokenizer  # noqa: PLC0415 - an extra

    try:
        return from_tokenizer(tokenizer, eos_token=list(end_ids))
    except ValueError as error:
        raise ValueError(f"Grammar: llguidance cannot read the tokenizer: {error}") from error
