"""The command line: `decodekit generate`, `decodekit compare` and `decodekit score`."""

from importlib.metadata import version
from typing import Annotated

import typer

from decodekit.cli.compare import compare
from decodekit.cli.errors import Commands
from decodekit.cli.generate import generate
from decodekit.cli.score import score

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    suggest_commands=False,  # Commands does, for options and choices as well
)
app.command()(generate)
app.command()(compare)
app.command()(score)


def _print_version(given: bool) -> None:  # noqa: FBT001 - typer's callback for a flag
    if given:
        typer.echo(f"decodekit {version('decodekit')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decoding algorithms for language models.

    The default model is a tiny one that comes with the package; --model takes any other.

    Results go to standard output, everything else to standard error. Exit codes: 0 for a result, 1 if
    the command cannot give a correct one, 2 for a mistake on the command line, 130 after Ctrl-C.
    """
