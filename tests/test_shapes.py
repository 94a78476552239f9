"""The shapes in the signatures are true."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_shapes_in_signatures_hold_across_arguments_and_a_wrong_one_is_caught() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.shapes"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "TypeCheckError"
