"""Erasing on files that stand for disks: the ways are tried in their order, nothing passes that was not verified, each try is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import checks, erase, firmware_erase
from ramdisk_agent.client import Client
from ramdisk_agent.device import MIB, Device
from ramdisk_agent.disks import Disk
from ramdisk_agent.work import Failed, Stopped, Work


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


def a_disk(folder: Path, name: str = "sda", mib: int = 12, odd: int = 4096) -> Disk:
    """A file full of text, no whole number of MiB long."""
    path = folder / name
    path.write_bytes(b"the quick brown fox. " * 49933 * mib)
    with path.open("r+b") as file:
        file.truncate(mib * MIB + odd)
    return Disk(name=name, path=str(path), size=mib * MIB + odd, serial=f"S-{name}")


def work(told: Told) -> Work:
    return Work({"id": "T1", "action": "erase"}, told)


def methods(told: Told) -> list[tuple[str, bool]]:
    return [(record["method"], record["verified"]) for record in told.records]


def blank(disk: Disk) -> bool:
    return not any(Path(disk.path).read_bytes())


@pytest.fixture(autouse=True)
def no_firmware(monkeypatch: pytest.MonkeyPatch) -> list[firmware_erase.Way]:
    """What the disks can do by themselves: nothing, until a test adds to it."""
    found: list[firmware_erase.Way] = []
    monkeypatch.setattr(firmware_erase, "ways", lambda disk, alone, why: iter(found))
    monkeypatch.setattr(erase, "OPEN_TRIES", 1)
    return found


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


def test_quick_is_not_called_more_than_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and last MiB are blank, what lies between is there yet, and the record says so."""
    monkeypatch.setattr(erase, "run", lambda *_, **__: "")
    told, disk = Told(), a_disk(tmp_path)
    erase.erase_all(work(told), [disk], [disk], "quick")
    text = Path(disk.path).read_bytes()
    assert not any(text[:MIB]) and not any(text[-MIB + 4096 :]) and b"quick brown fox" in text
    assert methods(told) == [("metadata", True)] and "still there" in told.records[0]["message"]


