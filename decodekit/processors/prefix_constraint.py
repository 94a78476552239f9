"""Constraint by a function of the tokens so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.validation import is_count, plain, shown
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor, Scores

# From the number of a prompt and the ids of one of its rows to the allowed next ids.
Allowed = Callable[[int, Int64[Tensor, " length"]], Sequence[int] | Int64[Tensor, " ids"]]


@final
@dataclass(frozen=True)
class PrefixConstraint(LogitsProcessor):
    r"""Bans every token that a function of the tokens so far does not allow.

    Keeps $\{v : v \in f(b, y_{<t})\}$ for the prompt with number b. The function is called once per row and
    step, on the host, even for rows that do not affect the result: a finished row with pad ids, a beam
    without an allowed token. For a fixed set of continuations use `TrieConstraint`, which runs on the device.

    Args:
        function: Takes the number of the prompt in its batch and the row's ids, prompt included and padding
            left out, as a tensor on the CPU. Returns the allowed next ids, at least one.

    Raises:
        TypeError: If `function` cannot be called.
        DecodekitError: In a run, if it returns no id, or anything but ids of the vocabulary.

    Example:
        >>> only = PrefixConstraint(lambda prompt, ids: [702, 1896] if len(ids) < 6 else [0])
        >>> dk.decode(dk.load(), "Once upon a time", dk.Greedy(), only, max_new_tokens=9).tokens.shape
        torch.Size([1, 1, 3])

    Source:
        De Cao et al., 2021, https://arxiv.org/abs/2010.00904.

    Hugging Face:
        `generate(prefix_allowed_tokens_fn=function)` and `PrefixConstrainedLogitsProcessor`, bit for bit
        where prompts have no padding. Hugging Face passes padded rows, so a function that counts ids depends
        on the rest of the batch. If other processors have banned every allowed token of all beams of a
        prompt, Hugging Face gives the allowed tokens a score of 0; in decodekit they stay banned, and
        `decode` raises. Hugging Face counts negative ids from the vocabulary's end; decodekit refuses them.
    """

    function: Allowed

    capturable = False  # calls a Python function with the tokens of every row
    batch_independent = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                "PrefixConstraint: function must be callable with a prompt's number and a row's ids, got "
                f"{shown(self.function)}."
            )

    @override
    def init(self, history: History) -> Memory:
        return ()

    @override
    def apply(self, history: History, scores: Scores, memory: Memory) -> tuple[Scores, Memory]:
        rows, vocab = scores.shape
        tokens, valid = history.tokens.cpu(), history.valid.cpu()
        allowed = torch.zeros((rows, vocab), dtype=torch.bool)
        for row, prompt in enumerate(history.owners.prompts.tolist()):
            allowed[row, self._ids(prompt, tokens[row, valid[row]], vocab)] = True
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf), memory

    def _ids(self, prompt: int, tokens: Int64[Tensor, " length"], vocab: int) -> list[int]:
        """Return the checked ids that the function allows."""
        given = self.function(prompt, tokens)
        ids = [plain(token) for token in plain(given)]
        if not ids:
            raise DecodekitError(
                f"PrefixConstraint: the function must allow at least one token, but returned none for prompt "
                f"{prompt} after {shown(tokens.tolist(), 200)}. Return the end ids where the output may end."
            )
        for token in ids:
            if not is_count(token, 0) or token >= vocab:
                raise DecodekitError(
                    f"PrefixConstraint: the function must return ids of the model's {vocab} tokens, but "
                    f"returned {shown(token)} for prompt {prompt}."
                )
        return ids
