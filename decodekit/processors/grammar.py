"""Texts that a grammar accepts."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import read_ids
from decodekit.core.vocabulary import Tokenizer, Vocabulary
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


@final
@dataclass(frozen=True)
class Place:
    """Where a text stands in the grammar.

    Attributes:
        matcher: Has read the text; never made to read more, but copied for that. None: the grammar
            does not begin with the text.
        ended: Whether the text has said an end id.
    """

    matcher: "LLMatcher | None"
    ended: bool = False


class Reading(NamedTuple):
    """What every row has said, as matchers.

    Attributes:
        places: Where the rows stood at the last step.
        rows: The place that each row continues: numbers that follow when rows are reordered.
        position: The column up to which the places have read.
    """

    places: tuple[Place, ...]
    rows: Int64[Tensor, " rows"]
    position: int


@final
@dataclass(frozen=True, eq=False)
class Grammar(LogitsProcessor):
    r"""Bans every token with which the new text is no beginning of one that a grammar accepts.

    Keeps $\{v : \exists w : y_{<t} v w \in L\}$ for the language L of a JSON schema, a regular expression
    or a Lark grammar, read byte by byte, so that it does not matter how a text is cut into tokens. End ids
    are allowed exactly where the text so far is in L, and nothing else is where it cannot go on. What the
    prompt says is not read. A text that `max_new_tokens` cuts off is a beginning only.

    A matcher runs on the host for each row, and follows its row when beams are reordered: a fraction of a
    millisecond a row and step.

    Needs the package llguidance: `pip install decodekit[grammar]`.

    Args:
        grammar: In Lark's notation with the extensions of llguidance, or its JSON form. `Grammar.regex`,
            `Grammar.json_schema` and `Grammar.lark` make it.
        tokenizer: A fast tokenizer of Hugging Face, or a `Vocabulary` that has one, such as
            `model.vocabulary`.
        end_ids: The ids that end a text; None: the vocabulary's, or the tokenizer's own.

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
    start: Place = field(init=False, repr=False)
    size: int = field(init=False, repr=False)

    capturable = False  # its matchers run on the host
    batch_independent = True

    def __post_init__(self) -> None:
        llguidance = _llguidance()
        tokenizer, ends = _tokenizer_and_ends(self.tokenizer, self.end_ids)
        read = _read_tokenizer(tokenizer, ends)
        matcher = llguidance.LLMatcher(read, self.grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"Grammar: the grammar must be one that can be read: {matcher.get_error()}")
        object.__setattr__(self, "end_ids", ends)  # frozen fields
        object.__setattr__(self, "start", Place(matcher))
        object.__setattr__(self, "size", read.vocab_size)

    @classmethod
    def json_schema(
        cls,
        schema: str | Mapping[str, Any],
        tokenizer: Tokenizer | Vocabulary,
        *,
        whitespace: bool = True,
        end_ids: int | Iterable[int] | None = None,
    ) -> "Grammar":
        """JSON texts that a schema allows; `{}` allows any.

        Args:
            schema: As a mapping or as text.
            tokenizer: As in the constructor.
            whitespace: Whether there may be whitespace between the parts, as much as the model likes: a
                weak model may like nothing else, and never end.
            end_ids: As in the constructor.
        """
        if not isinstance(schema, str | Mapping):
            raise TypeError(f"Grammar: a schema must be a mapping or text, got {schema!r:.80}.")
        given = schema if isinstance(schema, str) else dict(schema)
        options = {"whitespace_flexible": whitespace}
        make = _llguidance().LLMatcher.grammar_from_json_schema
        try:
            grammar = make(given, overrides=options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Grammar: the grammar must be one that can be read: {error}") from error
        return cls(grammar, tokenizer, end_ids=end_ids)

    @classmethod
    def regex(
        cls,
        pattern: str,
        tokenizer: Tokenizer | Vocabulary,
        *,
        end_ids: int | Iterable[int] | None = None,
    ) -> "Grammar":
        """Texts that a regular expression matches as a whole; the syntax is that of Rust's `regex`."""
        if not isinstance(pattern, str):
            raise TypeError(f"Grammar: a pattern must be text, got {pattern!r:.80}.")
        return cls(_llguidance().LLMatcher.grammar_from_regex(pattern), tokenizer, end_ids=end_ids)

    @classmethod
    def lark(
        cls,
        grammar: str,
        tokenizer: Tokenizer | Vocabulary,
        *,
        end_ids: int | Iterable[int] | None = None,
    ) -> "Grammar":
        """Texts that a context-free grammar in Lark's notation derives from `start`."""
        if not isinstance(grammar, str):
            raise TypeError(f"Grammar: a grammar must be text, got {grammar!r:.80}.")
        return cls(_llguidance().LLMatcher.grammar_from_lark(grammar), tokenizer, end_ids=end_ids)

    def init(self, history: History) -> Reading:
        """Every row at the start of the grammar."""
        rows = torch.arange(len(history.tokens), device=history.tokens.device)
        return Reading((self.start,) * len(rows), rows, int(history.position))

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Reading
    ) -> tuple[Float32[Tensor, "rows vocab"], Reading]:
        """The scores of what the grammar goes on with, minus infinity elsewhere."""
        places = [memory.places[row] for row in memory.rows.tolist()]
        position = int(history.position)
        if position > memory.position:
            said = history.last().tolist()
            places = [self._after(place, token) for place, token in zip(places, said, strict=True)]
        # Rows that stand in the same place, as all do at first, are asked for once.
        masks = {id(place): self._allowed(place, scores.shape[-1]) for place in places}
        allowed = torch.stack([masks[id(place)] for place in places]).to(scores.device)
        rows = torch.arange(len(places), device=history.tokens.device)
        return scores.masked_fill(~allowed, -torch.inf), Reading(tuple(places), rows, position)

    def _after(self, place: Place, token: int) -> Place:
        """The place one token further; what has ended stays ended, whatever pads it."""
        if place.ended or place.matcher is None:
            return place
        if token in read_ids("Grammar", self.end_ids or ()):
            return Place(place.matcher, ended=True) if place.matcher.is_accepting() else Place(None)
        if token >= self.size or not place.matcher.validate_tokens([token]):
            return Place(None)
        matcher = place.matcher.deep_copy()
        if not matcher.consume_token(token):
            raise DecodekitError(
                f"Grammar: the grammar must be within llguidance's limits: {matcher.get_error()}"
            )
        return Place(matcher)

    def _allowed(self, place: Place, vocab: int) -> Bool[Tensor, " vocab"]:
        """The tokens that may come next, of as many as the model can say."""
        allowed = torch.zeros(vocab, dtype=torch.bool)
        if place.matcher is None:
            return allowed
        ends = list(read_ids("Grammar", self.end_ids or ()))
        if max(ends) >= vocab:
            raise DecodekitError(
                f"Grammar: end ids must be below the {vocab} tokens that the model can say, got {max(ends)}."
            )
        if not place.ended and not place.matcher.is_stopped():
            # A bit a token; the model may have more tokens than the tokenizer, or fewer.
            packed = np.frombuffer(place.matcher.compute_bitmask(), dtype=np.uint8)
            bits = torch.from_numpy(np.unpackbits(packed, bitorder="little")[: min(self.size, vocab)])
            allowed[: len(bits)] = bits.bool()
        if place.matcher.is_error():
            raise DecodekitError(
                f"Grammar: the grammar must be within llguidance's limits: {place.matcher.get_error()}"
            )
        allowed[ends] = place.ended or place.matcher.is_accepting()
        return allowed


