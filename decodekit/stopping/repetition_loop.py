"""Stop at repeated blocks of tokens."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import at_least, check_fields


@final
@dataclass(frozen=True)
class RepetitionLoop(StoppingCriterion):
    r"""Finishes a hypothesis when its new tokens end in one block, repeated several times in a row.

    Holds if for some period $1 \le q \le$ `longest` the last $q \cdot$ `times` new tokens are one block
    of $q$ tokens, repeated `times` times.

    Args:
        times: Occurrences in a row, at least 2. Usual values: 3-5.
        longest: Longest block, in tokens, at least 1.

    Raises:
        ValueError: If either is out of range.

    Example:
        >>> model = dk.testing.MarkovModel([[0.1, 0.9], [0.9, 0.1]])  # emits 1, 0, 1, 0, ...
        >>> out = dk.decode(model, [[0]], dk.Greedy(), stop=RepetitionLoop(3), max_new_tokens=99)
        >>> out.hypotheses(), out.finish_reason
        ([[[1, 0, 1, 0, 1, 0]]], [['loop']])

    Source:
        Holtzman et al., 2020, https://arxiv.org/abs/1904.09751, section 3, describe the loops.

    Hugging Face:
        None.
    """

    times: int = 3
    longest: int = 32

    reason: ClassVar[str] = "loop"
    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, times=at_least(2), longest=at_least(1))

    @override
    def init(self, history: History, run: StoppingContext) -> Int64[Tensor, ""]:
        return history.position.clone()

    @override
    def apply(
        self, history: History, log_probs: LogProbs, memory: Int64[Tensor, ""]
    ) -> tuple[Finished, Int64[Tensor, ""]]:
        device = log_probs.device
        periods = torch.arange(1, self.longest + 1, device=device)
        offsets = torch.arange(self.longest * (self.times - 1), device=device)
        # The token at each offset from the end, and the one a period before it: [periods offsets]
        columns = history.position - 1 - offsets
        earlier = columns - periods[:, None]
        is_new = earlier >= memory
        # A finished run may go on past the last column; its tokens there do not count.
        last = history.tokens.shape[1] - 1
        recent = history.tokens.index_select(1, columns.clamp(0, last))
        before = history.tokens.index_select(1, earlier.clamp(0, last).flatten())
        before = before.view(-1, len(periods), len(offsets))
        compared = offsets < periods[:, None] * (self.times - 1)  # offsets within the repeated block
        loops = ((recent[:, None] == before) & is_new) | ~compared
        return loops.all(-1).any(-1), memory
