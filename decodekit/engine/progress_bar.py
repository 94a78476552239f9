"""A bar that shows how many prompts are finished."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with how many more prompts are finished.
Count = Callable[[int], None]


@contextmanager
def counted(prompts: int, *, shown: bool) -> Iterator[Count]:
    """A bar for so many prompts, on the terminal while it lasts; not shown, it counts for nobody."""
    if not shown:
        yield lambda number: None  # noqa: ARG005
        return
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415 - slow to import

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("prompts", total=prompts)
        yield lambda number: bar.advance(task, number)
