"""Traces as tables for a terminal."""

import math

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from decodekit.core.trace import Candidate, Trace

# Widths of columns, in cells of the terminal.
_MIN_INPUT = 10
_MIN_CHOICE, _MAX_CHOICE = 11, 18  # " there 12.3%" must fit, and no more than the second is needed


def visible(text: str, keep: str = "") -> str:
    """The text with its control characters as escapes, so that they move no cursor."""
    return "".join(
        letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text
    )


def trace_table(trace: Trace, width: int) -> Table:
    """A line per step and row: the end of the text so far, and the likeliest tokens after it."""
    choices = trace.steps[0].candidates.shape[1] if trace.steps else 1
    numbered = ("Step", "Row") if trace.rows_per_prompt > 1 else ("Step",)
    free = width - sum(len(name) + 1 for name in numbered)
    choice_width = min(max((free - _MIN_INPUT) // choices - 1, _MIN_CHOICE), _MAX_CHOICE)
    input_width = max(free - choices * (choice_width + 1), _MIN_INPUT)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in numbered:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Input", width=input_width, no_wrap=True)
    for rank in range(1, choices + 1):
        table.add_column(f"Choice {rank}", width=choice_width, no_wrap=True)
    for choice in trace:
        numbers = [str(choice.step), str(choice.row)][: len(numbered)]
        cells = [_cell(candidate, trace, choice_width) for candidate in choice.candidates]
        table.add_row(*numbers, Text(_tail(visible(choice.text or ""), input_width)), *cells)
    return table


def _cell(candidate: Candidate, trace: Trace, width: int) -> Text:
    """A token, cut to fit, and its probability at the right edge."""
    percent = f"{math.exp(candidate.log_prob):.1%}"
    end = "<end>" if candidate.token in trace.end_ids else f"<{candidate.token}>"
    token = Text(visible(candidate.text) if candidate.text else end)
    token.truncate(width - len(percent) - 1, overflow="ellipsis", pad=True)
    return token.append(f" {percent}")


def _tail(text: str, width: int) -> str:
    """The end of the text, as much as fits."""
    if cell_len(text) <= width:
        return text
    tail = text[1 - width :]
    while cell_len(tail) > width - 1:  # letters can be two cells wide
        tail = tail[1:]
    return "…" + tail
