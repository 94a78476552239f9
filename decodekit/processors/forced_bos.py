"""A forced first token."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, check_fields
from decodekit.processors.base import Scores, StatelessProcessor, force


@final
@dataclass(frozen=True)
class ForcedBOS(StatelessProcessor):
    """Allows only one token as the second token of the sequence.

    In an encoder-decoder, this is the first token after the start token: for instance, the language to
    translate into. It gets the score 0 and so adds nothing to a beam, even if it was banned before.

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
        `ForcedBOSTokenLogitsProcessor(bos_id)`, bit for bit without padding. Hugging Face counts left
        padding; decodekit does not.
    """

    bos_id: int

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, bos_id=at_least(0))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        at_start = history.valid.sum(-1, keepdim=True) == 1
        return force("ForcedBOS", scores, (self.bos_id,), at_start)
