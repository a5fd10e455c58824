"""What is read of the partitions of a disk image, by the real sfdisk, mke2fs and blkid."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from provisiond.media.fetch import MediaError
from provisiond.media.partitions import mark_mounts, read_partitions

MIB = 1 << 20
LINUX, BOOT, ESP = (
    "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    "BC13C2FF-59E6-4262-A352-B275FD6F7172",
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
)


def filesystem(path: Path, mib: int, label: str) -> bytes:
    """The bytes of an ext4 file system."""
    path.write_bytes(b"")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", label, path, f"{mib}M"], check=True)
    return path.read_bytes()


def disk(path: Path, script: str, parts: dict[int, bytes], mib: int = 40) -> Path:
    """A raw disk with a table by sfdisk and bytes at these MiB."""
    with path.open("wb") as file:
        file.truncate(mib * MIB)
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True)
    with path.open("r+b") as file:
        for at, data in parts.items():
            file.seek(at * MIB)
            file.write(data)
    return path


async def test_a_gpt_with_a_boot_of_its_own(tmp_path: Path) -> None:
    """By place, in bytes; numbers as in the table, labels with blanks as they are, / by size where nothing else says."""
    script = f"label: gpt\n3: start=1MiB, size=8MiB, type={BOOT}\n1: start=10MiB, size=20MiB, type={LINUX}, name=system\n"
    root, boot = filesystem(tmp_path / "r", 20, "my data"), filesystem(tmp_path / "b", 8, "b")
    found = await read_partitions(disk(tmp_path / "x y.raw", script, {1: boot, 10: root}))
    assert [(p["number"], p["start"] // MIB, p["size"] // MIB, p["mount"]) for p in found] == [
        (3, 1, 8, "/boot"),
        (1, 10, 20, "/"),
    ]
    assert (found[1]["label"], found[1]["filesystem"], found[1]["name"], found[1]["type"]) == (
        "my data",
        "ext4",
        "system",
        LINUX,
    )
    assert len(found[1]["uuid"]) == len(found[1]["partuuid"]) == 36


async def test_an_mbr(tmp_path: Path) -> None:
    """Types are hexadecimal numbers there."""
    found = await read_partitions(
        disk(tmp_path / "d", "label: dos\nstart=1MiB, type=83\n", {1: filesystem(tmp_path / "r", 20, "r")})
    )
    assert [(p["number"], p["type"], p["filesystem"], p["mount"]) for p in found] == [(1, "83", "ext4", "/")]


async def test_a_file_system_without_a_table(tmp_path: Path) -> None:
    """Partition 0, the whole file; and nothing at all of what is neither."""
    path = tmp_path / "bare"
    filesystem(path, 20, "bare")
    found = await read_partitions(path)
    assert [(p["number"], p["start"], p["size"], p["mount"]) for p in found] == [(0, 0, 20 * MIB, "/")]
    path.write_bytes(bytes(4 * MIB))
    assert await read_partitions(path) == []


async def test_more_partitions_than_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with very many is refused: each means a program to run."""
    monkeypatch.setattr("provisiond.media.partitions.MOST", 1)
    path = disk(tmp_path / "d", "label: gpt\nsize=1MiB\nsize=1MiB\n", {})
    with pytest.raises(MediaError, match="2 partitions"):
        await read_partitions(path)


def part(number: int, **changes: Any) -> dict[str, Any]:
    """A partition with ext4."""
    return {"number": number, "size": number, "type": LINUX, "filesystem": "ext4", "label": None, **changes}


@pytest.mark.parametrize(
    ("parts", "label", "mounts"),
    [
        ([part(1), part(2)], None, [None, "/"]),
        ([part(1, label="cloudimg-rootfs"), part(2)], None, ["/", None]),
        ([part(1, type="4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"), part(2, label="root")], None, ["/", None]),
        ([part(1, label="system"), part(2, label="root")], "system", ["/", None]),
        ([part(1), part(2, label="BOOT")], None, ["/", "/boot"]),
        (
            [part(1, type=ESP, filesystem="vfat"), part(2, filesystem="LVM2_member")],
            None,
            ["/boot/efi", None],
        ),
    ],
)
def test_what_is_mounted_where(
    parts: list[dict[str, Any]], label: str | None, mounts: list[str | None]
) -> None:
    """By the label that was said, by type, by usual labels, by size."""
    assert [p["mount"] for p in mark_mounts(parts, label)] == mounts
