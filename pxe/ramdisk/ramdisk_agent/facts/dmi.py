"""The firmware's own description of the machine: dmidecode's text, or /sys/class/dmi/id where that program is missing.

Types and their fields: DMTF DSP0134 (SMBIOS), section 7. What the maker left empty ("Not Specified") is None; what it filled
with a phrase ("To be filled by O.E.M.") is kept, the daemon decides what that is worth.
"""

import re
from typing import Any

from ramdisk_agent.facts.text import number, read, said

Record = dict[str, str]

_HEAD = re.compile(r"Handle 0x[0-9A-Fa-f]+, DMI type ([0-9]{1,3}), ")
_SIZE = re.compile(r"([0-9]{1,12}) (bytes|kB|KB|MB|GB|TB)")
_MIB = {"bytes": 1 / 2**20, "kB": 1 / 1024, "KB": 1 / 1024, "MB": 1, "GB": 1024, "TB": 1024**2}
# DSP0134 table 17: as dmidecode writes them, for what /sys says as a number
_CHASSIS = {
    "1": "Other", "2": "Unknown", "3": "Desktop", "4": "Low Profile Desktop", "5": "Pizza Box", "6": "Mini Tower", "7": "Tower",
    "8": "Portable", "9": "Laptop", "10": "Notebook", "17": "Main Server Chassis", "23": "Rack Mount Chassis", "25": "Multi-system",
    "28": "Blade", "29": "Blade Enclosing", "33": "IoT Gateway", "34": "Embedded PC", "35": "Mini PC",
}  # fmt: skip
_NO_MODULE = ("no module installed", "not installed", "0", "unknown")


def parse_dmidecode(text: str) -> list[tuple[int, Record]]:
    """(type, fields) of every structure in dmidecode's output, in its order. Lists below a field are left out."""
    records: list[tuple[int, Record]] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            records.append((int(head[1]), {}))
        elif records and line.startswith("\t") and not line.startswith("\t\t"):
            name, colon, value = line.strip().partition(":")
            if colon:
                records[-1][1].setdefault(name.strip(), value.strip())
    return records


def machine(records: list[tuple[int, Record]]) -> dict[str, Any]:
    """vendor, model, serial, uuid, sku, board, chassis, firmware (without mode) and DIMMs out of dmidecode's structures."""

    def first(kind: int) -> Record:
        return next((fields for type_, fields in records if type_ == kind), {})

    bios, system, chassis = first(0), first(1), first(3)
    # a blade has one for the blade and others for what it is plugged into
    boards = [fields for type_, fields in records if type_ == 2]
    board = next(
        (b for b in boards if b.get("Type") in ("Motherboard", "Server Blade")), boards[0] if boards else {}
    )
    dimms = [dimm for type_, fields in records if type_ == 17 and (dimm := _dimm(fields))]
    return {
        "vendor": said(system.get("Manufacturer")),
        "model": said(system.get("Product Name")),
        "serial": said(system.get("Serial Number")),
        "uuid": _lower(said(system.get("UUID"))),
        "sku": _sku(said(system.get("SKU Number"))),
        "board": {
            "vendor": said(board.get("Manufacturer")),
            "model": said(board.get("Product Name")),
            "serial": said(board.get("Serial Number")),
        },
        "chassis": {
            "type": _lower(said(chassis.get("Type"))),
            "serial": said(chassis.get("Serial Number")),
            "asset": said(chassis.get("Asset Tag")),
        },
        "firmware": {
            "vendor": said(bios.get("Vendor")),
            "version": said(bios.get("Version")),
            "date": said(bios.get("Release Date")),
        },
        "dimms": dimms,
        "controller": any(type_ == 38 for type_, _ in records),  # an IPMI interface
        "processors": [
            fields
            for type_, fields in records
            if type_ == 4 and not fields.get("Status", "").startswith("Unpopulated")
        ],
    }


def from_sysfs(root: str = "/sys/class/dmi/id") -> dict[str, Any]:
    """The same as `machine`, without DIMMs, from what the kernel tells of the tables."""

    def field(name: str) -> str | None:
        return said(read(f"{root}/{name}"))

    return {
        "vendor": field("sys_vendor"),
        "model": field("product_name"),
        "serial": field("product_serial"),
        "uuid": _lower(field("product_uuid")),
        "sku": _sku(field("product_sku")),
        "board": {
            "vendor": field("board_vendor"),
            "model": field("board_name"),
            "serial": field("board_serial"),
        },
        "chassis": {
            "type": _lower(said(_CHASSIS.get(read(f"{root}/chassis_type")))),
            "serial": field("chassis_serial"),
            "asset": field("chassis_asset_tag"),
        },
        "firmware": {
            "vendor": field("bios_vendor"),
            "version": field("bios_version"),
            "date": field("bios_date"),
        },
        "dimms": [],
        "controller": False,
        "processors": [],
    }


def gather() -> dict[str, Any]:
    """`machine` of this machine, by dmidecode where the ramdisk and the firmware have it."""
    from ramdisk_agent.run import run

    records = parse_dmidecode(run(["dmidecode"], timeout=20, check=False))
    return machine(records) if records else from_sysfs()


def _dimm(fields: Record) -> dict[str, Any] | None:
    """One module, None for an empty slot. Board flash counts as a device too, but is no memory."""
    size = fields.get("Size", "")
    if size.lower().startswith(_NO_MODULE) or fields.get("Type") == "Flash":
        return None
    found = _SIZE.match(size)
    return {
        "slot": said(fields.get("Locator")),
        "mib": int(int(found[1]) * _MIB[found[2]]) if found else None,
        "type": said(fields.get("Type")),
        "mts": number(fields.get("Speed")),
        "vendor": said(fields.get("Manufacturer")),
        "serial": said(fields.get("Serial Number")),
        "part": said(fields.get("Part Number")),
    }


def _sku(text: str | None) -> str | None:
    """Dell writes SKU=0917;ModelName=PowerEdge R750, and SKU=NotProvided where it has none."""
    dell = re.fullmatch(r"SKU=([^;]*);ModelName=.*", text or "")
    return said(dell[1]) if dell and dell[1] != "NotProvided" else None if dell else text


def _lower(text: str | None) -> str | None:
    return text.lower() if text else None
