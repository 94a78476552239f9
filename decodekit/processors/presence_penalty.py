"""The presence penalty."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_number
from decodekit.processors._shared.parameters import PerPrompt, check_one_a_prompt, for_rows, per_prompt
from decodekit.processors.base import LogitsProcessor, put


@final
@dataclass(frozen=True)
class PresencePenalty(LogitsProcessor):
    r"""Makes every token that was generated less likely, once, however often it was.

    $s'(v) = s(v) - \text{penalty}$ for every token $v$ that was generated.

    Args:
        penalty: In units of the scores; 0 changes nothing, above 0 discourages repetition, below 0
            encourages it; one number, or one for each prompt. Usual values: 0.1-1; the OpenAI API
            takes -2 to 2.
        prompt: Whether tokens of the prompt count too.

    Raises:
        ValueError: If `penalty` is not a finite float32 number, or `prompt` is not True or False.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon", dk.Greedy(), PresencePenalty(0.5), max_new_tokens=5)
        >>> out.lengths
        tensor([[5]])

    Source:
        OpenAI API, `presence_penalty`, https://platform.openai.com/docs/api-reference/chat/create.

    Hugging Face:
        None. Without `prompt` it is vLLM's `presence_penalty`.
    """

    penalty: PerPrompt
    _: KW_ONLY
    prompt: bool = False

    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt(
            "PresencePenalty",
            "penalty",
            self.penalty,
            lambda penalty: is_number(penalty) and abs(penalty) <= torch.finfo(torch.float32).max,
            "a finite float32 number",
        )
        if type(self.prompt) is not bool:
            raise ValueError(f"PresencePenalty: prompt must be True or False, got {self.prompt!r}.")
        object.__setattr__(self, "penalty", kept)  # a frozen field

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The first column that counts."""
        check_one_a_prompt(self, history)
        return torch.zeros_like(history.position) if self.prompt else history.position.clone()

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Int64[Tensor, ""]
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, less the penalty where a token was generated."""
        columns = torch.arange(history.tokens.shape[1], device=scores.device)
        counted = history.valid & (columns >= memory)
        said = scores.gather(1, torch.where(counted, history.tokens, 0).clamp(max=scores.shape[-1] - 1))
        penalised = said - for_rows(self.penalty, history, scores)
        return put(scores, history.tokens, counted, penalised), memory
