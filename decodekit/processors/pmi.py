"""Decoding by pointwise mutual information with the source."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.validation import NON_NEGATIVE, set_fields
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import weigh
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors._shared.second_model import (
    SecondModelProcessor,
    check_model,
    prompts_or_last,
    read_prompts_or_last,
)
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class PMI(SecondModelProcessor):
    r"""Where the model is unsure, subtracts the log-probabilities of a language model without the source.

    $s'(v) = s(v) - \lambda \log P_{LM}(v \mid y_{<t})$ if the entropy of $P(\cdot \mid x, y_{<t})$ is at
    least $\tau$; otherwise nothing changes. $\lambda = 1$ ranks tokens by the pointwise mutual information of
    token and source. The scores are not normalized. Banned tokens stay banned. The second model's cache
    follows its beams. Not capturable: the host runs the second model's session.

    Args:
        model: $P_{LM}$, a language model of the target, with the same vocabulary, or the run's own.
        weight: $\lambda$, at least 0; one number, or one per prompt. Usual values: 0.05-1.
        threshold: $\tau$, nats, at least 0; one number, or one per prompt. 0 always subtracts. Usual value
            for vocabularies of 50,000: 3.5.
        prompts: The second model's prompts: one per prompt or one for all, in any form that `decode` takes.
            None: each prompt's last token.

    Raises:
        ValueError: If `weight` or `threshold` is not a finite number of at least 0, or the second model is an
            encoder-decoder and there are no `prompts`.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if the number of `prompts` is neither 1 nor the batch size, or the models
            have different vocabularies.

    Example:
        >>> model, lm = dk.testing.MarkovModel([[0.6, 0.4]] * 2), dk.testing.MarkovModel([[0.8, 0.2]] * 2)
        >>> dk.decode(model, [[0]], dk.Greedy(), PMI(lm, 1.0, threshold=0.5), max_new_tokens=2).tokens
        tensor([[[1, 1]]])

    Source:
        van der Poel, Cotterell & Meister, 2022, https://arxiv.org/abs/2210.13210, section 3.

    Hugging Face:
        None.
    """

    model: Model
    weight: PerPrompt
    threshold: PerPrompt
    prompts: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_model("PMI", "model", self.model)
        set_per_prompt(self, weight=NON_NEGATIVE, threshold=NON_NEGATIVE)
        set_fields(self, prompts=read_prompts_or_last("PMI", self.model, self.prompts))

    @override
    def second_models(self, history: History) -> list[tuple[Model, Prompt]]:
        return [(self.model, prompts_or_last(self.prompts, history))]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        weight, threshold = (for_rows(value, history, scores) for value in (self.weight, self.threshold))
        entropy = torch.special.entr(scores.softmax(-1)).sum(-1, keepdim=True)
        informative = scores + weigh(-weight, logits[0].log_softmax(-1))
        return torch.where(entropy >= threshold, informative, scores)
