"""Erasing a file that stands for a disk: the ways are tried in their order, and nothing passes that was not verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramdisk_agent import erasing, firmware_erase
from ramdisk_agent.device import MIB, Device
from ramdisk_agent.disks import Disk
from ramdisk_agent.work import Failed
from tests.unit.ramdisk.disk_files import a_disk, blank

pytestmark = pytest.mark.usefixtures("no_firmware")


def erased(disk: Disk, mode: str) -> list[erasing.Record]:
    """The records of a disk that was erased."""
    records: list[erasing.Record] = []
    job = erasing.Erasing(disk, mode, True, records.append)
    job.thread.start()
    job.thread.join()
    assert (job.doing, job.error, job.done) == ("erased", "", job.total)
    return records


def methods(records: list[erasing.Record]) -> list[tuple[str, bool]]:
    return [(record["method"], record["verified"]) for record in records]


def test_quick_is_not_called_more_than_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and last MiB are blank, what lies between is there yet, and the record says so."""
    monkeypatch.setattr(erasing, "run", lambda *_, **__: "")
    disk = a_disk(tmp_path)
    records = erased(disk, "quick")
    text = Path(disk.path).read_bytes()
    assert not any(text[:MIB]) and not any(text[-MIB + 4096 :]) and b"quick brown fox" in text
    assert methods(records) == [("metadata", True)] and "still there" in records[0]["message"]


def test_a_disk_that_lies_is_found_out(
    tmp_path: Path, no_firmware: list[firmware_erase.Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firmware that says 'done' and did nothing, and a discard that is taken and ignored: both are recorded as tried; zeros are written."""
    no_firmware.append(("nvme-format", lambda: None))
    monkeypatch.setattr(erasing, "_discards", lambda disk: True)
    monkeypatch.setattr(Device, "discard", lambda self, at, size: True)
    disk = a_disk(tmp_path)
    records = erased(disk, "auto")
    assert methods(records) == [("nvme-format", False), ("discard", False), ("overwrite", True)]
    assert "still there" in records[0]["message"] and blank(disk)


def test_what_the_disk_does_by_itself(tmp_path: Path, no_firmware: list[firmware_erase.Way]) -> None:
    """Is enough for auto; for full every byte is written besides; a way that fails is left for the next."""

    def broken() -> None:
        raise Failed("nvme failed: Invalid Field")

    def works() -> None:
        Path(disk.path).write_bytes(bytes(disk.size))

    no_firmware += [("nvme-format", broken), ("nvme-crypto-erase", works)]
    disk = a_disk(tmp_path)
    records = erased(disk, "auto")
    assert methods(records) == [("nvme-format", False), ("nvme-crypto-erase", True)]
    disk = a_disk(tmp_path)
    records = erased(disk, "full")
    assert methods(records) == [("nvme-format", False), ("nvme-crypto-erase+overwrite", True)]
