"""The options that commands share, and how their values are read."""

import os
from enum import StrEnum
from typing import Annotated

import typer

DECODING = "Decoding"
RUN = "Run and output"


class DecoderName(StrEnum):
    """What --decoder takes."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    BEAM = "beam"


class StopRuleName(StrEnum):
    """What --stop-rule takes."""

    WHEN_FULL = "when-full"
    HEURISTIC = "heuristic"
    PROVED = "proved"


def read_text(value: str) -> str:
    """The argument as text, also where the locale is not the one it was written in."""
    try:
        value.encode()
    except UnicodeEncodeError:  # it holds bytes that Python could not read
        try:
            return os.fsencode(value).decode()
        except UnicodeDecodeError as error:
            raise typer.BadParameter("must be valid UTF-8 text.") from error
    return value


def read_texts(values: list[str]) -> list[str]:
    """The same for several."""
    return [read_text(value) for value in values]


def read_given_texts(values: list[str] | None) -> list[str] | None:
    """The same for an option that may not be given."""
    return None if values is None else read_texts(values)


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT",
        show_default=False,
        callback=read_text,
        help="The text to continue (an empty one starts a new text), or to translate.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="fairytales",
        rich_help_panel=RUN,
        help="fairytales or en-fr, which are bundled; a folder, or a name on the Hugging Face hub: a "
        "language model in safetensors.",
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", rich_help_panel=RUN, help="Where the model runs: cpu, cuda, cuda:1, mps."),
]
AsJson = Annotated[
    bool, typer.Option("--json", rich_help_panel=RUN, help="Print one JSON document and nothing else.")
]
MaxNewTokens = Annotated[
    int, typer.Option(metavar="N", min=1, rich_help_panel=DECODING, help="New tokens at most, at least 1.")
]
