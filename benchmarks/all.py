"""Run every benchmark that can run here, and print the time of each.

    python benchmarks/all.py --pairs fra-eng.zip      # all benchmarks, on the CPU
    python benchmarks/all.py --device cuda
    python benchmarks/all.py --quick                  # small sizes, to test that every script runs

The scripts run one after the other, each in its own process. A skipped script is listed with the reason. A
failed script does not stop the following ones; the exit code is then 1.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from command_line import Device, Note, Quick

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Script:
    """A benchmark.

    Attributes:
        name: File name of the script.
        devices: Devices that it supports.
        needs_pairs: True if it needs the archive of sentence pairs, which must be downloaded.
        runs_in_small: True if it supports `--quick`, without the archive.
    """

    name: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs_pairs: bool = False
    runs_in_small: bool = True


SCRIPTS = (
    Script("against_generate.py"),
    Script("peers.py"),
    Script("where_time_goes.py", ("cpu",)),
    Script("throughput.py"),
    Script("step_without_model.py"),
    Script("processors.py"),
    Script("packed_linear.py", ("cpu",)),
    Script("decoders.py", ("cpu",), needs_pairs=True),
    Script("translation.py", ("cpu",), needs_pairs=True, runs_in_small=False),
)
# Scripts of this folder that are not benchmarks, with the reason.
NOT_RUN = {
    "call_path.py": "counts files, and measures no time",
    "train_fairytales.py": "trains the bundled language model, from texts that must be downloaded",
    "train_en_fr.py": "trains the bundled translation model, from sentences that must be downloaded",
}


def why_not(script: Script, device: str, pairs: Path | None, *, quick: bool) -> str | None:
    """The reason for skipping a script, or None if it runs."""
    if device not in script.devices:
        return f"measures the {' and the '.join(script.devices)} only"
    if script.needs_pairs and pairs is None and not (quick and script.runs_in_small):
        return "needs the archive of sentence pairs, http://www.manythings.org/anki/fra-eng.zip: --pairs"
    return None


def command(
    script: Script, device: str, pairs: Path | None, note: str, *, threads: int | None, folder: Path | None
) -> list[str]:
    """The command line of a script.

    Args:
        script: A script of this folder.
        device: "cpu" or "cuda".
        pairs: The archive of sentence pairs, for scripts that need it.
        note: A note for the JSON file.
        threads: CPU threads; None for the default of the script.
        folder: The folder for the JSON file of a quick run; None for a full run, which writes to the default
            place of the script.
    """
    words = [sys.executable, str(HERE / script.name), "--note", note]
    if script.needs_pairs and pairs is not None:
        words.insert(2, str(pairs))
    if len(script.devices) > 1:
        words += ["--device", device]
    if threads is not None:
        words += ["--threads", str(threads)]
    if folder is not None:
        words += ["--quick", "--out", str(folder / Path(script.name).with_suffix(".json"))]
    return words


def main(
    *,
    device: Device = "cpu",
    only: Annotated[str, typer.Option(help="Run only scripts whose names begin with this.")] = "",
    pairs: Annotated[Path | None, typer.Option(help="The archive of sentence pairs.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads, in place of each script's default.")
    ] = None,
    note: Note = "",
    quick: Quick = False,
) -> None:
    """Run every script, one after the other."""
    folder = Path(tempfile.mkdtemp()) if quick else None
    lines, failed = [], False
    for script in (script for script in SCRIPTS if script.name.startswith(only)):
        reason = why_not(script, device, pairs, quick=quick)
        if reason is not None:
            lines.append(f"{script.name:24} left out: {reason}")
            continue
        words = command(script, device, pairs, note, threads=threads, folder=folder)
        print("$", *words[1:], flush=True)
        start = time.perf_counter()
        code = subprocess.run(words, check=False).returncode  # noqa: S603 - a script of this folder
        seconds = time.perf_counter() - start
        failed |= code != 0
        lines.append(f"{script.name:24} {seconds:7.1f} s" + (f", failed with {code}" if code else ""))
    lines += [f"{name:24} left out: {why}" for name, why in NOT_RUN.items() if name.startswith(only)]
    print("\n".join(lines))
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
