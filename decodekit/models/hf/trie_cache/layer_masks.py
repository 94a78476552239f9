"""One mask for each kind of attention layer that a model has."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

# A mask for all layers, or one for each kind of layer.
Mask = Float[Tensor, "batch 1 beams slots"] | dict[str, Float[Tensor, "batch 1 beams slots"]]


@dataclass(frozen=True)
class LayerMasks:
    """What the layers of a model see of what a query could see, by position.

    Attributes:
        kinds: The kinds of layers of a model that wants a mask for each; empty: it wants one mask.
        window: Positions that a sliding layer looks back to, the query's own included; None: all.
        chunk: Positions of a chunk, outside of which a chunked layer sees nothing; None: all.
    """

    kinds: frozenset[str]
    window: int | None
    chunk: int | None

    @classmethod
    def of(cls, config: Any) -> "LayerMasks":  # noqa: ANN401 - a configuration of transformers
        """As the configuration says.

        Raises:
            ValueError: If there are layers of another kind, which keep something else than keys and values.
        """
        kinds = frozenset(getattr(config, "layer_types", None) or ())
        if others := kinds - {FULL, SLIDING, CHUNKED}:
            raise ValueError(f"layers of {min(others)}")
        window = getattr(config, "sliding_window", None)
        if kinds and SLIDING not in kinds:
            window = None
        chunk = getattr(config, "attention_chunk_size", None) if CHUNKED in kinds else None
        return cls(kinds - {FULL} and kinds | {FULL}, window, chunk)

    def __call__(
        self,
        bias: Float[Tensor, "batch 1 beams slots"],
        depths: Int64[Tensor, "batch slots"],
        positions: Int64[Tensor, "batch beams"],
    ) -> Mask:
        """The mask of every kind of layer.

        Args:
            bias: What the queries could see: 0, or the dtype's lowest number.
            depths: The position of every slot in its text.
            positions: The queries' own.
        """
        if not self.kinds:
            return bias if self.window is None else self._near(bias, depths, positions, self.window)
        masks = {FULL: bias}
        if self.window is not None:
            masks[SLIDING] = self._near(bias, depths, positions, self.window)
        if self.chunk is not None:
            same = (depths // self.chunk)[:, None, None] == (positions // self.chunk)[:, None, :, None]
            masks[CHUNKED] = bias.masked_fill(~same, torch.finfo(bias.dtype).min)
        return {kind: masks.get(kind, bias) for kind in self.kinds}

    @staticmethod
    def _near(
        bias: Float[Tensor, "batch 1 beams slots"],
        depths: Int64[Tensor, "batch slots"],
        positions: Int64[Tensor, "batch beams"],
        window: int,
    ) -> Float[Tensor, "batch 1 beams slots"]:
        far = positions[:, None, :, None] - depths[:, None, None] >= window
        return bias.masked_fill(far, torch.finfo(bias.dtype).min)
