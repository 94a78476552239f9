"""Contrastive decoding."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FRACTION, NON_NEGATIVE, POSITIVE
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, weigh
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors._shared.second_model import SecondModelProcessor, check_model
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class ContrastiveGuidance(SecondModelProcessor):
    r"""Prefers plausible tokens that are likelier under the model than under a weaker one.

    $s(v) = \log P(v) - w \log P_A(v)$ on $\{v : P(v) \ge \alpha \max_u P(u)\}$, minus infinity
    elsewhere. The scores are not normalized: a beam's score is their sum. The amateur's cache follows its
    beams. Not capturable: the host runs the amateur's session.

    Args:
        amateur: The weaker model, $P_A$, with the same vocabulary; it reads the same prompts.
        alpha: $\alpha$, the smallest fraction of the largest probability, in [0, 1]; one number, or one per
            prompt. 0 keeps all, 1 is greedy search. Usual value: 0.1.
        weight: $w$, at least 0; one number, or one per prompt. Li et al. use 1. $\beta / (1 + \beta)$ before
            a `Temperature` of $1 / (1 + \beta)$ gives O'Brien & Lewis's $(1 + \beta) \log P - \beta \log
            P_A$.
        temperature: Divides the amateur's logits; above 0; one number, or one per prompt. Usual: 0.5-1.5.

    Raises:
        ValueError: If a number is outside its range.
        TypeError: If `amateur` is not a `Model`.
        DecodekitError: In a run, if the models have different vocabularies.

    Example:
        >>> amateur = dk.testing.MarkovModel([[0.5, 0.4, 0.1]] * 3)
        >>> expert = dk.testing.MarkovModel([[0.5, 0.45, 0.05]] * 3)
        >>> dk.decode(expert, [[0]], dk.Greedy(), ContrastiveGuidance(amateur), max_new_tokens=2).tokens
        tensor([[[1, 1]]])

    Source:
        Li et al., 2023, https://arxiv.org/abs/2210.15097, section 3; O'Brien & Lewis, 2023,
        https://arxiv.org/abs/2309.09117.

    Hugging Face:
        None.
    """

    amateur: Model
    alpha: PerPrompt = 0.1
    weight: PerPrompt = 1.0
    temperature: PerPrompt = 1.0

    def __post_init__(self) -> None:
        check_model("ContrastiveGuidance", "amateur", self.amateur)
        set_per_prompt(self, alpha=FRACTION, weight=NON_NEGATIVE, temperature=POSITIVE)

    @override
    def second_models(self, history: History) -> list[tuple[Model, None]]:
        return [(self.amateur, None)]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        alpha, weight, temperature = (
            for_rows(value, history, scores) for value in (self.alpha, self.weight, self.temperature)
        )
        probs = scores.softmax(-1)
        implausible = probs < alpha * probs.amax(-1, keepdim=True)
        contrast = scores.log_softmax(-1) + weigh(-weight, (logits[0] / temperature).log_softmax(-1))
        return keep_banned(contrast, scores).masked_fill(implausible, -torch.inf)
