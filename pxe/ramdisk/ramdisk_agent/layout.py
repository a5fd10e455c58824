"""Disks divided as the storage description says: partitions, RAID, LUKS, LVM, file systems; and where an image's bytes go on them.

`make` begins anew each time it is called: what an earlier try left on the disks is stopped and wiped. The image's root file system
goes as it is onto the block that holds /. All that an image has besides (boot sectors, an EFI system partition, a /boot of its own)
goes onto the end of the same block, from where `settle.settle` takes the files it wants before / grows over it. So every byte of the
image has a place on a disk and can be read back and checked.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramdisk_agent import filesystems, wipe
from ramdisk_agent.disks import MIB, Disk, assign, list_disks, node
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Work

# partition types: UEFI specification 2.10, 5.3.3; UAPI group, Discoverable Partitions; GRUB manual, BIOS installation
TYPES = {
    "esp": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "bios_boot": "21686148-6449-6E6F-744E-656564454649",
    "raid": "A19D880F-05FC-4D3B-A006-743F0F84911E",
    "lvm": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
    "swap": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
    "filesystem": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
}
TABLE_MIB = 2  # the first MiB, and the backup table at the end
SYNC_KIB = "2000"  # per second: a new mirror is filled after the deployment, not while the image is written
TREE = "tar.zst"  # the encoding of an image that is files and no disk
PASSPHRASE = "luks_passphrase"


@dataclass(frozen=True)
class Piece:
    """`size` bytes of the image from byte `at` on are at byte `there` of `device`."""

    at: int
    size: int
    device: str
    there: int


@dataclass
class Made:
    """A layout on its disks. ``devices`` is what holds each block's content (above LUKS), ``below`` what it stands on."""

    layout: dict[str, Any]
    disks: dict[str, Disk]
    image: dict[str, Any]
    firmware: str
    hostname: str
    passphrase: str = field(repr=False)
    devices: dict[str, str] = field(default_factory=dict)
    below: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)  # name of the RAID: device
    pieces: list[Piece] = field(default_factory=list)

    @property
    def root(self) -> str:
        """The device that holds /."""
        return self.devices[self.layout["root"]["name"]]

    def locate(self, offset: int, length: int) -> list[tuple[str, int, int]]:
        """Where `length` bytes of the image from `offset` on belong: (device, offset on it, length), in the image's order."""
        found = []
        for piece in self.pieces:
            begin, end = max(offset, piece.at), min(offset + length, piece.at + piece.size)
            if begin < end:
                found.append((piece.device, piece.there + begin - piece.at, end - begin))
        return found


def make(work: Work) -> Made:
    """Make the plan's `layout` on this machine's disks. Raises Failed: before anything is wiped when it cannot fit."""
    plan = work.plan
    layout, image = plan["layout"], plan["image"]
    tree = image["encoding"] == TREE
    root = {"filesystem": layout["root"]["filesystem"]} if tree else root_partition(image)
    secret = plan.get("passphrase") or layout.get("passphrase") or ""
    _refuse(layout, root, secret)
    image_bytes = image["size_mib"] * MIB
    keep = [*plan.get("keep", ()), *layout["keep"]]
    disks = assign(layout["disks"], list_disks(), keep, lambda disk: wanted_bytes(disk, layout, image_bytes))
    made = Made(layout, disks, image, plan["firmware"], plan.get("hostname") or "localhost", secret)
    for name, disk in disks.items():
        work.say(f"layout: '{name}' is {disk}")
    for knob in ("speed_limit_min", "speed_limit_max"):
        path = Path("/proc/sys/dev/raid", knob)
        if path.exists():
            path.write_text(SYNC_KIB)
    wipe.wipe(list(disks.values()))
    for one in layout["disks"]:
        _partition(made, one)
    for number, raid in enumerate(layout["raids"]):
        _raid(made, raid, number)
    for group in layout["volume_groups"]:
        _group(made, group)
    for block in layout["blocks"]:
        if block["filesystem"] and (tree or block["name"] != layout["root"]["name"]):
            filesystems.make(made.devices[block["name"]], block["filesystem"], block["name"])
    if not tree:
        made.pieces = place(root, image_bytes, made.root, filesystems.size_of(made.root))
    return made


def root_partition(image: Mapping[str, Any]) -> dict[str, Any]:
    """The image's partition with the root file system, in bytes: {number, start, size, filesystem, ...}. Raises Failed."""
    wanted = image.get("root") or {}
    for part in image.get("partitions") or ():
        if part["number"] == wanted.get("number"):
            return dict(part)
    raise Failed(
        "it is not known which partition of the image holds its root file system: add the image again, or name it with the "
        "image's parameter root_label"
    )


def _refuse(layout: Mapping[str, Any], root: Mapping[str, Any], passphrase: str) -> None:
    wanted = layout["root"]["filesystem"]
    if root["filesystem"] != wanted:
        raise Failed(
            f"the image's root file system is {root['filesystem']}, the storage description wants {wanted} for /: leave "
            "'filesystem' of / out of it, or take another image"
        )
    if layout["encrypted"] and not passphrase:
        raise Failed(f"the storage description encrypts, and the host has no parameter {PASSPHRASE}: set it")


