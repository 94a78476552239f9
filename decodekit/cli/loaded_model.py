"""A loaded model, a quiet transformers and a progress bar."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import decodekit as dk
from decodekit.cli.errors import UsageError
from decodekit.models.hf.loading import without_progress_bar


@contextmanager
def workplace(model: str | None, device: str, *, silent: bool) -> Iterator[tuple[dk.HFModel, Progress]]:
    """The model, loaded, and a progress bar that is shown on a terminal unless `silent`."""
    with _quiet(), _progress(shown=not silent and sys.stderr.isatty()) as progress:
        loading = progress.add_task(f"loading {model or 'the bundled model'}", total=None)
        _check_device(device)
        loaded = dk.load(model, device=device)
        progress.remove_task(loading)
        yield loaded, progress


def name_of(model: str | None) -> str:
    """What `--model` would have to be to get the same model."""
    return str(dk.bundled_path()) if model is None else model


def shown_before(model: dk.HFModel, prompt: str) -> str:
    """The prompt, where texts go on from it; nothing where an encoder reads it, as in translation."""
    return prompt if model.vocabulary.decoder_start_id is None else ""


def _progress(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=not shown,
    )


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()  # made there, and read back
    except (AssertionError, RuntimeError) as error:
        raise UsageError(
            f"--device {device!r} cannot be used on this machine: {_first_line(error)}."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, libraries neither warn nor draw progress bars; after, all is as it was."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), without_progress_bar():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
