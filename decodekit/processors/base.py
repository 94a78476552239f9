"""The contract of logits processors."""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History, RowOwners
from decodekit.core.pytrees import Memory
from decodekit.errors import DecodekitError
from decodekit.processors._shared.parameters import EachPrompt, check_one_a_prompt

if TYPE_CHECKING:
    from decodekit.processors.chain import Chain


class LogitsProcessor(ABC):
    """Changes the scores of the next token, from what was said and what it remembers.

    A pair of pure functions: nothing is stored on the object, so that one processor can serve many
    runs, and the loop can make each row's memory follow its row when beams are reordered.

    Contract: does not write to its arguments; treats every row by itself; ignores columns where
    `history.valid` is False; never turns minus infinity into something else.

    Example:
        >>> class AtMostOnce(dk.LogitsProcessor):
        ...     def init(self, history): return torch.zeros(len(history.tokens), 50, dtype=torch.bool)
        ...     def apply(self, history, scores, said):
        ...         last = history.tokens.index_select(1, (history.position - 1).view(1))
        ...         said = said.scatter(1, last, True)
        ...         return scores.masked_fill(said, -torch.inf), said
    """

    capturable: bool = True
    """False only for code that must run on the host, such as a grammar matcher."""

    argmax_invariant: bool = False
    """True where the likeliest token always stays the likeliest, so greedy may skip it."""

    batch_independent: bool = False
    """True where every row is treated by itself, whichever others there are, and `history` says whose it is:
    then prompts can be decoded in several batches, and leave theirs when they are finished."""

    @abstractmethod
    def init(self, history: History) -> Memory:
        """What to remember before the first step; `()` for nothing."""

    @abstractmethod
    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Memory
    ) -> tuple[Float32[Tensor, "rows vocab"], Memory]:
        """The new scores, and what to remember for the next step."""

    def __call__(
        self,
        input_ids: Int64[Tensor, "rows length"],  # noqa: ARG002 - Hugging Face's signature
        scores: Float32[Tensor, "rows vocab"],  # noqa: ARG002
    ) -> Float32[Tensor, "rows vocab"]:
        """Hugging Face's calling convention, which has no place for what a processor remembers.

        Raises:
            DecodekitError: Unless the processor remembers nothing.
        """
        raise DecodekitError(
            f"{type(self).__name__}: inside model.generate a processor must remember nothing, and this one "
            "does. Give generate custom_generate=dk.compat.hf.custom_generate as well: then it works."
        )

    @final
    def __or__(self, other: "LogitsProcessor") -> "Chain":
        """`a | b` is `Chain(a, b)`: first `a`, then `b`."""
        from decodekit.processors.chain import Chain  # noqa: PLC0415 - Chain is a processor itself

        return Chain(self, other)


