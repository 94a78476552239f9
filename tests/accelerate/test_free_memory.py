"""Free memory of the machine or its container."""

from pathlib import Path

import pytest

from decodekit.accelerate import free_memory as module
from decodekit.accelerate.free_memory import free_memory


def test_free_memory_is_the_smaller_of_machine_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, limit, usage = (tmp_path / name for name in ("meminfo", "max", "current"))
    machine.write_text("MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable:   500 kB\n")
    monkeypatch.setattr(module, "_MACHINE", machine)
    monkeypatch.setattr(module, "_GROUPS", ((limit, usage),))
    assert free_memory() == 500 * 1024
    usage.write_text("100000\n")
    limit.write_text("max\n")
    assert free_memory() == 500 * 1024
    limit.write_text("300000\n")
    assert free_memory() == 200000
    limit.write_text("50000\n")
    assert free_memory() == 0


def test_a_system_that_reports_no_memory_has_none_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MACHINE", tmp_path / "none")
    monkeypatch.setattr(module, "_GROUPS", ())
    assert free_memory() >= 0
    monkeypatch.delattr(module.os, "sysconf")
    assert free_memory() == 0
