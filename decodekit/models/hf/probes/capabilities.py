"""Capabilities of a transformers model, found by numerical probes.

Some families keep state outside their cache, or read padding as tokens, without any error. So every model is
probed: two short sequences are run in two ways, and the logits are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import Source
from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.forwards.forward import ForwardAfter, count_positions, unwrapped
from decodekit.models.hf.sessions import WidenableSession, start_hf_session
from decodekit.models.protocols import Logits, MergeableSession, Session

# Errors of families whose cache or attention is built differently.
PROBE_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
# Columns that a probe takes at most.
PROBE_LENGTH = 5
# Rounding stays well below this share of the signal, which is the effect of another first token. A wrong
# cache row makes an error of the whole signal, and a wrong position of a good part of it.
_TOLERANCE = 0.01
_HALF_PRECISION_TOLERANCE = 0.1


class ProbeSequences(NamedTuple):
    """Two sequences that a model is probed with, which differ in their first token only.

    Their logits therefore differ by the effect of context alone, which is the signal.
    """

    first: list[int]
    second: list[int]
    last: int  # a token to append
    tolerance: float  # the share of the signal that rounding may reach

    @classmethod
    def of(cls, vocab: int, pad_id: int | None, dtype: torch.dtype) -> "ProbeSequences":
        """Sequences of the lowest ids; the pad id is left out, since some families count positions by it."""
        ids = ([token for token in range(min(vocab, 5)) if token != pad_id] or [0]) * 4
        half = torch.finfo(dtype).bits < torch.finfo(torch.float32).bits
        tolerance = _HALF_PRECISION_TOLERANCE if half else _TOLERANCE
        return cls([ids[1], ids[2]], [ids[0], ids[2]], ids[3], tolerance)

    def agree(self, actual: Logits, expected: Logits, *, signal: Float32[Tensor, "*vocab"]) -> bool:
        """True if the logits differ by far less than the signal."""
        if not (actual.isfinite().all() and expected.isfinite().all() and signal.any()):
            return True  # nothing to compare; the run itself reports logits that are not finite
        return bool((actual - expected).abs().max() <= self.tolerance * signal.abs().max())


@dataclass(frozen=True, eq=False, kw_only=True)
class Capabilities:
    """Capabilities of one model, each probed when it first matters."""

    model: Any  # of transformers
    config: Any  # of its decoder
    forward_after: ForwardAfter
    cached: bool  # sessions keep a cache
    sequences: ProbeSequences

    @property
    def name(self) -> str:
        """The name of the model's class."""
        return type(unwrapped(self.model)).__name__

    @property
    def reads_source(self) -> bool:
        """True for an encoder-decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @cached_property
    def max_positions(self) -> int:
        """Number of positions; 0: no limit."""
        return _limit(self.config, "max_decoder_position_embeddings", "max_position_embeddings")

    @cached_property
    def max_source_positions(self) -> int:
        """Number of positions of the encoder; 0: no limit, or no encoder."""
        config = getattr(self.model.config, "encoder", None) or self.model.config
        names = ("max_encoder_position_embeddings", "max_position_embeddings")
        return _limit(config, *names) if self.reads_source else 0

    def check_positions(self, prompt: Prompt, new_tokens: int) -> None:
        """Raises a `ModelError` if the model has too few positions."""
        longest = int(prompt.mask.sum(-1).max())
        if 0 < self.max_positions < longest + new_tokens - 1:  # the last token is emitted, but never read
            raise ModelError(
                f"HFModel: prompt and continuation must fit the {self.max_positions} positions of "
                f"{self.name}, got a prompt of {longest} tokens and {new_tokens} new ones. Shorten the "
                "prompt, or ask for fewer tokens."
            )
        source = 0 if prompt.source is None else int(prompt.source.valid.sum(-1).max())
        if 0 < self.max_source_positions < source:
            raise ModelError(
                f"HFModel: a source that an encoder reads must fit the {self.max_source_positions} "
                f"positions of {self.name}, got {source} tokens. Shorten the text."
            )

    def check(self, prompt: Prompt, rows_per_prompt: int) -> None:
        """Raises a `ModelError` if the model would silently compute wrong logits."""
        if self.has_few_positions:
            return
        if not self.is_causal:
            raise ModelError(
                f"HFModel: {self.name} must continue a text token by token, and its logits depend on what "
                "comes later, or change when it uses its cache. Is it a causal language model "
                "(is_decoder=True)?"
            )
        if rows_per_prompt > 1 and not self.reorders_rows:
            raise ModelError(
                f"HFModel: {self.name}'s cache cannot be reordered; use a decoder with rows_per_prompt == 1."
            )
        if not bool(prompt.mask.all()) and not self.ignores_padding:
            raise ModelError(
                f"HFModel: {self.name} does not ignore left padding, so a batch would not give what each "
                "prompt alone gives. Decode prompts of different lengths one by one."
            )
        padded = prompt.source is not None and not bool(prompt.source.valid.all())
        if padded and not self.ignores_source_padding:
            raise ModelError(
                f"HFModel: {self.name}'s encoder does not ignore padding, so a batch would not give what "
                "each prompt alone gives. Decode prompts of different lengths one by one."
            )

    @property
    def has_few_positions(self) -> bool:
        """True if the model has too few positions for a probe."""
        return 0 < self.max_positions < PROBE_LENGTH

    @cached_property
    def is_causal(self) -> bool:
        """True if a sequence can be continued token by token.

        The logits after a token must not depend on later tokens (as an encoder's do), and must be the same
        with the tokens before it in the cache.
        """
        first, second, last, _ = self.sequences
        try:
            whole, other = (self.read_sequence([*tokens, last, last]) for tokens in (first, second))
            session, logits = self._start([first])
            agree = self.sequences.agree(logits, whole[1:2], signal=whole[1] - other[1])
            for position in (2, 3):
                logits = self.advance(session, [last])
                expected, signal = whole[position : position + 1], whole[position] - other[position]
                agree = agree and self.sequences.agree(logits, expected, signal=signal)
        except PROBE_ERRORS as error:
            raise ModelError(
                f"HFModel: {self.name} must read a text of four tokens with its cache, and raises "
                f"{type(error).__name__}: {error}"
            ) from error
        return agree

    @cached_property
    def reorders_rows(self) -> bool:
        """True if the cache can be widened and reordered: each row then continues its own sequence."""
        first, second, last, _ = self.sequences
        new, source_rows = [first[0], second[0], first[0], second[0]], [1, 0, 3, 3]
        try:
            session, _ = self._start([first, second], 4)
            session.widen(2)
            self.advance(session, new)
            actual = self.advance(session, [last] * 4, source_rows)
        except PROBE_ERRORS:
            return False  # the cache has no rows to reorder
        rows = [[*(first, second)[row // 2], new[source], last] for row, source in enumerate(source_rows)]
        return self._agree_by_row(actual, [self.read_sequence(row)[-1] for row in rows])

    @cached_property
    def ignores_padding(self) -> bool:
        """True if padding on the left changes no logits, in the prompt and one token later."""
        first, second, last, _ = self.sequences
        session, _ = self._start([first, [*second, last, last]])
        actual = self.advance(session, [last] * 2)[:1]
        one, other = (self.read_sequence([*tokens, last])[-1] for tokens in (first, second))
        return self.sequences.agree(actual, one[None], signal=one - other)

    @cached_property
    def merges_rows(self) -> bool:
        """True if sessions with one cache entry per row can be merged."""

        def start(prompt: Prompt) -> Session:
            session, _ = self.start(prompt, PROBE_LENGTH, share=self.shares_source)
            session.widen(2)
            return session

        return self.merges(start)

    def merges(self, start: Callable[[Prompt], Session]) -> bool:
        """True if sessions can be merged: each row then continues its own sequence, whatever the lengths.

        `start` starts a session with two rows per prompt.
        """
        first, second, last, _ = self.sequences
        prompts, sources = [first, [*second, last], second], [first, [*second, last, last], second]

        def begin(number: int) -> MergeableSession:
            session = start(self._with_sources([prompts[number]], [sources[number]]))
            if not isinstance(session, MergeableSession):
                raise TypeError(f"{type(session).__name__} cannot be merged.")
            return session

        moves = [1, 1, 3, 2, 4, 4]
        try:
            session = begin(0)
            session.merge(begin(1))
            actual = [self.advance(session, [first[0], second[0], last, first[0]])]
            session.merge(begin(2))
            actual.append(self.advance(session, [last] * 6, moves))
        except PROBE_ERRORS:
            return False
        longer = prompts[1]
        rows = [[*first, first[0]], [*first, second[0]], [*longer, last], [*longer, first[0]], second, second]
        expected = [
            torch.stack([self.read(tokens, sources[row // 2])[-1] for row, tokens in enumerate(several)])
            for several in (rows[:4], [[*rows[row], last] for row in moves])
        ]
        # Of two sequences that differ in their first token only, and are as long as the longest.
        one, other = (self.read([*tokens, last, first[0], last], sources[0]) for tokens in (first, second))
        signal = (one - other)[2:].abs().amax(-1).min()
        return all(
            self.sequences.agree(logits, alone, signal=signal)
            for logits, alone in zip(actual, expected, strict=True)
        )

    @cached_property
    def shares_source(self) -> bool:
        """True if the rows of a prompt can attend to one copy of its source."""
        if not self.reads_source:
            return False
        first, second, last, _ = self.sequences
        sources, new = [first, [*second, last]], [first[0], second[0], first[0], second[0]]
        try:
            session, _ = self.start(self._with_sources([first, first], sources), PROBE_LENGTH, share=True)
            session.widen(2)
            actual = self.advance(session, new)
        except PROBE_ERRORS:
            return False
        expected = [self.read([*first, token], sources[row // 2])[-1] for row, token in enumerate(new)]
        return self._agree_by_row(actual, expected)

    @cached_property
    def ignores_source_padding(self) -> bool:
        """True if padding on the right of a source changes no logits."""
        first, second, last, _ = self.sequences
        sources = [first, [*second, last, last]]
        _, logits = self.start(self._with_sources([first, first], sources), PROBE_LENGTH, share=False)
        one, other = (self.read(first, source)[-1] for source in sources)
        return self.sequences.agree(logits[:1], one[None], signal=one - other)

    @property
    def source_path(self) -> str:
        """`"shared"` for one copy of the source per prompt, `"repeated"` for one per row, or `"untested"`."""
        return {True: "shared", False: "repeated", None: "untested"}[vars(self).get("shares_source")]

    def with_source(self, texts: list[list[int]]) -> Prompt:
        """Prompts, all with the same source if the model reads any."""
        return self._with_sources(texts, [self.sequences.first] * len(texts))

    def advance(self, session: Session, tokens: list[int], source_rows: list[int] | None = None) -> Logits:
        """The logits after one more token on every row of a session."""
        device = self.model.device
        rows = None if source_rows is None else torch.tensor(source_rows, device=device)
        return session.advance(torch.tensor(tokens, device=device), rows)

    def read_sequence(self, tokens: list[int]) -> Float32[Tensor, "length vocab"]:
        """The logits after every token of a sequence, given that source."""
        return self.read(tokens, self.sequences.first)

    def read(self, tokens: list[int], source: list[int]) -> Float32[Tensor, "length vocab"]:
        """The logits after every token of a sequence, in one pass without a cache."""
        prompt = self._with_sources([tokens], [source]).to(self.model.device)
        forward, positions = self.forward_after(prompt, share=False).forward, count_positions(prompt.mask)
        output = forward(prompt.tokens, prompt.mask, positions, cache=None, keep=len(tokens))
        logits: Tensor = output.logits[0].float()
        return logits

    def start(self, prompt: Prompt, capacity: int, *, share: bool) -> tuple[WidenableSession, Logits]:
        """A session with one row per prompt, and the logits after the prompts."""
        prompt = prompt.to(self.model.device)
        return start_hf_session(self.forward_after(prompt, share=share), prompt, capacity, cached=self.cached)

    def _start(self, texts: list[list[int]], capacity: int = PROBE_LENGTH) -> tuple[WidenableSession, Logits]:
        return self.start(self.with_source(texts), capacity, share=self.shares_source)

    def _with_sources(self, texts: list[list[int]], sources: list[list[int]]) -> Prompt:
        """Prompts, with the sources for the encoder if there is one."""
        prompt = Prompt.from_ids(texts)
        if not self.reads_source:
            return prompt
        read = Prompt.from_ids(sources)
        return prompt.with_source(Source(read.tokens, read.mask))

    def _agree_by_row(self, actual: Logits, expected: list[Float32[Tensor, " vocab"]]) -> bool:
        """True if all rows agree, where rows 0 and 1 differ by their new tokens, and 0 and 2 by prompts."""
        signal = torch.minimum(*((expected[0] - expected[row]).abs().max() for row in (1, 2)))
        return self.sequences.agree(actual, torch.stack(expected), signal=signal)


def _limit(config: Any, *names: str) -> int:
    """The first limit that the configuration sets under one of these names; 0: no limit."""
    return max(next((limit for name in names if (limit := getattr(config, name, None))), 0), 0)  # -1: none