class StatelessProcessor(LogitsProcessor):
    """A processor that remembers nothing: one method, and it also runs inside Hugging Face.

    Example:
        >>> class Ban(dk.StatelessProcessor):
        ...     def process(self, history, scores):
        ...         return scores.index_fill(1, torch.tensor([0]), -torch.inf)
        >>> Ban()(torch.tensor([[5]]), torch.zeros(1, 3))
        tensor([[-inf, 0., 0.]])

    Hugging Face:
        `model.generate(logits_processor=[TopP(0.9)])` works as it is. Hugging Face hands over no mask,
        so there left padding counts as text.
    """

    @abstractmethod
    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The new scores."""

    @final
    def init(self, history: History) -> Memory:
        """Nothing; parameters given for each prompt must be as many as there are prompts."""
        check_one_a_prompt(self, history)
        return ()

    @final
    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Memory
    ) -> tuple[Float32[Tensor, "rows vocab"], Memory]:
        """`process`, and still nothing to remember."""
        return self.process(history, scores), memory

    @final
    def __call__(
        self, input_ids: Int64[Tensor, "rows length"], scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """Hugging Face's calling convention: every column of `input_ids` counts as text.

        How many prompts there are is not handed over: of parameters that are given for each prompt, as
        many as divide the rows are taken for as many prompts.
        """
        length = torch.full((), input_ids.shape[1], device=input_ids.device)
        valid = torch.ones_like(input_ids, dtype=torch.bool)
        # Parameters for each prompt tell how many rows each has.
        prompts = max((len(v) for v in vars(self).values() if isinstance(v, EachPrompt)), default=len(scores))
        owners = RowOwners.of(len(input_ids), max(len(scores) // prompts, 1), input_ids.device)
        history = History(input_ids, valid, length, owners)
        check_one_a_prompt(self, history)
        return self.process(history, scores)


def seen_tokens(
    tokens: Int64[Tensor, "rows columns"], where: Bool[Tensor, "rows columns"], vocab: int
) -> Bool[Tensor, "rows vocab"]:
    """Which ids stand in `tokens` at the columns picked out by `where`."""
    # A spare last id takes what does not count, so that the shape does not depend on the data.
    ids = torch.where(where & (tokens < vocab), tokens, vocab)
    seen = torch.zeros((len(tokens), vocab + 1), dtype=torch.bool, device=tokens.device)
    return seen.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))[:, :vocab]


def put(
    scores: Float32[Tensor, "rows vocab"],
    ids: Int64[Tensor, "rows columns"],
    where: Bool[Tensor, "rows columns"],
    values: Float32[Tensor, "rows columns"] | float,
) -> Float32[Tensor, "rows vocab"]:
    """The scores with other values at every row's `ids` in the columns picked out by `where`.

    The vocabulary is passed over once, for the copy. Where an id comes twice its values must be equal.
    """
    rows, vocab = scores.shape
    # [rows vocab] -> [rows*vocab + 1]: the spare last place takes what does not count, so that the shape
    # does not depend on the data, and the rest is contiguous.
    flat = scores.new_empty(rows * vocab + 1)
    flat[:-1].view(rows, vocab).copy_(scores)
    first = vocab * torch.arange(rows, device=scores.device)[:, None]
    places = torch.where(where & (ids < vocab), first + ids, rows * vocab).flatten()
    flat.scatter_(0, places, values.flatten() if isinstance(values, Tensor) else values)
    return flat[:-1].view(rows, vocab)


def in_vocab(who: str, scores: Float32[Tensor, "rows vocab"], ids: tuple[int, ...]) -> Int64[Tensor, " ids"]:
    """Constant ids, where the scores are. Raises unless all are below the vocabulary size."""
    vocab = scores.shape[-1]
    if ids and max(ids) >= vocab:
        raise DecodekitError(f"{who}: token ids must be below the vocabulary size {vocab}, got {max(ids)}.")
    return device_ids(ids, scores.device)


def ban(
    who: str, scores: Float32[Tensor, "rows vocab"], ids: tuple[int, ...], when: Tensor | None = None
) -> Float32[Tensor, "rows vocab"]:
    """The scores with minus infinity at `ids`; with `when`, 0-d or `[rows 1]`, only where it holds."""
    columns = in_vocab(who, scores, ids)
    if when is None:
        return scores.index_fill(-1, columns, -torch.inf)
    # Not `where` over the whole vocabulary, which would pass over it twice.
    return scores.index_copy(-1, columns, scores.index_select(-1, columns).masked_fill(when, -torch.inf))


def force(
    who: str, scores: Float32[Tensor, "rows vocab"], ids: tuple[int, ...], when: Tensor
) -> Float32[Tensor, "rows vocab"]:
    """Only `ids` allowed where `when`, 0-d or `[rows 1]`, holds: 0 for them, minus infinity elsewhere."""
    columns = in_vocab(who, scores, ids)
    forced = scores.index_select(-1, columns).masked_fill(when, 0.0)
    return torch.where(when, -torch.inf, scores).index_copy_(-1, columns, forced)


@lru_cache(maxsize=256)
def device_ids(ids: tuple[int, ...], device: torch.device) -> Int64[Tensor, " ids"]:
    """A device's copy of constant ids, made once: a copy a step would stall the device's stream."""
    with torch.inference_mode(mode=False):  # it is kept, and may be used where gradients are taken
        return torch.tensor(ids, dtype=torch.long, device=device)
