"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import decodekit

PACKAGE = Path(decodekit.__file__).parent
ANYTHING = None
# A file's layer is its folder in the package, or its name where it stands at the top.
MAY_IMPORT: dict[str, set[str] | None] = {
    "errors": set(),
    "rng": set(),
    "history": set(),
    "host": set(),
    "recording": {"errors"},
    "tape": {"host", "recording"},
    "cuda_graph": {"recording", "tape"},
    "stepping": {"decoders", "memory", "processors"},
    "capture": {
        *("decoders", "errors", "history", "memory", "model", "processors", "prompt"),
        *("cuda_graph", "recording", "splitting", "stepping"),
    },
    "kernels": set(),
    "memory": set(),
    "splitting": {"memory"},
    "done": set(),
    "arguments": set(),
    "stopping": {"arguments", "errors", "history", "memory", "vocabulary"},
    "limits": {"errors", "history", "memory", "stopping", "vocabulary"},
    "options": {"errors", "limits", "stopping", "vocabulary"},
    "vocabulary": {"errors"},
    "reading": {"errors", "vocabulary"},
    "prompt": {"errors", "history", "reading", "vocabulary"},
    "reveal": {"errors"},
    "model": {"prompt", "reveal", "vocabulary"},
    "verifying": {"model", "prompt"},
    "drafts": {"arguments", "errors", "model", "prompt", "verifying", "vocabulary"},
    "joining": {"errors", "output"},
    "leaving": {"decoders", "done", "history", "joining", "memory", "model", "output", "splitting"},
    "inputs": {"errors", "model", "models", "processors", "vocabulary"},
    "trace": {"prompt", "vocabulary"},
    "output": {"errors", "limits", "prompt", "stopping", "trace", "vocabulary"},
    "processors": {
        *("arguments", "errors", "rng", "history", "host", "memory", "model", "prompt", "vocabulary"),
    },
    "scorers": {
        *("arguments", "errors", "history", "limits", "memory", "reveal"),
        *("model", "prompt", "vocabulary"),  # scorers that look ahead
    },
    "decoders": {
        *("arguments", "errors", "rng", "history", "host", "limits", "memory", "output", "reveal", "scorers"),
        # algorithms with a loop of their own
        *("drafts", "model", "options", "processors", "prompt", "verifying", "vocabulary"),
    },
    "models": {
        "errors",
        "history",
        "kernels",
        "model",
        "prompt",
        "cuda_graph",
        "recording",
        "reveal",
        "vocabulary",
    },
    "loop": {
        *("errors", "limits", "memory", "options", "prompt", "vocabulary", "trace", "output"),
        *("processors", "decoders", "model", "inputs", "joining", "leaving"),
        *("capture", "stepping"),
    },
    "decoding": {
        *("options", "output", "processors", "decoders", "model", "inputs", "loop", "prompt"),
        *("joining", "progress", "waves"),
    },
    "progress": set(),
    "abreast": {"decoders", "leaving", "loop", "model", "models", "output", "prompt", "reveal"},
    "waves": {"abreast", "decoders", "errors", "models", "splitting"},
    "streaming": {
        *("errors", "limits", "options", "vocabulary", "output"),
        *("processors", "decoders", "inputs", "model", "loop"),
    },
    "scoring": {"errors", "prompt", "vocabulary", "output", "model", "inputs"},
    "rerank": {"arguments", "errors", "output", "scoring", "inputs", "model", "prompt", "vocabulary"},
    "loading": {"models"},
    "compat": ANYTHING,
    "testing": ANYTHING,
    "cli": ANYTHING,
    "__init__": ANYTHING,
    "__main__": {"cli"},
}
TOP = {"compat", "testing", "cli"}  # nothing below imports them
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            # `from decodekit import rng` imports a module of the package.
            names = {f"{module}.{alias.name}" for alias in node.names}
            modules |= names if module == "decodekit" else {module}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_the_layers_below_it(path: Path) -> None:
    own = layer(path.relative_to(PACKAGE).parts)
    allowed = MAY_IMPORT[own]
    used = {layer(tuple(name.split("."))[1:]) for name in imported(path) if name.startswith("decodekit.")}
    if allowed is not ANYTHING:
        assert used <= allowed | {own}
    if own not in TOP | {"__init__", "__main__"}:
        assert not used & TOP


def test_every_layer_is_in_the_table() -> None:
    assert {layer(path.relative_to(PACKAGE).parts) for path in FILES} == MAY_IMPORT.keys()


def test_only_models_and_the_way_to_generate_import_transformers_and_only_inside_functions() -> None:
    for path in FILES:
        top_level = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.If)]
        statements = [node for node in top_level if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("'transformers" in ast.dump(node) for node in statements)
        if any(name.split(".")[0] == "transformers" for name in imported(path)):
            assert layer(path.relative_to(PACKAGE).parts) in {"models", "compat"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_concept_of_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_importing_decodekit_is_quick_and_brings_neither_transformers_nor_hypothesis() -> None:
    code = (
        "import sys, time, torch; start = time.process_time(); import decodekit; "
        "spent = time.process_time() - start; unwanted = {'transformers', 'hypothesis', 'pandas', 'typer'}; "
        "print(spent, *unwanted & set(sys.modules))"
    )
    # The least of five: other processes on the machine can only add to it.
    command = [sys.executable, "-c", code]
    runs = [subprocess.check_output(command, text=True).split() for _ in range(5)]  # noqa: S603
    assert [run[1:] for run in runs] == [[]] * 5
    assert min(float(run[0]) for run in runs) <= 0.1
