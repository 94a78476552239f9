"""Constraints on the tokens of a hypothesis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from decodekit.core.validation import CheckedOptions, read_ids, set_fields, shown


@final
@dataclass(frozen=True)
class Phrase(CheckedOptions):
    """Requires a sequence of tokens, one directly after the other.

    Args:
        ids: Its token ids, at least one; one id or several.

    Raises:
        ValueError: If there is no id, or one is not an integer of at least 0.

    Example:
        >>> Phrase([5, 7])
        Phrase(ids=(5, 7))

    Hugging Face:
        `PhrasalConstraint(ids)`.
    """

    ids: int | Iterable[int]

    def __post_init__(self) -> None:
        set_fields(self, ids=_read("Phrase", self.ids))

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        """The phrase itself, alone."""
        return (read_ids("Phrase", self.ids),)


@final
@dataclass(frozen=True)
class OneOf(CheckedOptions):
    """Requires at least one of several sequences of tokens: the forms of a word, for instance.

    Args:
        phrases: The token ids of each, at least one.

    Raises:
        ValueError: If there is no sequence, one is empty, or an id is not an integer of at least 0.

    Example:
        >>> OneOf([[5, 7], [9]])
        OneOf(phrases=((5, 7), (9,)))

    Hugging Face:
        `DisjunctiveConstraint(phrases)`, which refuses a sequence that is the beginning of another.
    """

    phrases: Iterable[int | Iterable[int]]

    def __post_init__(self) -> None:
        if not isinstance(self.phrases, Iterable) or isinstance(self.phrases, str | bytes):
            raise ValueError(  # noqa: TRY004 - a bad argument, like the others
                f"OneOf: phrases must be sequences of ids, got {shown(self.phrases)}."
            )
        phrases = tuple(_read("OneOf", ids) for ids in self.phrases)
        if not phrases:
            raise ValueError("OneOf: phrases must hold at least one sequence of ids, got none.")
        set_fields(self, phrases=phrases)

    @property
    def alternatives(self) -> tuple[tuple[int, ...], ...]:
        """Every phrase."""
        return tuple(read_ids("OneOf", ids) for ids in self.phrases)


Constraint = Phrase | OneOf


def read_constraints(
    who: str,
    given: Any,  # noqa: ANN401 - an argument of any type
) -> tuple[Constraint, ...] | tuple[tuple[Constraint, ...], ...]:
    """One list of constraints for all prompts, or one per prompt, as tuples. Raises for anything else."""
    if _is_list(given):
        if all(isinstance(constraint, Constraint) for constraint in given):
            return tuple(given)
        if all(_is_list(prompt) and all(isinstance(one, Constraint) for one in prompt) for prompt in given):
            return tuple(tuple(prompt) for prompt in given)
    raise TypeError(
        f"{who}: constraints must be a list of Phrase and OneOf, such as [Phrase([5, 7])], or such a list "
        f"for each prompt, got {shown(given, 200)}."
    )


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)


def _read(who: str, ids: int | Iterable[int]) -> tuple[int, ...]:
    """The ids of one phrase. Raises a `ValueError` if there are none."""
    phrase = read_ids(who, ids)
    if not phrase:
        raise ValueError(f"{who}: a phrase must hold at least one id, got none.")
    return phrase
