"""Options that commands share: their values and their documentation."""

import inspect
import os
import re
from typing import Annotated, Any

import typer

from decodekit.core.request import DecodeOptions, EachOptions, RunOptions, StreamOptions

# Panels of the help pages.
DECODING = "Decoding"
DECODE_OPTIONS = "Options of dk.decode"  # each a key of DecodeOptions
OUTPUT = "Model and output"

CHOICES = 5  # --trace

_DOCUMENTATION = "\n".join(
    inspect.cleandoc(options.__doc__ or "")
    for options in (RunOptions, StreamOptions, EachOptions, DecodeOptions)
)


def documented(option: str, more: str = "") -> str:
    """The help of an option of `dk.decode`: the first clause of its entry in `DecodeOptions`, and more.

    Raises:
        KeyError: If `DecodeOptions` has no such option.
    """
    if option not in DecodeOptions.__annotations__:
        raise KeyError(option)
    entry = re.search(rf"^ +{option}: (.+?)[.:;](?:\s|\Z)", _DOCUMENTATION, flags=re.MULTILINE | re.DOTALL)
    clause = f"{' '.join(entry[1].split())}. " if entry else ""  # python -OO has no docstrings
    return (clause + more).strip()


def option(panel: str, metavar: str, text: str, least: int | None = None) -> Any:  # noqa: ANN401 - typer's object
    """An option with its panel, the name of its value, its help, and the least value."""
    return typer.Option(metavar=metavar, rich_help_panel=panel, help=text, min=least)


def read_text(value: str) -> str:
    """The argument as text, even if the encoding of the locale differs from that of the shell."""
    try:
        value.encode()
    except UnicodeEncodeError:  # it holds bytes that Python could not read
        try:
            return os.fsencode(value).decode()
        except UnicodeDecodeError as error:
            raise typer.BadParameter("must be valid UTF-8 text.") from error
    return value


def read_texts(values: list[str] | None) -> list[str] | None:
    """The arguments as texts, if there are any."""
    return None if values is None else [read_text(value) for value in values]


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT",
        show_default=False,
        callback=read_text,
        help="The text to continue (an empty one starts a new text), or to translate.",
    ),
]
MaxNewTokens = Annotated[int, option(DECODE_OPTIONS, "N", documented("max_new_tokens"), least=1)]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        rich_help_panel=DECODE_OPTIONS,
        callback=read_texts,
        help=documented("stop", "Here a text: a hypothesis ends before it. Can be given several times."),
    ),
]
Trace = Annotated[
    bool,
    typer.Option(
        "--trace",
        rich_help_panel=DECODE_OPTIONS,
        help=documented("trace", f"Here {CHOICES}, printed with the model's probabilities."),
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="fairytales",
        rich_help_panel=OUTPUT,
        help="fairytales or en-fr, which are bundled; smollm2, if it is installed; or a language "
        "model in safetensors or GGUF: a folder, a file, or a name on the Hugging Face hub.",
    ),
]
Device = Annotated[str, option(OUTPUT, "NAME", "The device of the model: cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON document and nothing else.")
]
