"""A whole-disk image on a larger disk: the partition table is moved to the disk's end, and the last partition takes what is free.

The file system in it is left to the system's own first start (cloud-init's growpart and resizefs, x-systemd.growfs), as every cloud
image does it: the system is up meanwhile, and the machine a second earlier.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramdisk_agent import filesystems, wipe
from ramdisk_agent.disks import node
from ramdisk_agent.log import LOG
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed

# less than this is not worth a table written anew: the disk has the image's own size
LEAST = 8 << 20


@dataclass(frozen=True)
class Grown:
    """The partition that was looked at: its device, whether it was grown, and bytes it has now."""

    device: str
    grown: bool
    size: int
    why: str


def grow(disk: str, root: Mapping[str, Any]) -> Grown:
    """Grow the image's root partition ({number, ...}) if it can be; that it cannot is in the log and no failure."""
    try:
        found = partition(disk, root["number"])
    except Failed as error:
        found = Grown(node(disk, root["number"]), False, 0, str(error))
    LOG.add(f"grow: {found}")
    return found


def partition(disk: str, number: int | None = None) -> Grown:
    """Grow partition `number` of a disk (None: the one that lies last) over the free space behind it, GPT or MBR.

    Nothing mounted may be on the disk. A partition with another behind it is left alone, and told. Raises Failed.
    """
    table = json.loads(run(["sfdisk", "--json", disk]))["partitiontable"]
    total, sector = filesystems.size_of(disk), int(table.get("sectorsize", 512))
    last, number = choose(table, number)
    here = next(p for p in table["partitions"] if number_of(p["node"], disk) == number)
    device, size = node(disk, number), here["size"] * sector
    if not last:
        return Grown(device, False, size, f"partition {number} has others behind it")
    free = total - (here["start"] + here["size"]) * sector
    if free < LEAST:
        return Grown(device, False, size, "the disk has no more room")
    if table["label"] == "gpt":
        run(["sfdisk", "--quiet", "--relocate", "gpt-bak-std", disk])
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "-N", str(number), disk], input=", +\n")
    wipe.reread(disk)
    return Grown(device, True, filesystems.size_of(device), "")


def choose(table: dict[str, Any], number: int | None) -> tuple[bool, int]:
    """(whether it lies last on the disk, its number) of the partition that is to grow, in sfdisk's JSON of a table. Raises Failed."""
    parts = sorted(table.get("partitions", ()), key=lambda part: part["start"])
    # an extended partition (MBR types 5, f, 85) holds the logical ones: growing one of these would mean growing both
    if not parts or any(part["type"].lower() in ("5", "f", "85") for part in parts):
        raise Failed(
            f"{table['device']} has {'logical' if parts else 'no'} partitions after the image was written: nothing can be grown"
        )
    numbers = [number_of(part["node"], table["device"]) for part in parts]
    if number is None:
        number = numbers[-1]
    if number not in numbers:
        raise Failed(
            f"{table['device']} has no partition {number} after the image was written; add the image again"
        )
    return numbers[-1] == number, number


def number_of(node: str, disk: str) -> int:
    """The number of a partition whose device is `node`."""
    return int(node.removeprefix(disk).removeprefix("p"))
