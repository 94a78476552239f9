"""XTC: exclude top choices."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.validation import is_number
from decodekit.processors._shared.parameters import PerPrompt, check_one_a_prompt, for_rows, per_prompt
from decodekit.processors.base import LogitsProcessor

# Mixed into the seeds, so that a `Sample` with the same ones does not draw the same numbers.
_OWN = int.from_bytes(b"XTC")


class XTCMemory(NamedTuple):
    """Where the draws of every row come from.

    Attributes:
        streams: The row's number within its prompt.
        start: The prompt's length in columns.
    """

    streams: Int64[Tensor, " rows"]
    start: Int64[Tensor, ""]


@final
@dataclass(frozen=True)
class XTC(LogitsProcessor):
    r"""Bans the obvious: now and then, every token of at least some probability but the last of them.

    With the given probability, drawn anew for every row and step, bans
    $\{v : P(v) \ge \text{threshold}\}$ except the least likely of them (of tied ones the lowest id
    stays). Where fewer than two tokens reach the threshold nothing happens, so above 0.5 never.

    Args:
        threshold: Probability that makes a token a top choice, in [0, 1]; one number, or one for each
            prompt. Usual value: 0.1.
        probability: How often it acts, in [0, 1]; one number, or one for each prompt. Usual value: 0.5.
        seeds: Where the draws come from: an integer, or one for each prompt. Several samples of a prompt
            draw independently. A prompt's draws depend on its own seed and on nothing else in the batch,
            so prompts that share one act at the same steps.

    Raises:
        ValueError: If `threshold` or `probability` is outside [0, 1], or a seed does not fit 64 bits.

    Example:
        >>> prompts, xtc = ["Once upon a", "The king"], dk.XTC(0.1, 0.5, seeds=[7, 8])
        >>> dk.decode(dk.load(), prompts, dk.Sample(seeds=[7, 8]), xtc, max_new_tokens=4).tokens.shape
        torch.Size([2, 1, 4])

    Source:
        p-e-w, 2024, https://github.com/oobabooga/text-generation-webui/pull/6335.

    Hugging Face:
        None. text-generation-webui does nothing where a line break or an end id would be banned; ours
        and llama.cpp's know no such tokens.
    """

    threshold: PerPrompt
    probability: PerPrompt
    seeds: PerPrompt

    batch_independent = True

    def __post_init__(self) -> None:
        for name in ("threshold", "probability"):
            kept = per_prompt(
                "XTC",
                name,
                getattr(self, name),
                lambda value: is_number(value) and 0 <= value <= 1,
                "in [0, 1]",
            )
            object.__setattr__(self, name, kept)  # a frozen field
        seeds = per_prompt(
            "XTC",
            "seeds",
            self.seeds,
            lambda value: type(value) is int and -(2**63) <= value < 2**63,
            "64-bit integers",
        )
        object.__setattr__(self, "seeds", seeds)

    def init(self, history: History) -> XTCMemory:
        """Every row a stream of its own, and nothing said yet."""
        check_one_a_prompt(self, history)
        return XTCMemory(history.owners.slots, history.position.clone())

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: XTCMemory
    ) -> tuple[Float32[Tensor, "rows vocab"], XTCMemory]:
        """The scores, on some rows without the top choices."""
        seeds = torch.zeros_like(memory.streams)[:, None] + for_rows(self.seeds, history, memory.streams)
        step = history.position - memory.start
        drawn = rng.uniform(seeds[:, 0] ^ _OWN, memory.streams, step)[:, None]
        acts = drawn < for_rows(self.probability, history, drawn)
        # Banned tokens are no choices, not even at a threshold of 0.
        choices = (scores.softmax(-1) >= for_rows(self.threshold, history, scores)) & (scores > -torch.inf)
        least = torch.where(choices, scores, torch.inf).argmin(-1, keepdim=True)
        others = torch.arange(scores.shape[-1], device=scores.device) != least
        return scores.masked_fill(choices & others & acts, -torch.inf), memory
