"""What arguments of beam searches may be."""

from decodekit.core.limits import Limits
from decodekit.core.validation import is_count
from decodekit.decoders.beam.stop_rules import StopRule
from decodekit.errors import DecodekitError
from decodekit.scorers.base import PathScorer


def check_beams(who: str, beams: object) -> None:
    """Raises unless it is a number of beams."""
    if not is_count(beams, 1):
        raise ValueError(f"{who}: beams must be an integer of at least 1, got {beams!r:.80}.")


def check_parts(who: str, scorer: object, stop_rule: object) -> None:
    """Raises unless they are a scorer and a stop rule."""
    for name, given, kind, wanted in (
        ("scorer", scorer, PathScorer, "a Scorer or PathScorer such as LengthPenalty(1.0)"),
        ("stop_rule", stop_rule, StopRule, "a StopRule such as WhenFull()"),
    ):
        if not isinstance(given, kind):
            raise TypeError(f"{who}: {name} must be {wanted}, got {given!r:.80}.")


def check_returned(who: str, num_return: object, most: int, why: str) -> None:
    """Raises unless so many hypotheses can be returned.

    Args:
        who: The class that takes it.
        num_return: What was asked for.
        most: What is promised.
        why: Where that number comes from.
    """
    if not is_count(num_return, 1) or num_return > most:
        raise ValueError(
            f"{who}: num_return must be an integer from 1 to {most}, {why} finish, got {num_return!r}."
        )


def check_continuations(who: str, beams: int, limits: Limits) -> None:
    """Raises unless a run has as many texts as beams."""
    continuations = limits.vocab**limits.max_new_tokens
    if beams > continuations:
        raise DecodekitError(
            f"{who}: there must be at least as many continuations as beams, got {beams} beams for "
            f"{limits.vocab} tokens ** {limits.max_new_tokens} steps = {continuations}. Use fewer beams."
        )
