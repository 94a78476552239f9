"""The frequency penalty."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_number
from decodekit.processors._shared.parameters import PerPrompt, check_per_prompt, for_rows, per_prompt
from decodekit.processors.base import LogitsProcessor

_LARGEST = torch.finfo(torch.float32).max


@final
@dataclass(frozen=True)
class FrequencyPenalty(LogitsProcessor):
    r"""Makes every token that was generated less likely, the more the oftener it was.

    $s'(v) = s(v) - \text{penalty} \cdot c(v)$, where $c(v)$ is how often the token was generated.

    Args:
        penalty: In units of the scores; 0 changes nothing, above 0 discourages repetition, below 0
            encourages it; one number, or one for each prompt. Usual values: 0.1-1; the OpenAI API
            takes -2 to 2.
        prompt: Whether tokens of the prompt count too.

    Raises:
        ValueError: If `penalty` is not a finite float32 number, or `prompt` is not True or False.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon", dk.Greedy(), FrequencyPenalty(0.5), max_new_tokens=5)
        >>> out.lengths
        tensor([[5]])

    Source:
        OpenAI API, `frequency_penalty`, https://platform.openai.com/docs/api-reference/chat/create.

    Hugging Face:
        None. Without `prompt` it is vLLM's `frequency_penalty`.
    """

    penalty: PerPrompt
    _: KW_ONLY
    prompt: bool = False

    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt(
            "FrequencyPenalty",
            "penalty",
            self.penalty,
            lambda penalty: is_number(penalty) and abs(penalty) <= _LARGEST,
            "a finite float32 number",
        )
        if type(self.prompt) is not bool:
            raise ValueError(f"FrequencyPenalty: prompt must be True or False, got {self.prompt!r}.")
        object.__setattr__(self, "penalty", kept)  # a frozen field

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The first column that counts."""
        check_per_prompt(self, history)
        return torch.zeros_like(history.position) if self.prompt else history.position.clone()

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Int64[Tensor, ""]
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, less the penalty for each time a token was generated."""
        rows, vocab = scores.shape
        columns = torch.arange(history.tokens.shape[1], device=scores.device)
        counted = history.valid & (columns >= memory) & (history.tokens < vocab)
        # A spare last id takes what does not count, so that the shape does not depend on the data.
        ids = torch.where(counted, history.tokens, vocab)
        counts = torch.zeros((rows, vocab + 1), dtype=scores.dtype, device=scores.device)
        counts = counts.scatter_add(1, ids, torch.ones_like(ids, dtype=scores.dtype))[:, :vocab]
        # The largest number stands in for infinity, which would make NaN of an infinite score.
        penalties = (counts * for_rows(self.penalty, history, scores)).clamp(-_LARGEST, _LARGEST)
        return scores - penalties, memory
