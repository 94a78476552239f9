"""A trace as the notebook's table, and for JSON."""

import math
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from decodekit.cli.printable import visible
from decodekit.core.trace import Candidate, Trace

CHOICES = 5
_INPUT_WIDTH = 10  # of the input's end, at least
_CHOICE_WIDTHS = 11, 18  # at least " there 12.3%"; more than the second is not needed


def trace_document(trace: Trace) -> list[dict[str, Any]]:
    """Every row of every step, for JSON."""
    return [
        {
            "step": choice.step,
            "row": choice.row,
            "input": choice.text,
            "tokens": choice.tokens,
            "candidates": [
                {**candidate._asdict(), "probability": math.exp(candidate.log_prob)}
                for candidate in choice.candidates
            ],
        }
        for choice in trace
    ]


def trace_table(trace: Trace, width: int) -> Table:
    """A line a step and row: the end of the text so far, and the likeliest tokens after it."""
    rows = trace.rows_per_prompt > 1
    fixed = len("Step ") + rows * len("Row ") + _INPUT_WIDTH
    least, most = _CHOICE_WIDTHS
    choice_width = min(max((width - fixed) // CHOICES - 1, least), most)
    input_width = max(width - fixed + _INPUT_WIDTH - CHOICES * (choice_width + 1), _INPUT_WIDTH)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("Step", "Row") if rows else ("Step",):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Input", width=input_width, no_wrap=True)
    for rank in range(1, CHOICES + 1):
        table.add_column(f"Choice {rank}", width=choice_width, no_wrap=True)
    for choice in trace:
        numbers = [str(choice.step), str(choice.row)] if rows else [str(choice.step)]
        cells = [_cell(candidate, trace, choice_width) for candidate in choice.candidates]
        table.add_row(*numbers, Text(_tail(visible(choice.text or ""), input_width)), *cells)
    return table


def _cell(candidate: Candidate, trace: Trace, width: int) -> Text:
    """A token, cut if it must be, and its probability at the right edge of the width."""
    percent = f"{math.exp(candidate.log_prob):.1%}"
    end = "<end>" if candidate.token in trace.end_ids else f"<{candidate.token}>"
    token = Text(visible(candidate.text) if candidate.text else end)
    token.truncate(width - len(percent) - 1, overflow="ellipsis", pad=True)
    return token.append(f" {percent}")


def _tail(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    tail = text[1 - width :]
    while cell_len(tail) > width - 1:  # letters can be two cells wide
        tail = tail[1:]
    return "…" + tail
