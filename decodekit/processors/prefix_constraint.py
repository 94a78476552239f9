"""Tokens that a function of the text allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.validation import is_count, plain
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor

# The number of a prompt, and the ids of one of its rows, to the ids that may come next.
Allowed = Callable[[int, Int64[Tensor, " length"]], Sequence[int] | Int64[Tensor, " ids"]]


@final
@dataclass(frozen=True)
class PrefixConstraint(LogitsProcessor):
    r"""Bans every token that a function of the text does not allow.

    Keeps $\{v : v \in f(b, y_{<t})\}$ for the prompt with number b. The function is called once a row and
    step, on the host, and also for rows that are no hypothesis any more: a finished text that goes on
    with pad ids, a beam that every token was banned for. For a fixed set of continuations
    `TrieConstraint` does the same on the device.

    Args:
        function: Takes the number of the prompt in its batch and the row's ids, prompt included and
            padding left out, as a tensor in the host's memory. Returns the ids that may come next, at
            least one.

    Raises:
        TypeError: If `function` cannot be called.
        DecodekitError: In a run, if it returns no id, or something that is not an id of the vocabulary.

    Example:
        >>> only = PrefixConstraint(lambda prompt, ids: [702, 1896] if len(ids) < 6 else [0])
        >>> dk.decode(dk.load(), "Once upon a time", dk.Greedy(), only, max_new_tokens=9).tokens.shape
        torch.Size([1, 1, 3])

    Source:
        De Cao et al., 2021, https://arxiv.org/abs/2010.00904.

    Hugging Face:
        `generate(prefix_allowed_tokens_fn=function)` and `PrefixConstrainedLogitsProcessor`, bit for bit
        where prompts have no padding. Theirs hands over padded rows, so that a function which counts
        ids depends on the rest of the batch. Where for all beams of a prompt every allowed token is
        banned already, theirs brings the allowed ones back with a score of 0; ours leaves them banned, and
        `decode` says that nothing is left. Theirs counts ids below 0 from the vocabulary's end; ours
        refuses them.
    """

    function: Allowed

    capturable = False  # calls a Python function with what the rows say
    batch_independent = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                "PrefixConstraint: function must be callable with a prompt's number and a row's ids, got "
                f"{self.function!r:.80}."
            )

    def init(self, history: History) -> Memory:  # noqa: ARG002 - the contract's signature
        """Nothing: the function sees the whole text."""
        return ()

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Memory
    ) -> tuple[Float32[Tensor, "rows vocab"], Memory]:
        """The scores of the allowed tokens, minus infinity elsewhere."""
        rows, vocab = scores.shape
        tokens, valid = history.tokens.cpu(), history.valid.cpu()
        own = history.owners.prompts
        allowed = torch.zeros((rows, vocab), dtype=torch.bool)
        for row, prompt in enumerate(own.tolist()):
            allowed[row, self._ids(prompt, tokens[row, valid[row]], vocab)] = True
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf), memory

    def _ids(self, prompt: int, text: Int64[Tensor, " length"], vocab: int) -> list[int]:
        """What the function allows after a text."""
        given = self.function(prompt, text)
        ids = [plain(token) for token in plain(given)]
        if not ids:
            raise DecodekitError(
                f"PrefixConstraint: the function must allow some token, and returned none for prompt "
                f"{prompt} after {text.tolist()!r:.200}. Return the end ids where a text may end."
            )
        for token in ids:
            if not is_count(token, 0) or token >= vocab:
                raise DecodekitError(
                    f"PrefixConstraint: the function must return ids of the {vocab} tokens that the model "
                    f"can say, and returned {token!r:.80} for prompt {prompt}."
                )
        return ids