def wanted_bytes(disk: Mapping[str, Any], layout: Mapping[str, Any], image_bytes: int) -> int:
    """The least that a disk must have: its partitions, and the image where it holds / by itself or as a mirror."""
    fixed = sum(part["size_mib"] or 1 for part in disk["partitions"]) * MIB
    names = {part["name"]: part["size_mib"] for part in disk["partitions"]}
    root = layout["root"]["name"]
    for raid in layout["raids"]:
        if raid["name"] == root and raid["level"] == 1:
            root = next((member for member in raid["members"] if member in names), root)
    if root in names and names[root] is None:
        fixed += image_bytes
    return fixed + TABLE_MIB * MIB


def place(root: Mapping[str, Any], image_bytes: int, device: str, size: int) -> list[Piece]:
    """Where the image's bytes go on the block that holds /. Raises Failed when it is too small."""
    start, length = root["start"], root["size"]
    end = start + length
    beside = (
        (size - (image_bytes - length)) // MIB * MIB
    )  # what is not the root file system, at the block's end
    if beside < length:
        raise Failed(
            f"/ has {size // MIB} MiB in the storage description and the image {-(-image_bytes // MIB)}: give / more, or take a smaller image"
        )
    pieces = [
        Piece(0, start, device, beside),
        Piece(start, length, device, 0),
        Piece(end, image_bytes - end, device, beside + start),
    ]
    return [piece for piece in pieces if piece.size]


def sfdisk_script(disk: Mapping[str, Any]) -> str:
    """A disk of the plan as sfdisk(8) reads it."""
    lines = ["label: gpt"]
    for part in disk["partitions"]:
        size = f"size={part['size_mib']}MiB, " if part["size_mib"] is not None else ""
        lines.append(f"{size}type={TYPES[part['flag'] or 'filesystem']}, name={part['name']}")
    return "\n".join(lines) + "\n"


def _partition(made: Made, one: Mapping[str, Any]) -> None:
    disk = made.disks[one["name"]]
    run(
        ["sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", disk.path],
        input=sfdisk_script(one),
    )
    for part in one["partitions"]:
        _encrypt(made, part, node(disk.path, part["number"]))


def _encrypt(made: Made, block: Mapping[str, Any], device: str) -> None:
    """Put LUKS below the block's content where it is wanted, and remember the devices."""
    name = block["name"]
    made.below[name] = made.devices[name] = device
    if not block["encrypt"]:
        return
    secret, mapping = made.passphrase, mapping_name(name)
    make = ["cryptsetup", "luksFormat", "--type", "luks2", "--batch-mode", "--key-file", "-", "--label", name]
    run([*make, device], input=secret, timeout=180)
    run(
        ["cryptsetup", "open", "--type", "luks2", "--key-file", "-", device, mapping],
        input=secret,
        timeout=180,
    )
    made.devices[name] = f"/dev/mapper/{mapping}"


def mapping_name(name: str) -> str:
    """The device-mapper name of an encrypted block."""
    return f"{name}_crypt"


def raid_arguments(raid: Mapping[str, Any], device: str, members: Sequence[str], hostname: str) -> list[str]:
    """mdadm's words for a new array; `members` are its devices, spares last."""
    # firmware reads a mirrored EFI system partition as if it were none, so the metadata is at its end
    metadata = "1.0" if raid["filesystem"] == "vfat" else "1.2"
    words = ["mdadm", "--create", device, "--run", f"--metadata={metadata}", f"--level={raid['level']}"]
    words += [f"--homehost={hostname}", f"--name={raid['name']}", f"--raid-devices={len(raid['members'])}"]
    words += [f"--spare-devices={len(raid['spares'])}"] if raid["spares"] else []
    words += ["--bitmap=internal"] if raid["level"] else []
    return [*words, *members]


def _raid(made: Made, raid: Mapping[str, Any], number: int) -> None:
    device = f"/dev/md{number}"
    members = [made.devices[name] for name in [*raid["members"], *raid["spares"]]]
    run(raid_arguments(raid, device, members, made.hostname), timeout=120)
    made.arrays[raid["name"]] = device
    _encrypt(made, raid, device)


def lvm(words: Sequence[str], devices: Sequence[str]) -> str:
    """Run LVM on these devices and no others: a group of the same name elsewhere is not looked at."""
    allowed = ", ".join(f'"a|^{re.escape(device)}$|"' for device in devices)
    config = f'devices {{ filter=[{allowed}, "r|.*|"] use_devicesfile=0 }} activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}'
    return run(["lvm", *words, "--config", config], timeout=120)


def _group(made: Made, group: Mapping[str, Any]) -> None:
    name, devices = group["name"], [made.devices[member] for member in group["members"]]
    for link in Path("/dev", name).glob(
        "*"
    ):  # of a group of that name that was stopped: vgcreate wants none there
        if link.is_symlink() and not link.exists():
            link.unlink()
    with contextlib.suppress(OSError):
        Path("/dev", name).rmdir()
    lvm(["pvcreate", "-q", "-ff", "-y", *devices], devices)
    lvm(["vgcreate", "-q", "-y", name, *devices], devices)
    for volume in sorted(group["volumes"], key=lambda one: one["size_mib"] is None):
        size = ["-L", f"{volume['size_mib']}m"] if volume["size_mib"] is not None else ["-l", "100%FREE"]
        lvm(["lvcreate", "-q", "-y", "-Wy", "-Zy", *size, "-n", volume["name"], name], devices)
        _encrypt(made, volume, volume_device(name, volume["name"]))


def volume_device(group: str, volume: str) -> str:
    """The device-mapper node of a volume, in whose name hyphens are doubled (lvm(8), VALID NAMES)."""
    return f"/dev/mapper/{group.replace('-', '--')}-{volume.replace('-', '--')}"
