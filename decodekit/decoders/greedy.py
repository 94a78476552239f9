"""Greedy search."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.decoders.rows import RowDecoder, RowState


@final
@dataclass(frozen=True)
class Greedy(RowDecoder):
    r"""Emits the likeliest token at every step.

    $y_t = \arg\max_v P(v \mid y_{<t}, x)$; of tied tokens the one with the lowest id.

    Example:
        >>> dk.decode(dk.load(), "she was as beautiful as the", dk.Greedy(), max_new_tokens=1).texts
        [[' sun']]

    Hugging Face:
        `generate(do_sample=False, num_beams=1)`, the same tokens.
    """

    @override
    def choose(self, scores: Float32[Tensor, "rows vocab"], state: RowState) -> Int64[Tensor, " rows"]:
        return scores.argmax(-1)
