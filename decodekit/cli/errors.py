"""What went wrong, in one line on standard error and an exit code."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

RUN_FAILED = 1
MISUSED = 2

# What every mistake that typer itself finds derives from; not all its versions export the name.
_TyperMistake = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


class UsageError(Exception):
    """Options that are wrong, each or together."""


class PlainMistakes(TyperGroup):
    """A group of commands that reports a mistake as `decodekit: ...`, without a traceback or a panel."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *others: Any,  # noqa: ANN401, ARG002 - typer's signature; how mistakes are shown is decided here
        **extra: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Runs the command that `args` name, and exits."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows "?" for it
            sys.stdout.reconfigure(errors="replace")
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            code = super().main(args, prog_name, **(extra | {"standalone_mode": False}))
        except _TyperMistake as mistake:
            _fail(mistake.format_message(), MISUSED)
        except UsageError as mistake:
            _fail(str(mistake), MISUSED)
        except ValueError as error:  # DecodekitError and what processors raise in a run
            _fail(str(error), RUN_FAILED)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            _fail("out of memory. Ask for fewer tokens, beams or samples, or a smaller model.", RUN_FAILED)
        sys.exit(code or 0)


@contextmanager
def constructing() -> Iterator[None]:
    """Inside, a value that a constructor refuses is the user's: nothing has run yet."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"decodekit: {' '.join(message.splitlines())}", err=True)
    sys.exit(code)
