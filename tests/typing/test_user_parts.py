import subprocess
import sys
from pathlib import Path

import pytest

from tests.typing import user_parts

ROOT = Path(__file__).parents[2]


def mypy(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mypy", "--strict", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.mark.slow
def test_parts_written_by_users_pass_mypy_strict(tmp_path: Path) -> None:
    checked = mypy(Path(user_parts.__file__))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import decodekit as dk\n\n\n"
        "class Wrong(dk.StatelessProcessor):\n"
        "    def process(self, history: dk.History, scores: int) -> int:\n"
        "        return scores\n"
    )
    assert 'incompatible with supertype "decodekit.processors.base.StatelessProcessor"' in mypy(wrong).stdout


def test_parts_written_by_users_decode() -> None:
    searched, branched, second = user_parts.decode_with_all()
    assert searched.texts == [["bcd"]]
    assert branched.texts == [["bcd", "abc"], ["cde", "bcd"]]
    assert second.texts == [["aaa"]]
