"""The toy model that shows more than logits."""

from decodekit.testing import RevealingHashModel as ShowingModel

__all__ = ["ShowingModel"]
