"""Runs of a strategy: the loaded model, its progress bar, and the outcome."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import decodekit as dk
from decodekit.cli.errors import UsageError
from decodekit.core.request import DecodeOptions
from decodekit.core.trace import Trace
from decodekit.models.hf.loading import without_progress_bar


@contextmanager
def loaded_model(model: str | None, device: str, *, silent: bool) -> Iterator[tuple[dk.HFModel, Progress]]:
    """The model, and a progress bar that is shown on a terminal unless `silent`."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=silent or not sys.stderr.isatty(),
    )
    with _quiet(), progress:
        loading = progress.add_task(f"loading {model or 'the bundled model'}", total=None)
        _check_device(device)
        loaded = dk.load(model, device=device)
        progress.remove_task(loading)
        yield loaded, progress


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()  # made there, and read back
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(f"--device {device!r} cannot be used on this machine: {reason}.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without warnings and progress bars of libraries; their settings are restored after it."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), without_progress_bar():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


class Hypothesis(NamedTuple):
    """One continuation: the fields of `Decoded`, of one hypothesis."""

    text: str
    tokens: list[int]
    length: int
    finish_reason: str
    log_prob: float
    score: float
    token_log_probs: list[float]


@dataclass(frozen=True)
class Strategy:
    """A named decoder with its processors, in order."""

    name: str
    decoder: dk.Decoder[Any]
    processors: list[dk.LogitsProcessor]

    def run(self, model: dk.HFModel, prompt: str, options: DecodeOptions, progress: Progress) -> "Outcome":
        """Continue one prompt, with a tick of the progress bar per step."""
        task = progress.add_task(self.name, total=options["max_new_tokens"])
        options = {**options, "on_step": lambda number: progress.update(task, completed=number)}
        start = time.perf_counter()
        decoded = dk.decode(model, prompt, self.decoder, self.processors, **options)
        seconds = time.perf_counter() - start  # decode has read the result from the device
        progress.remove_task(task)
        return Outcome(self, decoded, seconds)


@dataclass(frozen=True)
class Outcome:
    """The result of a strategy, and the time that it took."""

    strategy: Strategy
    decoded: dk.Decoded
    seconds: float

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The prompt's valid hypotheses, best first."""
        decoded, tokens = self.decoded, self.decoded.hypotheses()[0]  # without invalid ones, which stand last
        token_log_probs = zip(decoded.token_log_probs[0].tolist(), tokens, strict=False)
        return [
            Hypothesis(*fields)
            for fields in zip(
                (decoded.texts or [[]])[0],  # the prompt is a string, so there are texts
                tokens,
                map(len, tokens),
                decoded.finish_reason[0],
                decoded.log_prob[0].tolist(),
                decoded.score[0].tolist(),
                [log_probs[: len(ids)] for log_probs, ids in token_log_probs],
                strict=False,
            )
        ]

    def document(self) -> dict[str, Any]:
        """The outcome for JSON."""
        trace = self.decoded.trace
        return {
            "decoder": repr(self.strategy.decoder),
            "processors": [repr(processor) for processor in self.strategy.processors],
            "hypotheses": [hypothesis._asdict() for hypothesis in self.hypotheses],
            "seconds": self.seconds,
        } | ({} if trace is None else {"trace": trace_document(trace)})


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