def _llguidance() -> Any:  # noqa: ANN401 - a module
    try:
        import llguidance  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            "Grammar: grammars need the package llguidance, which is not installed. "
            "pip install decodekit[grammar]"
        ) from error
    return llguidance


def _tokenizer_and_ends(
    given: Tokenizer | Vocabulary, end_ids: int | Iterable[int] | None
) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer itself, and the ids that end a text."""
    tokenizer = given.tokenizer if isinstance(given, Vocabulary) else given
    if end_ids is None:
        own = getattr(tokenizer, "eos_token_id", None)
        end_ids = given.end_ids if isinstance(given, Vocabulary) else () if own is None else own
    ends = read_ids("Grammar", end_ids)
    if not ends:
        raise ValueError(
            "Grammar: there must be at least one end id, for where the text is complete. Pass end_ids=..."
        )
    return tokenizer, ends


def _read_tokenizer(tokenizer: Any, ends: tuple[int, ...]) -> "LLTokenizer":  # noqa: ANN401
    """The tokenizer as llguidance wants it."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TypeError(
            "Grammar: tokenizer must be a fast tokenizer of Hugging Face, or a vocabulary that has one, got "
            f"{tokenizer!r:.80}."
        )
    from llguidance.hf import from_tokenizer  # noqa: PLC0415 - an extra

    try:
        return from_tokenizer(tokenizer, eos_token=list(ends))
    except ValueError as error:
        raise ValueError(f"Grammar: tokenizer must be one that llguidance can read: {error}") from error
