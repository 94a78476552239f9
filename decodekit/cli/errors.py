"""Errors of the command line: one line on standard error, and an exit code."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

RUN_FAILED = 1
MISUSED = 2

# The base of all errors that typer finds itself; not all its versions export the name.
_TyperError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])
# typer's messages about a name that does not exist, and the advice that typer appends.
_UNKNOWN = re.compile(
    r"(?P<option>(?<=No such option: )\S+)|(?P<command>(?<=No such command ')[^']*)"
    r"|'(?P<choice>[^']*)' is not one of (?P<choices>.*)"
)
_TYPERS_ADVICE = re.compile(r" \(Possible options: .*\)$|(?<=: )Value error, ")


class UsageError(Exception):
    """A wrong option, or a wrong combination of options."""


class Commands(TyperGroup):
    """A group of commands that reports an error as `decodekit: ...`, without a traceback or a panel."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *others: Any,  # noqa: ANN401, ARG002 - typer's signature; the display of errors is decided here
        **extra: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Run the command that `args` name, and exit."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows "?" for it
            sys.stdout.reconfigure(errors="replace")
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            code = super().main(args, prog_name, **(extra | {"standalone_mode": False}))
        except _TyperError as error:
            _fail(_with_advice(error), MISUSED)
        except UsageError as error:
            _fail(str(error), MISUSED)
        except ValueError as error:  # a DecodekitError, or an error of a processor in a run
            _fail(str(error), RUN_FAILED)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            _fail("out of memory. Ask for fewer tokens, beams or samples, or a smaller model.", RUN_FAILED)
        sys.exit(code or 0)


@contextmanager
def constructing() -> Iterator[None]:
    """Context in which a `ValueError` is a wrong option: nothing has run yet."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def _with_advice(error: typer.BadParameter) -> str:
    """The message of typer's error; for an unknown name, with the name that was probably meant."""
    message = _TYPERS_ADVICE.sub("", error.format_message())
    found = _UNKNOWN.search(message)
    if found is None or error.ctx is None:
        return message
    command, kind = error.ctx.command, cast("str", found.lastgroup)
    if found["choice"] is not None:
        kind, names = "choice", re.findall(r"'([^']*)'", found["choices"])
    elif isinstance(command, TyperGroup) and kind == "command":
        names = list(command.commands)
    else:
        names = [name for parameter in command.get_params(error.ctx) for name in parameter.opts]
    begun = [name for name in names if name.startswith(found[kind])]
    close = begun if len(begun) == 1 else get_close_matches(found[kind], names, n=1)
    program = " ".join(["decodekit", *error.ctx.command_path.split()[1:]])  # as typed in a shell
    return f"{message.rstrip('.')}. " + (f"Did you mean {close[0]!r}?" if close else f"See {program} --help.")


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"decodekit: {' '.join(message.splitlines())}", err=True)
    sys.exit(code)
