"""Disks: what sysfs tells (ramdisk_agent.disks), and what lsblk knows beside it where the ramdisk has that program."""

import json
import os
import re
from typing import Any

from ramdisk_agent.facts.text import names

_BY_PATH = "/dev/disk/by-path"
# a part of the path in sysfs -> transport, the first that fits: a USB disk hangs on PCI too
_TRANSPORTS = (
    ("/usb", "usb"), ("/nvme", "nvme"), ("/virtio", "virtio"), ("/ata", "sata"), ("/end_device-", "sas"), ("/session", "iscsi"),
    ("/rport-", "fc"), ("/mmc", "mmc"),
)  # fmt: skip
_PAIR = re.compile(r'([A-Z0-9:_%-]+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\x([0-9A-Fa-f]{2})")


def parse_lsblk(text: str) -> list[dict[str, Any]]:
    """Disks in the shape of facts["disks"] out of `lsblk --json -b` (with any columns) or of `lsblk -P -b`; [] for other text.

    Older ones write numbers and flags as text, lists a disk twice that is reached by two paths, and counts loop devices too.
    """
    if text.lstrip().startswith("{"):
        try:
            rows = json.loads(text).get("blockdevices")
        except (ValueError, RecursionError):
            return []
    else:
        rows = [
            {k.lower(): _ESCAPED.sub(lambda x: chr(int(x[1], 16)), v) for k, v in _PAIR.findall(line)}
            for line in text.splitlines()
        ]
    disks: dict[str, dict[str, Any]] = {}
    for row in rows if isinstance(rows, list) else []:
        name = _word(row.get("kname") or row.get("name")) if isinstance(row, dict) else None
        if (
            not name
            or row.get("type", "disk") != "disk"
            or re.match(r"/?(dev/)?(loop|ram|zram|fd|sr)[0-9]", name)
        ):
            continue
        name = name.removeprefix("/dev/")
        disks.setdefault(
            name,
            {
                "name": name,
                "path": _word(row.get("path")) or f"/dev/{name}",
                "model": _word(row.get("model")),
                "serial": _word(row.get("serial")),
                "size": _number(row.get("size")),
                "rotational": _flag(row.get("rota")),
                "wwn": _word(row.get("wwn")),
                "by_id": [],
                "by_path": None,
                "transport": _word(row.get("tran")),
                "removable": _flag(row.get("rm")),
                "read_only": _flag(row.get("ro")),
            },
        )
    return list(disks.values())


def transport(place: str) -> str | None:
    """How a disk is connected, from the real path of its device in sysfs."""
    return next((name for part, name in _TRANSPORTS if part in place), None)


def gather() -> list[dict[str, Any]]:
    """facts["disks"]."""
    from ramdisk_agent.disks import list_disks
    from ramdisk_agent.run import run

    links = _links(_BY_PATH)
    told = {
        d["name"]: d
        for d in parse_lsblk(
            run(
                ["lsblk", "--json", "-b", "-d", "-o", "KNAME,TYPE,MODEL,SERIAL,WWN,TRAN"],
                timeout=20,
                check=False,
            )
        )
    }
    disks = []
    for disk in list_disks(everything=True):
        known = told.get(disk.name, {})
        disks.append(
            {
                "name": disk.name,
                "path": disk.path,
                "model": disk.model or known.get("model"),
                "serial": disk.serial or known.get("serial"),
                "size": disk.size,
                "rotational": disk.rotational,
                "wwn": disk.wwn or known.get("wwn"),
                "by_id": list(disk.by_id),
                "by_path": links.get(disk.name),
                "transport": transport(os.path.realpath(f"/sys/block/{disk.name}/device"))
                or known.get("transport"),
                "removable": disk.removable,
                "read_only": disk.ro,
            }
        )
    return disks


def _links(place: str) -> dict[str, str]:
    """Names of links in a directory by the device that they point to."""
    return {os.path.basename(os.path.realpath(f"{place}/{link}")): link for link in reversed(names(place))}


def _word(value: object) -> str | None:
    return " ".join(value.split()) or None if isinstance(value, str) else None


def _number(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: object) -> bool | None:
    return {"1": True, "0": False, "true": True, "false": False}.get(str(value).lower())
