"""File systems: made, looked at, grown."""

import os
import uuid
from pathlib import Path

from ramdisk_agent.run import run
from ramdisk_agent.work import Failed

# Made by this ramdisk's tools, read by the kernel and the boot loader of whatever image comes: nothing newer than those of 2018 know.
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed,^orphan_file", "-E", "lazy_itable_init=1,lazy_journal_init=1"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "bigtime=0,inobtcount=0"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "vfat": ["mkfs.vfat"],
    "swap": ["mkswap", "-q", "-f"],
}  # fmt: skip
_LABEL = {"ext4": ("-L", 16), "xfs": ("-L", 12), "btrfs": ("-L", 31), "vfat": ("-n", 11), "swap": ("-L", 15)}
GROWN = ("ext2", "ext3", "ext4", "xfs", "btrfs")


def make(device: str, filesystem: str, label: str) -> None:
    """Make a file system (ext4, xfs, btrfs, vfat) or swap. Raises Failed."""
    option, longest = _LABEL[filesystem]
    text = label[:longest].upper() if filesystem == "vfat" else label[:longest]
    run([*_MAKE[filesystem], option, text, device], timeout=300)


def probe(device: str) -> dict[str, str]:
    """What is on a device: {filesystem, uuid, label, partuuid}, each only where it is known. Nothing known: {}."""
    said = run(["blkid", "-p", "-o", "export", device], check=False)
    pairs = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    names = {"TYPE": "filesystem", "UUID": "uuid", "LABEL": "label", "PART_ENTRY_UUID": "partuuid"}
    # blkid writes a backslash before what a shell would take for its own
    return {names[key]: value.replace("\\", "") for key, value in pairs.items() if key in names}


def size_of(device: str) -> int:
    """Bytes of a block device. Raises Failed."""
    return int(run(["blockdev", "--getsize64", device]))


def grow(device: str, where: str, filesystem: str, limit: int | None = None) -> None:
    """Let the mounted file system take its whole device, or `limit` bytes of it. Raises Failed."""
    if filesystem in ("ext2", "ext3", "ext4"):
        run(["resize2fs", device, *([f"{limit // 1024}K"] if limit else [])], timeout=600)
    elif filesystem == "xfs":
        blocks = ["-D", str(limit // os.statvfs(where).f_bsize)] if limit else ["-d"]
        run(["xfs_growfs", *blocks, where], timeout=600)
    elif filesystem == "btrfs":
        run(["btrfs", "filesystem", "resize", str(limit) if limit else "max", where], timeout=600)
    else:
        raise Failed(f"{device}: a file system of type {filesystem} cannot be grown")


def renew_uuid(device: str, filesystem: str) -> None:
    """Give an unmounted file system a UUID of its own. Raises Failed."""
    fresh = str(uuid.uuid4())
    if filesystem in ("ext2", "ext3", "ext4"):
        run(["e2fsck", "-fp", device], timeout=600, check=False)  # tune2fs wants it checked just now
        run(["tune2fs", "-U", fresh, device], input="y\n", timeout=600)
    elif filesystem == "xfs":
        run(["xfs_admin", "-U", fresh, device], timeout=600)
    elif filesystem == "btrfs":
        run(["btrfstune", "-f", "-U", fresh, device], timeout=600)


def others_with(uuid: str, device: str, sys: Path = Path("/sys")) -> list[str]:
    """Devices besides this one whose file system has the same UUID. Members of arrays and mirrors below `device` are none."""
    said = run(["blkid", "-c", "/dev/null", "-t", f"UUID={uuid}", "-o", "device"], check=False)
    below = _below(Path(device).resolve().name, sys)
    return [name for name in said.split() if Path(name).resolve().name not in below]


def _below(name: str, sys: Path) -> set[str]:
    folder = sys / "class/block" / name / "slaves"
    found = {name}
    for path in folder.iterdir() if folder.is_dir() else ():
        found |= _below(path.name, sys)
    return found
