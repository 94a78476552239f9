"""The presence penalty."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FINITE, FLAG, check_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Column, NewTokenProcessor, Scores, put


@final
@dataclass(frozen=True)
class PresencePenalty(NewTokenProcessor):
    r"""Makes every generated token less likely, by the same amount for any number of occurrences.

    $s'(v) = s(v) - \text{penalty}$ for every generated token $v$.

    Args:
        penalty: In units of the scores; 0 changes nothing, above 0 discourages repetition, below 0 encourages
            it; one number, or one per prompt. Usual values: 0.1-1; the OpenAI API takes -2 to 2.
        include_prompt: True to count the prompt's tokens too.

    Raises:
        ValueError: If `penalty` is not a finite float32 number, or `include_prompt` is not True or False.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon", dk.Greedy(), PresencePenalty(0.5), max_new_tokens=5)
        >>> out.lengths
        tensor([[5]])

    Source:
        OpenAI API, `presence_penalty`, https://platform.openai.com/docs/api-reference/chat/create.

    Hugging Face:
        None. Without `include_prompt` it is vLLM's `presence_penalty`.
    """

    penalty: PerPrompt
    _: KW_ONLY
    include_prompt: bool = False

    def __post_init__(self) -> None:
        set_per_prompt(self, penalty=FINITE._replace(words="a finite float32 number"))
        check_fields(self, include_prompt=FLAG)

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        columns = torch.arange(history.tokens.shape[1], device=scores.device)
        counted = history.valid & (columns >= (0 if self.include_prompt else first_new))
        ids = torch.where(counted, history.tokens, 0).clamp(max=scores.shape[-1] - 1)
        penalized = scores.gather(1, ids) - for_rows(self.penalty, history, scores)
        return put(scores, history.tokens, counted, penalized)
