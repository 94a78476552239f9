"""Eta truncation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import OPEN_FRACTION, at_least, check_fields
from decodekit.processors._shared.log_probs import probs_and_entropy
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class EtaCutoff(StatelessProcessor):
    r"""Bans every token whose probability is below a cutoff that falls where the model is unsure.

    Keeps $\{v : P(v) \ge \eta\}$ with $\eta = \min(\epsilon, \sqrt{\epsilon}\, e^{-H})$ and $H$ the
    entropy of the next token in nats, and always the likeliest token. Does not change the argmax.

    Args:
        epsilon: The cutoff where the model is sure, strictly between 0 and 1; one number, or one per
            prompt. Usual values: 3e-4 to 4e-3.
        min_tokens_to_keep: Always keeps this many of the likeliest tokens, and any tied with them.

    Raises:
        ValueError: If `epsilon` is not strictly between 0 and 1, or `min_tokens_to_keep` is not an
            integer of at least 1.

    Example:
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> EtaCutoff(0.36)(torch.tensor([[0]]), scores).isfinite()
        tensor([[ True,  True, False]])

    Source:
        Hewitt, Manning & Liang, 2022, https://arxiv.org/abs/2210.15191.

    Hugging Face:
        `EtaLogitsWarper(epsilon, min_tokens_to_keep=...)`, bit for bit. For an infinite score Hugging Face
        raises; decodekit bans nothing.
    """

    epsilon: PerPrompt
    min_tokens_to_keep: int = 1

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, epsilon=OPEN_FRACTION)
        check_fields(self, min_tokens_to_keep=at_least(1))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        probs, (_, entropy) = scores.softmax(-1), probs_and_entropy(scores)
        # Torch computes the root as in Hugging Face, so ties fall equally; the host may round differently.
        epsilon = torch.zeros_like(entropy) + for_rows(self.epsilon, history, scores)
        unlikely = probs < torch.minimum(epsilon, epsilon.sqrt() * (-entropy).exp())
        floor = scores.topk(min(self.min_tokens_to_keep, scores.shape[-1])).values[:, -1:]
        return scores.masked_fill(unlikely & (scores < floor), -torch.inf)