def test_a_disk_that_lies_is_found_out(
    tmp_path: Path, no_firmware: list[firmware_erase.Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firmware that says 'done' and did nothing, and a discard that is taken and ignored: both are recorded as tried; zeros are written."""
    no_firmware.append(("nvme-format", lambda: None))
    monkeypatch.setattr(erase, "_discards", lambda disk: True)
    monkeypatch.setattr(Device, "discard", lambda self, at, size: True)
    told, disk = Told(), a_disk(tmp_path)
    erase.erase_all(work(told), [disk], [disk], "auto")
    assert methods(told) == [("nvme-format", False), ("discard", False), ("overwrite", True)]
    assert "still there" in told.records[0]["message"] and blank(disk)


def test_what_the_disk_does_by_itself(tmp_path: Path, no_firmware: list[firmware_erase.Way]) -> None:
    """Is enough for auto; for full every byte is written besides; a way that fails is left for the next."""

    def broken() -> None:
        raise Failed("nvme failed: Invalid Field")

    def works() -> None:
        Path(disk.path).write_bytes(bytes(disk.size))

    no_firmware += [("nvme-format", broken), ("nvme-crypto-erase", works)]
    told, disk = Told(), a_disk(tmp_path)
    erase.erase_all(work(told), [disk], [disk], "auto")
    assert methods(told) == [("nvme-format", False), ("nvme-crypto-erase", True)]
    told, disk = Told(), a_disk(tmp_path)
    erase.erase_all(work(told), [disk], [disk], "full")
    assert methods(told) == [("nvme-format", False), ("nvme-crypto-erase+overwrite", True)]


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
    monkeypatch.setattr(erase, "CHUNK", 4096)
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


# --- what disks can do by themselves ----------------------------------------------------------------------

HDPARM = """
/dev/sda:

ATA device, with non-removable media
	Model Number:       Samsung SSD 860 EVO 500GB
Security:
	Master password revision code = 65534
		supported
	not	enabled
	not	locked
	not	frozen
	not	expired: security count
		supported: enhanced erase
	4min for SECURITY ERASE UNIT. 8min for ENHANCED SECURITY ERASE UNIT.
Logical Unit WWN Device Identifier: 5002538e40a1b2c3
Checksum: correct
"""  # fmt: skip


def test_the_security_section_of_hdparm() -> None:
    """As hdparm 9.65 prints it, in each of the states that matter."""
    free = {"enabled": 0, "locked": 0, "frozen": 0, "enhanced": 1, "minutes": 8}
    assert firmware_erase.read_security(HDPARM) == free
    frozen = HDPARM.replace("not\tfrozen", "\tfrozen")
    assert firmware_erase.read_security(frozen) == {**free, "frozen": 1}
    locked = HDPARM.replace("not\tenabled", "\tenabled").replace("not\tlocked", "\tlocked")
    assert firmware_erase.read_security(locked) == {**free, "enabled": 1, "locked": 1}
    plain = HDPARM.replace("\t\tsupported: enhanced erase\n", "").replace("not\texpired", "not\texpired")
    assert firmware_erase.read_security(plain) == {**free, "enhanced": 0}
    assert firmware_erase.read_security(HDPARM.replace("\t\tsupported\n", "not\tsupported\n")) is None
    assert firmware_erase.read_security("SG_IO: bad/missing sense data") is None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that were run; their answers come from ``ANSWERS``."""
    made: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> str:
        made.append(argv)
        for words, answer in ANSWERS.items():
            if words in " ".join(argv):
                if isinstance(answer, Exception):
                    raise answer
                return str(answer)
        return ""

    ANSWERS.clear()
    monkeypatch.undo()  # the real ways
    monkeypatch.setattr(firmware_erase, "run", run)
    return made


ANSWERS: dict[str, Any] = {}


def ways(disk: Disk, *, alone: bool = True) -> tuple[dict[str, Any], list[str]]:
    why: list[str] = []
    return dict(firmware_erase.ways(disk, alone=alone, why=why)), why


SDA, NVME = Disk("sda", "/dev/sda", MIB), Disk("nvme0n1", "/dev/nvme0n1", MIB)


def test_ata_secure_erase(calls: list[list[str]]) -> None:
    """Enhanced first; the password is taken away again when the erase fails, so that the disk does not lock itself."""
    ANSWERS["-I"] = HDPARM
    found, _ = ways(SDA)
    assert list(found) == ["ata-enhanced-erase", "ata-secure-erase"]
    ANSWERS["--security-erase-enhanced"] = Failed("hdparm failed: Input/output error")
    with pytest.raises(Failed):
        found["ata-enhanced-erase"]()
    assert [c[3] for c in calls[-4:]] == [
        "--security-set-pass", "--security-erase-enhanced", "--security-unlock", "--security-disable"
    ]  # fmt: skip
    ANSWERS["-I"] = HDPARM.replace("not\tfrozen", "\tfrozen")
    assert ways(SDA) == ({}, ["its ATA secure erase is frozen by the machine's firmware"])
    ANSWERS["-I"] = Failed("hdparm failed: HDIO_DRIVE_CMD(identify) failed: Inappropriate ioctl for device")
    assert ways(SDA) == ({}, [])


def test_nvme(calls: list[list[str]]) -> None:
    """What the controller can; nothing that would reach a namespace beside the one that is meant."""
    can = {"oacs": 2, "fna": 4, "sanicap": 0}
    ANSWERS["id-ctrl"] = json.dumps(can)
    assert list(ways(NVME)[0]) == ["nvme-format", "nvme-crypto-erase"]
    assert list(ways(NVME, alone=False)[0]) == ["nvme-format", "nvme-crypto-erase"]
    ways(NVME)[0]["nvme-format"]()
    assert calls[-1][:5] == ["nvme", "format", "/dev/nvme0n1", "--ses=1", "--force"]
    ANSWERS["id-ctrl"] = json.dumps({"oacs": 2, "fna": 3, "sanicap": 3})
    assert ways(NVME, alone=False)[0] == {}
    ANSWERS["id-ctrl"] = json.dumps({"oacs": 0, "fna": 0, "sanicap": 3})
    assert list(ways(NVME)[0]) == ["nvme-sanitize-block"]
    ANSWERS["id-ctrl"] = "not json"
    found, why = ways(NVME)
    assert found == {} and "does not say what it can" in why[0]
    assert firmware_erase.together(NVME, Disk("nvme0n2", "/dev/nvme0n2", MIB))
    assert not firmware_erase.together(NVME, Disk("nvme1n1", "/dev/nvme1n1", MIB))
    assert not firmware_erase.together(SDA, Disk("sdb", "/dev/sdb", MIB))


def test_the_sanitize_log(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked until it is through, in the shapes that versions of nvme-cli give it."""
    assert firmware_erase.sanitize_state('{"sprog": 65535, "sstat": 257}') == 1
    assert firmware_erase.sanitize_state('{"nvme0": {"sprog": 1, "sstat": 2}}') == 2
    assert firmware_erase.sanitize_state('{"sstat": {"status": "(3) Failed"}}') == 3
    monkeypatch.setattr("time.sleep", lambda _: None)
    ANSWERS["id-ctrl"] = json.dumps({"oacs": 0, "fna": 0, "sanicap": 2})
    ANSWERS["sanitize-log"] = '{"sstat": 3}'
    with pytest.raises(Failed, match="its sanitize failed"):
        ways(NVME)[0]["nvme-sanitize-block"]()
    ANSWERS["sanitize-log"] = '{"sstat": 1}'
    ways(NVME)[0]["nvme-sanitize-block"]()
