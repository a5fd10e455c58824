"""Waiting for the drivers of disks, which load while the network comes up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ramdisk_agent import drivers


@pytest.fixture
def ramdisk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that looks like the ramdisk before its drivers are loaded."""
    (tmp_path / "tools").touch()
    (tmp_path / "block").mkdir()
    monkeypatch.setattr(drivers, "SETTLING", str(tmp_path / "tools"))
    monkeypatch.setattr(drivers, "SETTLED", str(tmp_path / "settled"))
    monkeypatch.setattr(drivers, "_BLOCK", str(tmp_path / "block"))
    monkeypatch.setattr(drivers, "STEADY", 1.0)
    return tmp_path


def test_elsewhere_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the ramdisk, and where the drivers are loaded long since."""
    monkeypatch.setattr(drivers, "SETTLING", "/no/such/file")
    beats: list[int] = []
    drivers.settle(lambda: beats.append(1), seconds=3600)
    assert beats == []


def test_it_waits_until_the_drivers_are_loaded_and_disks_stop_to_appear(ramdisk: Path) -> None:
    """A disk that a controller finds after its driver was loaded is seen too."""
    beats: list[int] = []

    def load() -> None:
        while len(beats) < 2:
            time.sleep(0.01)
        (ramdisk / "block/sda").touch()
        (ramdisk / "settled").touch()
        before = len(beats)
        while len(beats) == before:
            time.sleep(0.01)
        (ramdisk / "block/sdb").touch()

    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    drivers.settle(lambda: beats.append(1))
    loading.join(30)
    assert sorted(p.name for p in (ramdisk / "block").iterdir()) == ["sda", "sdb"] and len(beats) >= 3


def test_it_does_not_wait_for_ever(ramdisk: Path) -> None:
    """A driver that hangs must not keep the machine from appearing; what the beat raises ends it too."""
    drivers.settle(seconds=0.3)

    def over() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        drivers.settle(over)
