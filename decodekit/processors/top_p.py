"""Top-p (nucleus) truncation."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FRACTION, at_least, check_fields
from decodekit.processors._shared.nucleus import ban_tail
from decodekit.processors._shared.parameters import PerPrompt, for_rows, map_per_prompt, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class TopP(StatelessProcessor):
    """Bans the tail: keeps the smallest set of likeliest tokens that has probability p.

    The token that crosses p is kept, so at least one survives. Does not change the argmax.

    Args:
        p: Probability of the kept set, in [0, 1]; 0 keeps the likeliest token, 1 every token that is not
            negligible; one number, or one per prompt. Usual values: 0.8-0.95.
        min_tokens_to_keep: Likeliest tokens to keep for any `p`, at least 1.

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
        set_per_prompt(self, p=FRACTION)
        check_fields(self, min_tokens_to_keep=at_least(1))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        tail_mass = for_rows(map_per_prompt(lambda p: 1 - p, self.p), history, scores)
        return ban_tail(scores, tail_mass, max(scores.shape[-1] - self.min_tokens_to_keep, 0))
