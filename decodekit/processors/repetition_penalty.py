"""The repetition penalty."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE, at_least
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor, put


@final
@dataclass(frozen=True)
class RepetitionPenalty(StatelessProcessor):
    """Makes every token of the sequence so far less likely, prompt included.

    Divides a positive score by the penalty and multiplies a negative one by it; once, regardless of the
    number of occurrences. Under beam search scores are log-probabilities, so it always multiplies.

    Args:
        penalty: Above 0; 1 changes nothing, above 1 discourages repetition, below 1 encourages it; one
            number, or one per prompt. Usual values: 1.05-1.3.
        prompt_ignore_length: Number of tokens at the beginning that do not count, at least 0; one number, or
            one per prompt. Pass the lengths of the prompts to penalize new tokens only.

    Raises:
        ValueError: If `penalty` is not a finite number above 0, or `prompt_ignore_length` is not an integer
            of at least 0.

    Example:
        >>> RepetitionPenalty(2.0)(torch.tensor([[0, 1]]), torch.tensor([[3.0, -3.0, 3.0]]))
        tensor([[ 1.5000, -6.0000,  3.0000]])

    Source:
        Keskar et al., 2019, https://arxiv.org/abs/1909.05858, section 4.1.

    Hugging Face:
        `RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=...)`, bit for bit. Left padding does
        not count, as in `generate` of transformers 5; the class alone counts it, as `generate` did in 4. So
        `prompt_ignore_length` counts tokens in decodekit, and columns in Hugging Face.
    """

    penalty: PerPrompt
    _: KW_ONLY
    prompt_ignore_length: PerPrompt = 0

    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, penalty=POSITIVE, prompt_ignore_length=at_least(0))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        counted = history.valid
        if self.prompt_ignore_length != 0:
            ignored = for_rows(self.prompt_ignore_length, history, history.tokens)
            counted = counted & (counted.cumsum(-1) > ignored)
        given = scores.gather(1, torch.where(counted, history.tokens, 0).clamp(max=scores.shape[-1] - 1))
        penalty = for_rows(self.penalty, history, scores)
        penalized = torch.where(given < 0, given * penalty, given / penalty)
        return put(scores, history.tokens, counted, penalized)
