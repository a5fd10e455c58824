"""What disks can erase by themselves, as hdparm and nvme-cli tell it and are told to do it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ramdisk_agent import firmware_erase
from ramdisk_agent.device import MIB
from ramdisk_agent.disks import Disk
from ramdisk_agent.work import Failed

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
