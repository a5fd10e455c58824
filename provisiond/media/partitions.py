"""What is where in a disk image: its partition table and the file systems in it, read once when the image is added.

Nothing of the image is mounted: sfdisk and blkid read tables and superblocks of a file, with bounded memory and time.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provisiond.media.fetch import MediaError
from provisiond.media.programs import run

_LIMIT = ("prlimit", "--as=1073741824", "--cpu=20", "--")
MOST = 128  # entries that a usual GPT has room for
ROOTS = ("ext4", "ext3", "xfs", "btrfs")
# UEFI 2.10, 5.3.3; UAPI group, Discoverable Partitions Specification: root of x86-64 and of arm64, XBOOTLDR
_ESP = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EF")
_ROOT = ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE")
_BOOT = ("BC13C2FF-59E6-4262-A352-B275FD6F7172",)
_ROOT_LABELS = ("root", "cloudimg-rootfs", "rootfs", "fedora", "/")


async def read_partitions(raw: Path, root_label: str | None = None) -> list[dict[str, Any]]:
    """The partitions of a raw disk image by their place on it, for Image.partitions and the plan of the ramdisk.

    Each is {number, start, size (bytes), type (GUID of a GPT, hexadecimal of an MBR), name, partuuid, filesystem, label, uuid, mount}.
    ``mount`` is /, /boot or /boot/efi where that is clear, else None; ``root_label`` names the file system of / where it is not. An
    image that is one file system without a table is one partition of number 0. [] for what has neither. Raises MediaError.
    """
    status, out, said = await run(*_LIMIT, "sfdisk", "--json", str(raw))
    if status != 0:
        size = raw.stat().st_size
        found = {
            "number": 0,
            "start": 0,
            "size": size,
            "type": None,
            "name": None,
            "partuuid": None,
            **await _probe(raw, 0, size),
        }
        return mark_mounts([found], root_label) if found["filesystem"] else []
    try:
        table = json.loads(out)["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        rows = table.get("partitions", [])
        if len(rows) > MOST:
            raise MediaError(f"the image has {len(rows)} partitions; up to {MOST} are taken")
        parts = []
        for row in sorted(rows, key=lambda row: int(row["start"])):
            start, size = int(row["start"]) * sector, int(row["size"]) * sector
            parts.append(
                {
                    "number": int(str(row["node"]).removeprefix(str(raw)).lstrip("p")),
                    "start": start,
                    "size": size,
                    "type": str(row["type"]).upper(),
                    "name": row.get("name"),
                    "partuuid": row.get("uuid"),
                    **await _probe(raw, start, size),
                }
            )
    except (ValueError, KeyError, TypeError) as error:
        raise MediaError(
            f"sfdisk does not tell the image's partitions: {said.decode(errors='replace')[:200]}"
        ) from error
    return mark_mounts(parts, root_label)


async def _probe(raw: Path, start: int, size: int) -> dict[str, str | None]:
    """blkid(8) in its low-level form; exit 2 says that nothing is known there."""
    words = ("blkid", "--probe", "--output", "export", "--usages", "filesystem,raid,crypto,other")
    _, out, _ = await run(*_LIMIT, *words, "--offset", str(start), "--size", str(size), str(raw))
    values = dict(line.split("=", 1) for line in out.decode(errors="replace").splitlines() if "=" in line)
    names = {"filesystem": "TYPE", "label": "LABEL", "uuid": "UUID"}
    return {ours: _plain(values[theirs]) if theirs in values else None for ours, theirs in names.items()}


def _plain(value: str) -> str | None:
    """blkid writes values so that a shell reads them back."""
    try:
        return "".join(shlex.split(value))[:256] or None
    except ValueError:
        return value[:256]


def mark_mounts(parts: Sequence[dict[str, Any]], root_label: str | None = None) -> list[dict[str, Any]]:
    """The same with ``mount``: by the partition's type, by usual labels, and / else by size, as the largest file system."""

    def mount(part: dict[str, Any]) -> str | None:
        if part["type"] in _ESP:
            return "/boot/efi"
        if part["filesystem"] in ROOTS and (part["type"] in _BOOT or str(part["label"]).lower() == "boot"):
            return "/boot"
        return None

    marked = [{**part, "mount": mount(part)} for part in parts]
    roots = [part for part in marked if part["filesystem"] in ROOTS and part["mount"] is None]
    ways = (
        [part for part in roots if root_label and part["label"] == root_label],
        [part for part in roots if part["type"] in _ROOT],
        [part for part in roots if str(part["label"]).lower() in _ROOT_LABELS],
        sorted(roots, key=lambda part: -int(part["size"]))[:1],
    )
    root = next((way[0] for way in ways if way), None)
    if root is not None:
        root["mount"] = "/"
    return marked
