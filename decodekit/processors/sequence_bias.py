"""Biases on sequences of tokens."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import MOST, is_number, read_ids, set_fields, shown
from decodekit.processors._shared.biased_sequences import BiasedSequences
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class SequenceBias(StatelessProcessor):
    r"""Adds a bias to the score of every token that would complete one of the given sequences.

    $s'(v) = s(v) + \sum_{(w, b)} b$ over the sequences $w$ that end in $v$, where the tokens so far end in
    the rest of $w$. Only the last token of a sequence gets the bias.

    Args:
        biases: A bias for each sequence, in nats, above 0 for likelier, minus infinity to ban: a mapping from
            tuples of ids, or pairs of ids and bias. Usual values: -10 to 10.

    Raises:
        ValueError: If there is no sequence, one is empty or holds anything but integers of at least 0, or a
            bias is NaN or plus infinity, or not a number; when applied, if an id is outside the vocabulary.

    Example:
        >>> biased = SequenceBias({(2,): 1.0, (5, 7, 0): -3.0, (7, 7, 0): 9.0})
        >>> biased(torch.tensor([[5, 7]]), torch.zeros(1, 8))
        tensor([[-3.,  0.,  1.,  0.,  0.,  0.,  0.,  0.]])

    Hugging Face:
        `SequenceBiasLogitsProcessor(biases)`, bit for bit without padding, which Hugging Face counts.
        decodekit also accepts integers. Where infinities give NaN in Hugging Face, decodekit bans the token.
    """

    biases: Mapping[tuple[int, ...], float] | Iterable[tuple[Iterable[int], float]]
    _sequences: BiasedSequences = field(init=False, repr=False, compare=False)

    batch_independent = True

    def __post_init__(self) -> None:
        pairs = tuple(_read_pairs(self.biases))
        if not pairs:
            raise ValueError("SequenceBias: biases must hold at least one sequence, got none.")
        set_fields(self, biases=pairs, _sequences=BiasedSequences.of("SequenceBias", pairs))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        return self._sequences.add("SequenceBias", history, scores)


def _read_pairs(given: Any) -> Iterable[tuple[tuple[int, ...], float]]:  # noqa: ANN401 - checked here
    pairs = given.items() if isinstance(given, Mapping) else given
    if not isinstance(pairs, Iterable) or isinstance(pairs, str):
        raise ValueError(  # noqa: TRY004 - a bad argument, like the others
            f"SequenceBias: biases must be a mapping from ids to numbers, or pairs, got {shown(given)}."
        )
    for pair in pairs:
        try:
            ids, bias = pair
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"SequenceBias: biases must be pairs of ids and bias, got {shown(pair)}."
            ) from error
        if not (is_number(bias) and (bias == -math.inf or abs(bias) <= MOST)):
            raise ValueError(
                f"SequenceBias: a bias must be a finite float32 or minus infinity, got {bias!r}."
            )
        yield read_ids("SequenceBias", ids), bias
