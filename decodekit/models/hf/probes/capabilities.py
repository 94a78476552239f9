"""What a transformers model at hand can do: asked once, by numerical tests, and refused by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.probes import experiments
from decodekit.models.protocols import MergeableSession, Session

# Runs a prompt with two rows.
OverTwoRows = Callable[[Prompt], tuple[Session, Float32[Tensor, "rows vocab"]]]


@runtime_checkable
class Opening(Protocol):
    """Runs a model over prompts with one row each; `share` as in `ConditionedDecoder`."""

    def __call__(
        self, prompt: Prompt, capacity: int, *, share: bool
    ) -> tuple[experiments.WideningSession, Float32[Tensor, "rows vocab"]]:
        """The session, and the logits after the prompts."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Capabilities:
    """What a model can do, found out where it matters.

    Attributes:
        name: The model's class.
        texts: What it is tested with.
        positions: Of a text, at most; 0: no limit.
        source_positions: Of what an encoder reads, at most; 0: no limit.
        reads_source: Whether it is an encoder-decoder.
        run: Runs it over prompts.
        read: The logits after every token of a text, after a source if it has one.
    """

    name: str
    texts: experiments.Texts
    positions: int
    source_positions: int
    reads_source: bool
    run: Opening
    read: experiments.ReadAfter

    def check_positions(self, prompt: Prompt, new_tokens: int) -> None:
        """Refuses what the model has no positions for."""
        longest = int(prompt.mask.sum(-1).max())
        if 0 < self.positions < longest + new_tokens - 1:  # the last token is said, and never read
            raise ModelError(
                f"HFModel: prompt and continuation must fit the {self.positions} positions of "
                f"{self.name}, got a prompt of {longest} tokens and {new_tokens} new ones. Shorten the "
                "prompt, or ask for fewer tokens."
            )
        source = 0 if prompt.source is None else int(prompt.source.valid.sum(-1).max())
        if 0 < self.source_positions < source:
            raise ModelError(
                f"HFModel: what the encoder reads must fit the {self.source_positions} positions of "
                f"{self.name}, got {source} tokens. Shorten the text."
            )

    def check(self, prompt: Prompt, rows_per_prompt: int) -> None:
        """Refuses what the model would do wrong, and say nothing about."""
        if 0 < self.positions < experiments.LONGEST:
            return  # too short to ask
        if not self.continues:
            raise ModelError(
                f"HFModel: {self.name} must continue a text token by token, and its logits depend on what "
                "comes later, or change when it uses its cache. Is it a causal language model "
                "(is_decoder=True)?"
            )
        if rows_per_prompt > 1 and not self.follows_rows:
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

    @cached_property
    def continues(self) -> bool:
        """Whether a text can be continued token by token."""
        try:
            return experiments.continues(self._run_after_one_source, self.read_after_one_source, self.texts)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"HFModel: {self.name} must read a text of four tokens with its cache, and raises "
                f"{type(error).__name__}: {error}"
            ) from error

    @cached_property
    def follows_rows(self) -> bool:
        """Whether the cache can be widened and reordered."""
        return experiments.follows_rows(self._run_after_one_source, self.read_after_one_source, self.texts)

    @cached_property
    def ignores_padding(self) -> bool:
        """Whether padding to the left of a text changes nothing."""
        return experiments.ignores_padding(self._run_after_one_source, self.read_after_one_source, self.texts)

    @cached_property
    def joins(self) -> bool:
        """Whether runs of rows can be joined."""

        def rows(prompt: Prompt) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
            session, logits = self.run(prompt, experiments.LONGEST, share=self.shares_source)
            return session, logits.index_select(0, session.widen(2))

        return self.joins_over(rows)

    def can_merge(self) -> bool:
        """The same, to be asked later."""
        return self.joins

    def joins_over(self, run: OverTwoRows) -> bool:
        """Whether runs of two rows can be joined."""

        def begin(
            text: list[int], source: list[int]
        ) -> tuple[MergeableSession, Float32[Tensor, "rows vocab"]]:
            prompt = Prompt.from_ids([text])
            session, logits = run(experiments.after([source], prompt) if self.reads_source else prompt)
            if not isinstance(session, MergeableSession):
                raise TypeError(f"{type(session).__name__} cannot be joined.")
            return session, logits

        try:
            return experiments.joins(begin, self.read, self.texts)
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # what a family raises whose cache is built otherwise

    @cached_property
    def shares_source(self) -> bool:
        """Whether the rows of a prompt can look at one copy of its source."""
        return self.reads_source and experiments.shares_source(
            partial(self.run, share=True), self.read, self.texts
        )

    @cached_property
    def ignores_source_padding(self) -> bool:
        """Whether padding to the right of a source changes nothing."""
        return experiments.ignores_source_padding(partial(self.run, share=False), self.read, self.texts)

    @property
    def source_path(self) -> str:
        """Where rows find their source: in one copy a prompt, in one each, or not asked yet."""
        return {True: "shared", False: "repeated", None: "untested"}[vars(self).get("shares_source")]

    def _run_after_one_source(
        self, prompt: Prompt, capacity: int
    ) -> tuple[experiments.WideningSession, Float32[Tensor, "rows vocab"]]:
        return self.run(self.after_one_source(prompt), capacity, share=self.shares_source)

    def after_one_source(self, prompt: Prompt) -> Prompt:
        """The prompts, after a source if the model reads any."""
        if not self.reads_source:
            return prompt
        return experiments.after([self.texts.first] * len(prompt.tokens), prompt)

    def read_after_one_source(self, text: list[int]) -> Float32[Tensor, "length vocab"]:
        """The logits after every token of a text, after that source."""
        return self.read(text, self.texts.first)


def most_positions(config: Any) -> int:  # noqa: ANN401 - a configuration of transformers
    """How many positions a text may take; 0: no limit."""
    names = ("max_decoder_position_embeddings", "max_position_embeddings")
    return max(next((most for name in names if (most := getattr(config, name, None))), 0), 0)  # -1: none
