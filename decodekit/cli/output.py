"""Results on standard output: as text, or as one JSON document."""

import json
import math
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import decodekit as dk
from decodekit.cli.run import Hypothesis
from decodekit.inspect.table import visible

_ENDINGS = {"end": "ended by itself", "length": "cut at --max-new-tokens", "string": "ended at --stop"}


def stdout() -> Console:
    """Standard output; on a terminal with colours and wrapped between words."""
    # A file gets the lines as they are.
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def table(first: str, *numbers: str) -> Table:
    """An empty table of one column of text and some of numbers."""
    empty = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    empty.add_column(first)
    for name in numbers:
        empty.add_column(name, justify="right", no_wrap=True)
    return empty


def continued(model: dk.HFModel, prompt: str, continuation: str) -> Text:
    """The prompt, dimmed, and its continuation, without markup; a translation stands alone."""
    translated = model.vocabulary.decoder_start_id is not None
    before = "" if translated else visible(prompt, keep="\n\t")
    return Text.assemble((before, "dim"), visible(continuation, keep="\n\t"))


def summary(hypothesis: Hypothesis) -> Text:
    """The numbers of a hypothesis, in a line."""
    ending = _ENDINGS[hypothesis.finish_reason]
    score = "" if hypothesis.score == hypothesis.log_prob else f", score {hypothesis.score:.4f}"
    return Text(
        f"log-probability {hypothesis.log_prob:.2f} nats{score}, {hypothesis.length} tokens, {ending}", "dim"
    )


def print_json(prompt: str, model: str | None, device: str, results: dict[str, Any]) -> None:
    """Print the document of a command, in ASCII: right in every encoding of standard output."""
    path = str(dk.bundled_path()) if model is None else model  # the --model that loads the same
    document = {"prompt": prompt, "model": path, "device": device} | results
    typer.echo(json.dumps(_finite(document), allow_nan=False))


def _finite(value: Any) -> Any:  # noqa: ANN401 - a value of JSON
    """The value with null for infinities, which JSON lacks: the score of a banned token is one."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
