"""Free memory: that of the machine, or of a container with a lower limit."""

from pathlib import Path

import pytest

from decodekit.accelerate import free_memory


def test_the_narrowest_limit_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, limit, usage = (tmp_path / name for name in ("meminfo", "max", "current"))
    machine.write_text("MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable:   500 kB\n")
    monkeypatch.setattr(free_memory, "_MACHINE", machine)
    monkeypatch.setattr(free_memory, "_GROUPS", ((limit, usage),))
    assert free_memory.memory_left() == 500 * 1024
    usage.write_text("100000\n")
    limit.write_text("max\n")
    assert free_memory.memory_left() == 500 * 1024
    limit.write_text("300000\n")
    assert free_memory.memory_left() == 200000
    limit.write_text("50000\n")
    assert free_memory.memory_left() == 0


def test_a_system_that_reports_nothing_has_no_memory_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_MACHINE", tmp_path / "none")
    monkeypatch.setattr(free_memory, "_GROUPS", ())
    assert free_memory.memory_left() >= 0
    monkeypatch.delattr(free_memory.os, "sysconf")
    assert free_memory.memory_left() == 0
