"""What decodekit raises."""


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
