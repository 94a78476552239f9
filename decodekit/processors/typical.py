"""Locally typical truncation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import OPEN_FRACTION, at_least, check_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class Typical(StatelessProcessor):
    r"""Bans untypical tokens: keeps tokens whose surprise is close to the entropy.

    With $H$ the entropy of the next token, keeps tokens in order of $|{-\log P(v)} - H|$ until their
    probability reaches `mass`, and all tokens at the same distance from $H$ as the last one. The likeliest
    token can be banned: if the model is unsure, it is less surprising than expected.

    Args:
        mass: Probability of the kept set, strictly between 0 and 1; one number, or one per prompt. Usual
            values: 0.2-0.95.
        min_tokens_to_keep: Most typical tokens to keep for any `mass`, at least 1.

    Raises:
        ValueError: If `mass` is not strictly between 0 and 1, or `min_tokens_to_keep` is not an integer of at
            least 1.

    Example:
        >>> scores = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> Typical(0.2)(torch.tensor([[0]]), scores).isfinite()
        tensor([[False,  True, False]])

    Source:
        Meister et al., 2023, https://arxiv.org/abs/2202.00666.

    Hugging Face:
        `TypicalLogitsWarper(mass, min_tokens_to_keep=...)`, bit for bit.
    """

    mass: PerPrompt
    min_tokens_to_keep: int = 1

    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, mass=OPEN_FRACTION)
        check_fields(self, min_tokens_to_keep=at_least(1))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        log_probs = scores.log_softmax(-1)
        # A banned token has probability 0 and gives NaN, which nansum skips.
        entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
        distance, order = (-log_probs - entropy).abs().sort(-1)
        # Summed in order, most typical first, as in Hugging Face: the same rounding, the same tokens.
        mass = scores.gather(-1, order).softmax(-1).cumsum(-1)
        taken = (mass < for_rows(self.mass, history, scores)).sum(-1, keepdim=True)
        vocab = scores.shape[-1]
        farther = distance > distance.gather(1, taken.clamp(max=vocab - 1))
        protected = torch.arange(vocab, device=scores.device) < self.min_tokens_to_keep
        banned = farther & ~protected
        return scores.masked_fill(banned.scatter(1, order, banned), -torch.inf)
