"""Erasing several files that stand for disks at once: each try is told, what failed is named, what is to be kept is not touched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import checks, erase, erasing
from ramdisk_agent.client import Client
from ramdisk_agent.device import MIB, Device
from ramdisk_agent.work import Failed, Stopped, Work
from tests.unit.ramdisk.disk_files import a_disk, blank

pytestmark = pytest.mark.usefixtures("no_firmware")


class Told(Client):
    """A client that keeps what it is told."""

    def __init__(self, stop_at: int = 1000) -> None:
        super().__init__("http://127.0.0.1:9")
        self.records: list[dict[str, Any]] = []
        self.reports: list[tuple[int, str, int, int]] = []
        self.stop_at = stop_at
        self.scripts: dict[str, bytes] = {}
        self.tested: list[dict[str, Any]] = []

    def fetch(self, url: str, idle: Any = None) -> bytes:
        return self.scripts[url]

    def test(self, result: dict[str, Any]) -> None:
        self.tested.append(result)

    def erased(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def report(self, id: str, percent: int, text: str, done: int, total: int) -> None:
        if len(self.reports) >= self.stop_at:
            raise Stopped("called off")
        self.reports.append((percent, text, done, total))


def work(told: Told) -> Work:
    return Work({"id": "T1", "action": "erase"}, told)


def methods(told: Told) -> list[tuple[str, bool]]:
    return [(record["method"], record["verified"]) for record in told.records]


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_zeros_are_written_everywhere(tmp_path: Path, mode: str) -> None:
    """To the last byte, on several disks at once, with a record of each."""
    told = Told()
    disks = [a_disk(tmp_path, "sda"), a_disk(tmp_path, "sdb", 8, 512 * 8)]
    erase.erase_all(work(told), disks, disks, mode)
    assert all(blank(disk) and Path(disk.path).stat().st_size == disk.size for disk in disks)
    assert sorted(r["disk"]["serial"] for r in told.records) == ["S-sda", "S-sdb"]
    assert methods(told) == [("overwrite", True)] * 2
    assert {r["id"] for r in told.records} == {"T1"} and all(r["started"] <= r["ended"] for r in told.records)
    assert all(0 <= percent < 100 for percent, *_ in told.reports)


def test_a_disk_that_does_not_take_zeros_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is named, the others are erased, and no record of it is verified."""
    real = Device.write

    def write(self: Device, offset: int, data: memoryview) -> None:
        if not (self.path.endswith("sdb") and offset == 16 * MIB):
            real(self, offset, data)

    monkeypatch.setattr(Device, "write", write)
    told = Told()
    disks = [a_disk(tmp_path, "sda"), a_disk(tmp_path, "sdb", 20)]
    with pytest.raises(Failed, match=r"1 of 2 disks were not erased \(1 were\).*sdb.*MiB 16"):
        erase.erase_all(work(told), disks, disks, "full")
    assert sorted(methods(told)) == [("overwrite", False), ("overwrite", True)]


def test_called_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads end, and nothing is recorded as erased."""
    monkeypatch.setattr(erasing, "CHUNK", 4096)
    told, disk = Told(stop_at=1), a_disk(tmp_path, mib=64)
    with pytest.raises(Stopped):
        erase.erase_all(work(told), [disk], [disk], "full")
    assert not [record for record in told.records if record["verified"]]


def test_kept_disks_and_a_machine_without_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be kept is never touched and is told in the result; no disk at all is a failure that says why."""
    disks = [a_disk(tmp_path, "sda"), a_disk(tmp_path, "sdb")]
    monkeypatch.setattr(erase, "list_disks", lambda: disks)
    monkeypatch.setattr(erase, "stop", lambda gone: None)
    before = Path(disks[1].path).read_bytes()
    told = Told()
    plan = {"id": "T1", "action": "erase", "mode": "auto", "keep": [{"serial": "S-sdb"}]}
    assert erase.action(Work(plan, told)) == {"disks": 1, "kept": [disks[1].path]}
    assert Path(disks[1].path).read_bytes() == before and blank(disks[0])
    monkeypatch.setattr(erase, "list_disks", list)
    with pytest.raises(Failed, match="no fixed disk"):
        erase.action(Work(plan, told))


def test_hardware_tests_come_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They get the disks that are to be erased, which still hold what they held, and no other."""
    script = b'#!/bin/sh\nfor disk in $PROVISIOND_DISKS; do echo "$disk $(head -c 19 "$disk")"; done\n'
    disks = [a_disk(tmp_path, "sda"), a_disk(tmp_path, "sdb")]
    monkeypatch.setattr(erase, "list_disks", lambda: disks)
    monkeypatch.setattr(erase, "stop", lambda gone: None)
    monkeypatch.setattr(checks.run_tests, "__defaults__", (None, str(tmp_path / "tests"), (0, 100)))
    told = Told()
    told.scripts["agent/test/look"] = script
    tests = [{"name": "look", "timeout": 30, "sha256": hashlib.sha256(script).hexdigest()}]
    plan = {"id": "T1", "action": "erase", "mode": "auto", "keep": [{"serial": "S-sdb"}], "tests": tests}
    erase.action(Work(plan, told))
    assert [(r["verdict"], r["output"].strip()) for r in told.tested] == [
        ("pass", f"{disks[0].path} the quick brown fox")
    ]
    assert blank(disks[0])
