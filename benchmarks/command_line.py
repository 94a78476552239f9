"""Options that several benchmarks have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Repeats = Annotated[int, typer.Option(help="Timed runs of each contender.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")]
Note = Annotated[str, typer.Option(help="What else is to be said of this run, for the record.")]
Capture = Annotated[bool, typer.Option(help="Whether decodekit replays a captured step.")]
Quick = Annotated[
    bool, typer.Option(help="Small sizes, to see that everything runs: nothing is measured, nor kept.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="The JSON file; default: among the results, other devices' parts of it stay."),
]
