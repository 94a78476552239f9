"""Text that is safe to show."""


def visible(text: str, keep: str = "") -> str:
    """The text with its control characters as escapes, so that they move no cursor."""
    return "".join(
        letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text
    )
