"""Who may import whom: the folder names are the architecture, and an arrow never points up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import decodekit

PACKAGE = Path(decodekit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LOOSE = {"__init__", "__main__", "errors", "rng"}  # the modules that stand in no folder
# Each folder, with the folders whose files it may import; every file may import `errors` and `rng`.
BELOW_DECODERS = ["core", "models", "processors", "stopping", "scorers"]
BELOW_ENGINE = [*BELOW_DECODERS, "decoders", "accelerate", "models/hf"]
MAY_IMPORT = {
    "core": [],
    "accelerate": ["core"],
    "models": ["core"],  # the protocols
    "models/hf": ["core", "accelerate", "models"],
    "processors": ["core", "models"],
    "stopping": ["core", "models"],
    "scorers": ["core", "models"],
    "decoders": BELOW_DECODERS,
    "engine": BELOW_ENGINE,
    "inspect": [*BELOW_ENGINE, "engine"],
    "rerank": [*BELOW_ENGINE, "engine"],
    "compat": [*BELOW_ENGINE, "engine", "rerank"],
    "testing": [*BELOW_ENGINE, "engine", "rerank"],
    "cli": [*BELOW_ENGINE, "engine", "inspect", "rerank", "compat"],
}


def folder_of(path: str) -> str:
    """The folder of the table that a file stands in; its own name for a loose file."""
    folder = max((name for name in MAY_IMPORT if path.startswith(f"{name}/")), key=len, default="")
    return folder or path.split("/", maxsplit=1)[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The files of the package that a file imports, anywhere in it."""
    files: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "decodekit":
            for name in [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]:
                module = PACKAGE.joinpath(*name.split(".")[1:])
                is_package = (module / "__init__.py").exists()
                if module.with_suffix(".py").exists() or (is_package and module != PACKAGE):
                    files.add(str(module.relative_to(PACKAGE)) + ("/__init__.py" if is_package else ".py"))
                    break
    return files


IMPORTS = {str(path.relative_to(PACKAGE)): imported(path) for path in FILES}


@pytest.mark.parametrize("path", IMPORTS)
def test_an_arrow_never_points_up(path: str) -> None:
    own = folder_of(path)
    if own not in {"__init__", "__main__"}:
        allowed = {own, "errors", "rng", *MAY_IMPORT.get(own, [])}
        assert {name for name in IMPORTS[path] if folder_of(name) not in allowed} == set()


def test_only_a_few_modules_stand_in_no_folder() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE
    assert {folder_of(path) for path in IMPORTS} <= LOOSE | MAY_IMPORT.keys()


def test_no_file_imports_itself_in_a_circle() -> None:
    remaining = dict(IMPORTS)
    while free := {path for path, files in remaining.items() if not files & remaining.keys()}:
        remaining = {path: files for path, files in remaining.items() if path not in free}
    assert remaining == {}


def test_only_models_hf_and_compat_import_transformers_and_only_inside_functions() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        using = [node for node in statements if "'transformers" in ast.dump(node)]
        if using:
            assert folder_of(str(path.relative_to(PACKAGE))) in {"models/hf", "compat"}
        checked = [part for node in tree.body if isinstance(node, ast.If) for part in ast.walk(node)]
        assert not [node for node in using if node in tree.body and node not in checked]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_concept_of_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.slow
def test_importing_decodekit_imports_few_modules_and_neither_transformers_nor_hypothesis() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import decodekit; new = set(sys.modules) - before; "
        "unwanted = {'transformers', 'hypothesis', 'pandas', 'typer'}; print(len(new), *unwanted & new)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).split()  # noqa: S603
    number, *unwanted = printed
    assert unwanted == []
    assert int(number) <= 20
