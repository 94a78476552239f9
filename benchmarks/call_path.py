"""The files of decodekit that one call passes through, in the order of the first call.

    python benchmarks/call_path.py            # over the bundled HFModel and over a toy model
    python benchmarks/call_path.py --json

The call is `decode(model, prompt, BeamSearch(5), NoRepeatNGram(2), max_new_tokens=8)`. A file counts if one
of its functions is called. Imports do not count: a first call loads every module, and the bodies of modules
and classes are skipped. The result is the list of files that a reader needs to follow the call.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

import decodekit as dk

PACKAGE = Path(dk.__file__).parent
PROMPT = [[3, 1, 4, 1, 5]]
# Every token can follow every other, with different probabilities.
TOY = dk.testing.MarkovModel([[(1 + (i + j) % 6) / 21 for j in range(6)] for i in range(6)])


def call_over(model: dk.Model) -> Callable[[], object]:
    """The call, with a model."""
    return lambda: dk.decode(model, PROMPT, dk.BeamSearch(5), dk.NoRepeatNGram(2), max_new_tokens=8)


CALLS: dict[str, Callable[[], Callable[[], object]]] = {
    "HFModel": lambda: call_over(dk.load()),
    "MarkovModel": lambda: call_over(TOY),
}


def functions_called(call: Callable[[], object]) -> list[tuple[str, str]]:
    """File and qualified name of the package's functions that a second call runs, in order."""
    call()  # imports modules that are imported at first use, and runs the probes
    called: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code, path = frame.f_code, Path(frame.f_code.co_filename)
        is_body = code.co_name == "<module>" or "__module__" in code.co_names[:2]  # of a module or class
        if event == "call" and not is_body and path.is_relative_to(PACKAGE):
            called.setdefault((path.relative_to(PACKAGE).as_posix(), code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return list(called)


def files_called(call: Callable[[], object]) -> list[str]:
    """The files of these functions."""
    return list(dict.fromkeys(file for file, _ in functions_called(call)))


def main(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the files by model.")] = False
) -> None:
    """Print the files of both calls."""
    found = {name: files_called(make()) for name, make in CALLS.items()}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, files in found.items():
        print(f"{name}: {len(files)} files")
        print(*(f"  {number:2} {file}" for number, file in enumerate(files, 1)), sep="\n")


if __name__ == "__main__":
    typer.run(main)
