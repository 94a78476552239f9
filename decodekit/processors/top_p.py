"""Top-p (nucleus) truncation."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, is_number
from decodekit.processors._shared.nucleus import ban_tail
from decodekit.processors._shared.parameters import PerPrompt, map_per_prompt, for_rows, per_prompt
from decodekit.processors.base import StatelessProcessor


@final
@dataclass(frozen=True)
class TopP(StatelessProcessor):
    """Bans the tail: keeps the fewest likeliest tokens that together have probability p.

    The token that crosses p is kept, so at least one survives. Does not change the argmax.

    Args:
        p: Probability of the kept set, in [0, 1]; 0 keeps the likeliest token, 1 every token that
            is not negligible; one number, or one for each prompt. Usual values: 0.8-0.95.
        min_tokens_to_keep: Keeps this many of the likeliest whatever `p` says.

    Raises:
        ValueError: If `p` is outside [0, 1], or `min_tokens_to_keep` is not an integer of at least 1.

    Example:
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> TopP(0.7)(torch.tensor([[0]]), scores).isfinite()
        tensor([[ True,  True, False]])

    Source:
        Holtzman et al., 2020, https://arxiv.org/abs/1904.09751, eq. 2.

    Hugging Face:
        `TopPLogitsWarper(p, min_tokens_to_keep=...)`, bit for bit, ties included.
    """

    p: PerPrompt
    min_tokens_to_keep: int = 1

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt("TopP", "p", self.p, lambda p: is_number(p) and 0 <= p <= 1, "in [0, 1]")
        if not is_count(self.min_tokens_to_keep, 1):
            raise ValueError(
                f"TopP: min_tokens_to_keep must be an integer of at least 1, got {self.min_tokens_to_keep!r}."
            )
        object.__setattr__(self, "p", kept)  # a frozen field

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores of the nucleus, minus infinity elsewhere."""
        rest = for_rows(map_per_prompt(lambda p: 1 - p, self.p), history, scores)
        most = max(scores.shape[-1] - self.min_tokens_to_keep, 0)
        return ban_tail(scores, rest, most)
