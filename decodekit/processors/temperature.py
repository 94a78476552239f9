"""Temperature."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float32
from torch import Tensor

from decodekit.history import History
from decodekit.processors.base import StatelessProcessor, is_number


@final
@dataclass(frozen=True)
class Temperature(StatelessProcessor):
    r"""Sharpens the distribution below 1, flattens it above 1.

    $P'(v) \propto P(v)^{1/T}$: towards 0 the likeliest token takes all, towards infinity all are
    equal. Does not change the argmax.

    Args:
        temperature: T, above 0. Usual values: 0.3-1.5. For 0 use `Greedy`.

    Raises:
        ValueError: If `temperature` is not a finite number above 0.

    Example:
        >>> Temperature(0.5)(torch.tensor([[0]]), torch.tensor([[1.0, -2.0]]))
        tensor([[ 2., -4.]])

    Source:
        Ackley, Hinton & Sejnowski, 1985, https://doi.org/10.1207/s15516709cog0901_7, eq. 5.

    Hugging Face:
        `TemperatureLogitsWarper(temperature)`, bit for bit; integers are welcome here.
    """

    temperature: float

    argmax_invariant = True

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 0 < self.temperature < float("inf")):
            raise ValueError(
                f"Temperature: temperature must be a finite number above 0, got {self.temperature!r}. "
                "For the likeliest token at every step use Greedy()."
            )

    def process(
        self,
        history: History,  # noqa: ARG002 - the contract's signature
        scores: Float32[Tensor, "rows vocab"],
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores over the temperature."""
        return scores / self.temperature
