"""The options of a run, read and checked."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion, flatten
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError
from decodekit.stopping.stop_strings import StopStrings

# What `stop=` takes: a criterion, a string that ends a text, or several of either.
Stop = StoppingCriterion | str | Sequence[StoppingCriterion | str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `decode` is asked for besides the model, the prompts, the decoder and the processors.

    Attributes:
        watched: Whether somebody looks at the steps: then all prompts stay to the end, and no step is
            taken that is not needed. The others are those of `decode`.
    """

    max_new_tokens: int
    end_ids: int | Sequence[int] | None = None
    pad_id: int | None = None
    stop: Stop = ()
    trace: int | None = None
    check_every: int = 1
    capture: bool = False
    watched: bool = True
    criteria: tuple[StoppingCriterion, ...] = field(init=False)
    started: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for name, value in (
            ("max_new_tokens", self.max_new_tokens),
            ("check_every", self.check_every),
            ("trace", 1 if self.trace is None else self.trace),
        ):
            if type(value) is not int or value < 1:
                raise DecodekitError(f"decode: {name} must be an integer of at least 1, got {value!r}.")
        if type(self.capture) is not bool:
            raise DecodekitError(f"decode: capture must be True or False, got {self.capture!r:.80}.")
        object.__setattr__(self, "criteria", _criteria(self.stop))  # a frozen field

    @property
    def free(self) -> bool:
        """Whether nobody looks at the steps, so that prompts may leave and a step too many may be taken."""
        return not self.watched and self.trace is None

    def limits(self, vocabulary: Vocabulary, length: int, vocab: int) -> Limits:
        """The run's limits; what the caller gives outranks the model's own.

        Args:
            vocabulary: The model's.
            length: Columns of the prompts.
            vocab: Tokens the model can say.
        """
        # A configuration may carry another model's default ids, which this one cannot say.
        own = tuple(end for end in vocabulary.end_ids if end < vocab)
        ends = own if self.end_ids is None else _ids(self.end_ids)
        pad = vocabulary.pad_id if self.pad_id is None else next(iter(_ids(self.pad_id)), None)
        if pad is None or (self.pad_id is None and not 0 <= pad < vocab):
            pad = ends[0] if ends else 0
        for name, token in (("pad_id", pad), *(("end_ids", end) for end in ends)):
            if not 0 <= token < vocab:
                raise DecodekitError(
                    f"decode: {name} must be below the {vocab} tokens the model can say, got {token!r}."
                )
        return Limits(
            end_ids=tuple(dict.fromkeys(ends)),
            pad_id=pad,
            prompt_length=length,
            max_new_tokens=self.max_new_tokens,
            vocab=vocab,
            criteria=self.criteria,
            run=StoppingContext(vocabulary, self.started),
        )


def _criteria(stop: Stop) -> tuple[StoppingCriterion, ...]:
    """The criteria one by one, strings as `StopStrings`."""
    if isinstance(stop, str | StoppingCriterion):
        stop = (stop,)
    if not isinstance(stop, Sequence):
        raise TypeError(
            f"decode: stop must be a StoppingCriterion, a string, or a sequence of them, got {stop!r:.80}."
        )
    criteria: list[StoppingCriterion] = []
    for one in stop:
        if not isinstance(one, str | StoppingCriterion):
            raise TypeError(f"decode: stop must hold stopping criteria and strings, got {one!r:.80}.")
        criteria += flatten(StopStrings(one) if isinstance(one, str) else one)
    return tuple(criteria)


def _ids(given: Any) -> tuple[int, ...]:  # noqa: ANN401 - an integer or several, of whatever kind
    """Ids as plain integers: from an integer, a sequence, a tensor or an array."""
    if isinstance(given, Tensor):
        given = given.tolist()
    several = (given,) if isinstance(given, Integral) else given
    if isinstance(several, str | Mapping) or not isinstance(several, Iterable):
        raise DecodekitError(f"decode: end_ids and pad_id must be integers, got {given!r:.80}.")
    ids = []
    for token in several:
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise DecodekitError(f"decode: end_ids and pad_id must be integers, got {token!r:.80}.")
        ids.append(int(token))
    return tuple(ids)
