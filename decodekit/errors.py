"""Errors that decodekit raises, and errors that it recovers from."""

import torch


class DecodekitError(ValueError):
    """Base of every error that says a call cannot give a right answer.

    A message reads `Who: what must hold, what was given. What to do.`
    """


class PromptError(DecodekitError):
    """The prompts cannot be decoded as they are."""


class ModelError(DecodekitError):
    """The model cannot do what the decoder asks of it."""


class DecodingError(DecodekitError):
    """A run went wrong on the way: scores that are not numbers, or no token left to choose."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error reports that there is not enough memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The messages of torch on a CPU: under Windows, and everywhere else.
    messages = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
