"""The fixed disks of this machine as sysfs tells them, and the one among them that a selector means.

Names below /dev/disk/by-id are worked out by the rules that udev has for them (systemd, rules.d/60-persistent-storage.rules),
since the ramdisk has no udev; where links are there, they count too.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramdisk_agent.work import Failed

MIB = 1 << 20
SYS, DEV = Path("/sys"), Path("/dev")
_KINDS = (
    "nvme",
    "vd",
    "sd",
    "xvd",
    "mmcblk",
)  # in this order disks are looked through; dasd and others follow
# memory, mappings, optical and floppy drives are no disks; nvme0c0n1 is a path of a multipath device, mmcblk0boot0 the firmware's
_NO_DISK = re.compile(
    r"(loop|ram|zram|dm-|md|sr|fd|nbd|mtdblock|drbd)[0-9].*|nvme\d+c\d+n\d+|mmcblk\d+(boot|rpmb).*"
)


@dataclass(frozen=True)
class Disk:
    """One disk. ``size`` in bytes; ``serial``, ``model`` and ``wwn`` None where the disk has none; ``by_id`` names, no paths."""

    name: str
    path: str
    size: int
    serial: str | None = None
    model: str | None = None
    wwn: str | None = None
    rotational: bool = False
    removable: bool = False
    ro: bool = False
    by_id: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.path} ({self.size // MIB} MiB, serial {self.serial or 'unknown'})"


def list_disks(sys: Path = SYS, dev: Path = DEV, *, everything: bool = False) -> list[Disk]:
    """The fixed, writable disks, each once (a second path to the same disk is left out), in an order that does not change
    between boots unless the kernel renames them. ``everything`` takes removable and read-only ones in, for facts."""
    found: list[Disk] = []
    for folder in sorted((sys / "block").iterdir(), key=lambda path: _order(path.name)):
        if _NO_DISK.fullmatch(folder.name) or not (folder / "device").exists():
            continue
        disk = _disk(folder, dev)
        if not disk.size or _text(folder / "hidden") == "1":
            continue
        if not everything and (disk.removable or disk.ro):
            continue
        if disk.wwn and any(other.wwn == disk.wwn and other.size == disk.size for other in found):
            continue
        found.append(disk)
    return found


def matches(match: Mapping[str, Any], disk: Disk, dev: Path = DEV) -> bool:
    """Whether a selector can mean this disk: {path, id, serial, min_mib, rotational, first}, as templating/disks.match gives it.

    ``first`` can mean any disk.
    """
    if match.get("path") is not None:
        return _is_path(str(match["path"]), disk, dev)
    if match.get("id") is not None:
        return match["id"] in disk.by_id
    serial, rotational = match.get("serial"), match.get("rotational")
    return (
        (serial is None or serial in _serials(disk))
        and disk.size >= (match.get("min_mib") or 0) * MIB
        and (rotational is None or rotational == disk.rotational)
    )


def kept(disks: Iterable[Disk], keep: Iterable[Mapping[str, Any]]) -> list[Disk]:
    """The disks that nobody may write to. A selector that could mean any disk keeps all that it fits."""
    selectors = list(keep)
    return [disk for disk in disks if any(matches(match, disk) for match in selectors)]


def find(
    match: Mapping[str, Any],
    disks: Sequence[Disk],
    keep: Iterable[Mapping[str, Any]] = (),
    need_bytes: int = 0,
    *,
    what: str = "the image",
) -> Disk:
    """The first disk that the selector means. Raises Failed, which names every disk there is.

    A disk that is kept is never given: named exactly, that is a contradiction to be told; searched for, it is passed by. So it is
    with a disk smaller than ``need_bytes``.
    """
    apart = kept(disks, keep)
    meant = [disk for disk in disks if matches(match, disk)]
    free = [disk for disk in meant if disk not in apart]
    large = [disk for disk in free if disk.size >= need_bytes]
    if large:
        return large[0]
    said, there = describe(match), "this machine has " + (", ".join(map(str, disks)) or "no fixed disk")
    if not meant:
        raise Failed(f"no disk is {said}, which {what} is to be written to; {there}")
    if not free:
        raise Failed(
            f"{_names(meant)} is {said}, which {what} is to be written to, but is to be kept; {there}: "
            "change 'keep' or the disk in the storage description"
        )
    raise Failed(
        f"{what} needs {-(-need_bytes // MIB)} MiB, which {_names(free)} ({said}) has not; {there}: choose another disk or a smaller image"
    )


def assign(
    wanted: Sequence[Mapping[str, Any]],
    disks: Sequence[Disk],
    keep: Iterable[Mapping[str, Any]] = (),
    need: Callable[[Mapping[str, Any]], int] = lambda _: 0,
) -> dict[str, Disk]:
    """A disk of its own for each of the plan's ``disks`` ({name, match, ...}), by name; ``need`` says how many bytes one must have.

    What is named exactly is taken first, then what is searched for, ``first`` last, so that no search takes a disk that is named.
    """
    selectors, taken = list(keep), dict[str, Disk]()
    for one in sorted(wanted, key=lambda w: _turn(w["match"])):
        left = [disk for disk in disks if disk not in taken.values()]
        try:
            taken[one["name"]] = find(
                one["match"], left, selectors, need(one), what=f"'{one['name']}' of the storage description"
            )
        except Failed as error:
            if not taken:
                raise
            others = ", ".join(f"{name} is {disk.path}" for name, disk in taken.items())
            raise Failed(f"{error} (already {others})") from None
    return {one["name"]: taken[one["name"]] for one in wanted}


def describe(match: Mapping[str, Any]) -> str:
    """A selector in words."""
    if match.get("path") is not None:
        return str(match["path"])
    if match.get("id") is not None:
        return f"/dev/disk/by-id/{match['id']}"
    words = [f"of serial {match['serial']}"] if match.get("serial") is not None else []
    words += [f"of {match['min_mib']} MiB or more"] if match.get("min_mib") else []
    if match.get("rotational") is not None:
        words.append("rotating" if match["rotational"] else "not rotating")
    return " and ".join(words) or "the first fixed disk"


def node(disk: str, number: int) -> str:
    """The device of a disk's partition: a letter stands between where the disk's name ends in a digit."""
    return f"{disk}{'p' if disk[-1].isdigit() else ''}{number}"


def _turn(match: Mapping[str, Any]) -> int:
    if match.get("path") is not None or match.get("id") is not None or match.get("serial") is not None:
        return 0
    return 2 if match.get("first") else 1


def _names(disks: Sequence[Disk]) -> str:
    return ", ".join(disk.path for disk in disks)


def _is_path(path: str, disk: Disk, dev: Path) -> bool:
    if path == disk.path:
        return True
    if path.startswith("/dev/disk/by-id/"):
        return path.removeprefix("/dev/disk/by-id/") in disk.by_id
    link = dev / path.removeprefix("/dev/")
    return link.is_symlink() and link.resolve().name == disk.name


def _serials(disk: Disk) -> set[str]:
    """Every text that is called the disk's serial somewhere: its own, and udev's ID_SERIAL, which is a by-id name without its bus."""
    found = {name.partition("-")[2] for name in disk.by_id}
    return found | ({disk.serial} if disk.serial else set())


def _order(name: str) -> tuple[int, int, str]:
    kind = next((number for number, kind in enumerate(_KINDS) if name.startswith(kind)), len(_KINDS))
    natural = re.sub(r"\d+", lambda digits: digits[0].zfill(6), name)
    return kind, len(re.sub(r"\d+", "", name)), natural


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \t\n")
    except OSError:
        return ""


def _disk(folder: Path, dev: Path) -> Disk:
    name, device = folder.name, folder / "device"
    model = " ".join(_text(device / "model").split()) or None
    serial = _text(device / "serial") or _text(folder / "serial") or None
    wwn, ids = None, list[str]()
    if name.startswith("nvme"):
        wwn = _text(folder / "wwid") or None
        ids = [f"nvme-{wwn}"] if wwn else []
        if model and serial:
            ids += [f"nvme-{_word(model)}_{_word(serial)}"]
            ids += [f"nvme-{_word(model)}_{_word(serial)}_{_text(folder / 'nsid') or 1}"]
    elif name.startswith("vd"):
        ids = [f"virtio-{_word(serial)}"] if serial else []
    elif name.startswith("mmcblk"):
        model, serial = _text(device / "name") or None, _text(device / "serial").removeprefix("0x") or None
        ids = [f"mmc-{_word(model)}_0x{serial}"] if model and serial else []
    elif (device / "vpd_pg83").exists() or (device / "vpd_pg80").exists():
        vendor = _text(device / "vendor")
        serial = _page80(device / "vpd_pg80") or serial
        model, serial, wwn, ids = _scsi(_bytes(device / "vpd_pg83"), vendor, model, serial)
    if (dev / "disk/by-id").is_dir():
        ids += [link.name for link in (dev / "disk/by-id").iterdir() if link.resolve().name == name]
    return Disk(
        name=name,
        path=f"/dev/{name}",
        size=int(_text(folder / "size") or 0) * 512,
        serial=serial,
        model=model,
        wwn=wwn,
        rotational=_text(folder / "queue/rotational") == "1",
        removable=_text(folder / "removable") == "1",
        ro=_text(folder / "ro") == "1",
        by_id=tuple(dict.fromkeys(sorted(ids))),
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _word(text: str) -> str:
    """As udev writes it into a name: runs of blanks become '_', and so does what a file name should not have."""
    return re.sub(r"[^A-Za-z0-9#+.:=@_-]", "_", re.sub(r"\s+", "_", text.strip()))


def _page80(path: Path) -> str | None:
    """Unit serial number: two bytes, the page's length in two more, then text (SPC-4, 7.8.15)."""
    return _bytes(path)[4:].decode("ascii", "replace").strip("\0 ") or None


