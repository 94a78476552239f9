import subprocess
import sys
from pathlib import Path

import pytest
import torch

import decodekit as dk
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


def test_a_decoder_of_users_adjusts_the_scores() -> None:
    out = dk.decode(user_parts.alphabet(), "a", user_parts.Without(2), max_new_tokens=2)
    assert out.texts == [["aa"]]
    expected = dk.score(user_parts.alphabet(), [[1]], [[[1, 1]]]).token_log_probs
    # The log-probabilities are the model's. Single precision.
    torch.testing.assert_close(expected, out.token_log_probs, atol=1e-6, rtol=0)


def test_functions_of_users_pass_typed_options_on() -> None:
    model = user_parts.alphabet()
    assert user_parts.greedy_texts(model, ["a", "x"], max_new_tokens=2, check_every=2) == ["bc", "yz"]
    assert user_parts.greedy_texts_as_finished(model, ["a", "x"], max_new_tokens=2) == {0: "bc", 1: "yz"}
    assert user_parts.greedy_stream(model, "a", max_new_tokens=2, trace=1) == "bc"
    assert user_parts.same_texts(model, "a", max_new_tokens=5, stop="d")
