"""A first token that is given."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count
from decodekit.processors.base import StatelessProcessor, force


@final
@dataclass(frozen=True)
class ForcedBOS(StatelessProcessor):
    """Allows one token only, where the text so far is one token long.

    That is the first token that an encoder-decoder says after its start: the language to translate
    into, for instance. It gets the score 0 and so adds nothing to a beam, even if it was banned before.

    Args:
        bos_id: The token's id, below the vocabulary size.

    Raises:
        ValueError: If `bos_id` is not an integer of at least 0; when applied, if it is outside the
            vocabulary.

    Example:
        >>> ForcedBOS(2)(torch.tensor([[5]]), torch.ones(1, 3))
        tensor([[-inf, -inf, 0.]])

    Source:
        Tang et al., 2020, https://arxiv.org/abs/2008.00401: the language's id as the first token.

    Hugging Face:
        `ForcedBOSTokenLogitsProcessor(bos_id)`, bit for bit without padding. Theirs counts left padding;
        ours counts every row's own tokens.
    """

    bos_id: int

    batch_independent = True

    def __post_init__(self) -> None:
        if not is_count(self.bos_id, 0):
            raise ValueError(f"ForcedBOS: bos_id must be an integer of at least 0, got {self.bos_id!r}.")

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores; at the first token, 0 for it and minus infinity elsewhere."""
        at_start = history.valid.sum(-1, keepdim=True) == 1
        return force("ForcedBOS", scores, (self.bos_id,), at_start)