def designators(page: bytes) -> list[tuple[int, bytes]]:
    """(type, value) of each name of the disk itself in VPD page 0x83 (SPC-4, 7.8.6): 1 T10, 2 EUI-64, 3 NAA, 8 SCSI name."""
    found: list[tuple[int, bytes]] = []
    at, end = 4, 4 + int.from_bytes(page[2:4], "big")
    while at + 4 <= min(end, len(page)):
        length = page[at + 3]
        if (page[at + 1] >> 4) & 3 == 0:  # else it names a port or the whole target
            found.append((page[at + 1] & 15, page[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def _scsi(
    page: bytes, vendor: str, model: str | None, serial: str | None
) -> tuple[str | None, str | None, str | None, list[str]]:
    """(model, serial, wwn, by-id names) of a SCSI or ATA disk."""
    names, ids = designators(page), list[str]()
    naa = next((value.hex() for kind, value in names if kind == 3), None)
    t10 = next((value.decode("ascii", "replace") for kind, value in names if kind == 1), "")
    if t10.startswith("ATA     ") and len(t10) >= 68:  # libata: 40 characters of model, 20 of serial
        model, serial = t10[8:48].strip() or model, t10[48:68].strip() or serial
        ids.append(f"ata-{_word(f'{model}_{serial}')}")
    elif vendor and model and serial:
        ids.append(f"scsi-S{_word(f'{vendor}_{model}_{serial}')}")
    if naa:
        ids += [f"wwn-0x{naa}", f"scsi-3{naa}"]
    for kind, value in names:
        if kind == 2:
            ids.append(f"scsi-2{value.hex()}")
        elif kind == 1:
            ids.append(f"scsi-1{_word(value.decode('ascii', 'replace'))}")
        elif kind == 0 and vendor and model:
            ids.append(f"scsi-0{_word(f'{vendor}_{model}_' + value.decode('ascii', 'replace'))}")
    return model, serial, f"0x{naa}" if naa else None, ids
