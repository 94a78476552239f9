"""Errors that decodekit raises, and errors that it recovers from."""

import torch


class DecodekitError(ValueError):
    """Base of the errors of calls that cannot give a correct result.

    Most messages read `Who: what must hold, what was given. What to do.`
    """


class PromptError(DecodekitError):
    """The prompts cannot be decoded as they are."""


class ModelError(DecodekitError):
    """The model lacks a capability that the call needs."""


class DecodingError(DecodekitError):
    """A run failed: scores were not numbers, or every token was banned."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error reports that there is not enough memory, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The messages of torch on a CPU: under Windows, and everywhere else.
    messages = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
