"""Temperature."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class Temperature(StatelessProcessor):
    r"""Divides the scores by T: below 1 sharpens the distribution, above 1 flattens it.

    $P'(v) \propto P(v)^{1/T}$: towards 0 the likeliest token takes all, towards infinity all tokens are
    equally likely. Does not change the argmax.

    Args:
        temperature: T, above 0; one number, or one per prompt. Usual values: 0.3-1.5. For 0 use `Greedy`.

    Raises:
        ValueError: If `temperature` is not a finite number above 0.

    Example:
        >>> Temperature(0.5)(torch.tensor([[0]]), torch.tensor([[1.0, -2.0]]))
        tensor([[ 2., -4.]])

    Source:
        Ackley, Hinton & Sejnowski, 1985, https://doi.org/10.1207/s15516709cog0901_7, eq. 5.

    Hugging Face:
        `TemperatureLogitsWarper(temperature)`, bit for bit. decodekit also takes integers and lists.
    """

    temperature: PerPrompt

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        advice = "For the likeliest token at every step use Greedy()."
        set_per_prompt(self, temperature=POSITIVE._replace(advice=advice))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        return scores / for_rows(self.temperature, history, scores)
