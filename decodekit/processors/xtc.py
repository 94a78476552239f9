"""XTC: exclusion of top choices."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.validation import FRACTION, Requirement
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import LogitsProcessor, Scores, check_per_prompt

# Mixed into the seeds, so that a `Sample` with the same seeds draws other numbers.
_SALT = int.from_bytes(b"XTC")


class XTCMemory(NamedTuple):
    """The random stream of every row, its place among the rows of its prompt, and the first new column."""

    streams: Int64[Tensor, " rows"]
    start: Int64[Tensor, ""]


@final
@dataclass(frozen=True)
class XTC(LogitsProcessor):
    r"""At random steps, bans all tokens above a probability threshold except the least likely of them.

    With the given probability, drawn for every row and step, bans $\{v : P(v) \ge \text{threshold}\}$ except
    the least likely of these tokens (of tied ones the lowest id stays). Changes nothing if fewer than two
    tokens reach the threshold. So a threshold above 0.5 has no effect.

    Args:
        threshold: Least probability of a top choice, in [0, 1]; one number, or one per prompt. Usual value:
            0.1.
        probability: Probability of acting at a step, in [0, 1]; one number, or one per prompt. Usual value:
            0.5.
        seeds: Seeds of the draws: a 64-bit integer, or one per prompt. Several samples of a prompt draw
            independently. A prompt's draws depend only on its own seed, so prompts that share one act at the
            same steps.

    Raises:
        ValueError: If `threshold` or `probability` is outside [0, 1], or a seed does not fit 64 bits.

    Example:
        >>> prompts, xtc = ["Once upon a", "The king"], dk.XTC(0.1, 0.5, seeds=[7, 8])
        >>> dk.decode(dk.load(), prompts, dk.Sample(seeds=[7, 8]), xtc, max_new_tokens=4).tokens.shape
        torch.Size([2, 1, 4])

    Source:
        p-e-w, 2024, https://github.com/oobabooga/text-generation-webui/pull/6335.

    Hugging Face:
        None. text-generation-webui does not act if it would ban a line break or an end id; decodekit and
        llama.cpp make no such exception.
    """

    threshold: PerPrompt
    probability: PerPrompt
    seeds: PerPrompt

    batch_independent = True

    def __post_init__(self) -> None:
        seeds = Requirement(lambda seed: type(seed) is int and -(2**63) <= seed < 2**63, "64-bit integers")
        set_per_prompt(self, threshold=FRACTION, probability=FRACTION, seeds=seeds)

    @override
    def init(self, history: History) -> XTCMemory:
        check_per_prompt(self, history)
        return XTCMemory(history.owners.slots, history.position.clone())

    @override
    def apply(self, history: History, scores: Scores, memory: XTCMemory) -> tuple[Scores, XTCMemory]:
        seeds = torch.zeros_like(memory.streams)[:, None] + for_rows(self.seeds, history, memory.streams)
        step = history.position - memory.start
        drawn = rng.uniform(seeds[:, 0] ^ _SALT, memory.streams, step)[:, None]
        acts = drawn < for_rows(self.probability, history, drawn)
        # Banned tokens are no choices, even at a threshold of 0.
        choices = (scores.softmax(-1) >= for_rows(self.threshold, history, scores)) & (scores > -torch.inf)
        spared = torch.where(choices, scores, torch.inf).argmin(-1, keepdim=True)
        excluded = choices & (torch.arange(scores.shape[-1], device=scores.device) != spared)
        return scores.masked_fill(excluded & acts, -torch.inf), memory
