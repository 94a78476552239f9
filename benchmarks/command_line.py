"""Command line options of several benchmarks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Repeats = Annotated[int, typer.Option(help="Timed runs of each contender.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")]
Note = Annotated[str, typer.Option(help="A note about this run, for the JSON file.")]
Capture = Annotated[bool, typer.Option(help="decodekit replays a captured step.")]
Quick = Annotated[
    bool, typer.Option(help="Small sizes, to test that everything runs; no measurement is kept.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The JSON file. Default: a file in benchmarks/results; parts of other devices are kept."
    ),
]
