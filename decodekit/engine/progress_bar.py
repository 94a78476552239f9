"""Progress bar of finished prompts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the number of prompts that have just finished.
Count = Callable[[int], None]


@contextmanager
def counted(prompts: int, *, shown: bool) -> Iterator[Count]:
    """A bar for a number of prompts, on the terminal; without effect if not shown."""
    if not shown:
        yield lambda number: None  # noqa: ARG005
        return
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415 - slow to import

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("prompts", total=prompts)
        yield lambda number: bar.advance(task, number)
