"""The storage description: how a machine's disks are divided, said once per host or group, rendered by every installer family.

Short form, for the usual layouts::

    {layout: plain | lvm, disk: SELECTOR, mirror: SELECTOR, swap: 1GiB, root: rest, filesystem: ext4, encrypt: false}

Long form, for everything else::

    {disks: [{name: a, match: SELECTOR, partitions: [{name: boot, size: 1GiB, filesystem: ext4, mount: /boot}, {name: pv, size: rest}]}],
     raids: [{name: md0, level: 1, members: [a-root, b-root], filesystem: xfs, mount: /}],
     volume_groups: [{name: system, members: [pv], volumes: [{name: root, size: rest, filesystem: xfs, mount: /}]}]}

A SELECTOR is ``first`` (the first fixed disk of 8 GiB or more), ``/dev/...``, a name below /dev/disk/by-id, or a mapping of
``serial``, ``min`` and ``rotational``. Sizes are texts such as 512MiB, 20GiB, 1TiB, or ``rest``. A partition, RAID or volume is
named once in the whole description; it holds a file system, or is a member of a RAID or volume group. The partition that the
firmware boots from (EFI system partition, BIOS boot partition) is added by ``planned`` and not described.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from provisiond.inventory.fields import WrongPlaces, described

MIN_DISK_MIB = 8192
ESP_MIB = 512
BOOT_MIB = 1024
PASSPHRASE = "luks_passphrase"  # noqa: S105 - the parameter's name, which hides its value wherever parameters are shown

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_UNITS = {"MiB": 1, "GiB": 1 << 10, "TiB": 1 << 20}
_SIZE = re.compile(r"([1-9][0-9]{0,8})(MiB|GiB|TiB)")
_MOUNT = re.compile(r"/|(/[A-Za-z0-9._-]+)+")
_DEVICE = re.compile(r"/dev/[A-Za-z0-9][A-Za-z0-9._:+/-]*")
_BY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]*")
_OPTIONS = re.compile(r"[A-Za-z0-9_.=:/+-]+(,[A-Za-z0-9_.=:/+-]+)*")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name here: 1 to 31 of a-z, 0-9, '_' and '-', beginning with a letter"
        )
    return text


def _size(value: str) -> str:
    if value != "rest" and not _SIZE.fullmatch(value):
        raise ValueError(f"{value!r} is not a size such as 512MiB, 20GiB, 1TiB or 'rest'")
    return value


def _mount(text: str) -> str:
    if not _MOUNT.fullmatch(text) or ".." in text.split("/"):
        raise ValueError(f"{text!r} is not a mount point such as / or /var/lib")
    return text


def _options(text: str) -> str:
    if not _OPTIONS.fullmatch(text):
        raise ValueError(f"{text!r} are not mount options such as noatime,nodev")
    return text


def mib(size: str) -> int | None:
    """A size in MiB; None for ``rest``."""
    found = _SIZE.fullmatch(size)
    return int(found[1]) * _UNITS[found[2]] if found else None


Label = Annotated[str, AfterValidator(_name)]
Size = Annotated[str, AfterValidator(_size)]
Mount = Annotated[str, AfterValidator(_mount)]
Filesystem = Literal["ext4", "xfs", "btrfs", "vfat", "swap"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Disk(_Part):
    """Which disk is meant, exactly one way: ``first``, ``path``, ``id`` (below /dev/disk/by-id), or ``serial``, ``min``, ``rotational``."""

    path: str | None = None
    id: str | None = None
    serial: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:+-]{1,64}$")] | None = None
    min: Size | None = None
    rotational: bool | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.path is not None and (not _DEVICE.fullmatch(self.path) or ".." in self.path):
            raise ValueError(f"{self.path!r} is not a device such as /dev/vda")
        if self.id is not None and not _BY_ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is not a name below /dev/disk/by-id")
        if self.min == "rest":
            raise ValueError("min is a size such as 100GiB")
        searched = self.serial is not None or self.min is not None or self.rotational is not None
        if (self.path is not None) + (self.id is not None) + searched > 1:
            raise ValueError("say one of path, id, or serial, min and rotational")
        return self


def _selector(value: Any) -> Any:
    if value == "first" or value is None:
        return {}
    if isinstance(value, str):
        if value.startswith("/dev/disk/by-id/"):
            return {"id": value.removeprefix("/dev/disk/by-id/")}
        return {"path": value} if value.startswith("/") else {"id": value}
    return value


Selector = Annotated[Disk, BeforeValidator(_selector, json_schema_input_type=str | Disk)]


class Content(_Part):
    """What a partition, RAID or volume holds; without ``filesystem`` it is a member of something. ``encrypt`` puts LUKS below it."""

    name: Label
    filesystem: Filesystem | None = None
    mount: Mount | None = None
    options: Annotated[str, AfterValidator(_options)] | None = None
    encrypt: bool = False

    @model_validator(mode="after")
    def _mounted_well(self) -> Self:
        if self.mount and self.filesystem in (None, "swap"):
            raise ValueError(
                f"{self.name}: {self.mount} needs a file system to mount (ext4, xfs, btrfs, vfat)"
            )
        if self.options and not self.mount:
            raise ValueError(f"{self.name}: options without a mount point")
        return self


class Partition(Content):
    size: Size


class Volume(Content):
    size: Size


class DiskUse(_Part):
    """One disk and its partitions in their order. Everything on it is lost."""

    name: Label
    match: Selector = Field(default_factory=Disk)
    partitions: Annotated[list[Partition], Field(min_length=1, max_length=32)]


class Raid(Content):
    """Linux software RAID over ``members``."""

    level: Literal[0, 1, 5, 6, 10]
    members: Annotated[list[Label], Field(min_length=2, max_length=32)]
    spares: list[Label] = Field(default_factory=list)


class VolumeGroup(_Part):
    name: Label
    members: Annotated[list[Label], Field(min_length=1, max_length=32)]
    volumes: Annotated[list[Volume], Field(min_length=1, max_length=64)]


class Storage(_Part):
    """A storage description, in its short or its long form. ValueErrors name every contradiction at once."""

    layout: Literal["plain", "lvm"] | None = None
    disk: Selector | None = None
    mirror: Selector | None = None
    swap: Size | None = None
    root: Size | None = None
    filesystem: Literal["ext4", "xfs", "btrfs"] | None = None
    encrypt: bool = False
    disks: Annotated[list[DiskUse], Field(max_length=32)] | None = None
    raids: Annotated[list[Raid], Field(max_length=32)] = Field(default_factory=list)
    volume_groups: Annotated[list[VolumeGroup], Field(max_length=32)] = Field(default_factory=list)
    keep: list[Selector] = Field(
        default_factory=list, description="Disks that are never written to or erased."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        short = {"layout", "disk", "mirror", "swap", "root", "filesystem", "encrypt"} & self.model_fields_set
        problems: list[str] = []
        if self.disks is None:
            if self.raids or self.volume_groups:
                problems.append("raids and volume_groups need disks with the partitions they stand on")
            if self.swap == "rest":
                problems.append("swap is a size, not 'rest'")
        elif short:
            problems.append(f"{', '.join(sorted(short))} belong to the short form; give either them or disks")
        else:
            problems = _contradictions(self)
        if problems:
            raise WrongPlaces([("", problem) for problem in problems])
        return self


def _contradictions(storage: Storage) -> list[str]:
    """What does not fit in a long form, each a sentence."""
    problems: list[str] = []
    disks = storage.disks or []
    blocks: dict[str, Content] = {}
    everything: list[Content] = [p for d in disks for p in d.partitions]
    everything += [*storage.raids, *(v for g in storage.volume_groups for v in g.volumes)]
    names = [c.name for c in everything] + [d.name for d in disks] + [g.name for g in storage.volume_groups]
    problems += [f"{n} is named twice" for n in sorted({n for n in names if names.count(n) > 1})]
    for block in everything:
        blocks.setdefault(block.name, block)
    volumes = {v.name for g in storage.volume_groups for v in g.volumes}
    users: dict[str, str] = {}
    raid_level = {r.name: r.level for r in storage.raids}
    wanted = {0: 2, 1: 2, 5: 3, 6: 4, 10: 4}
    for user, members in [(r.name, [*r.members, *r.spares]) for r in storage.raids] + [
        (g.name, g.members) for g in storage.volume_groups
    ]:
        for member in members:
            if member not in blocks or member in volumes:
                problems.append(f"{user}: there is no partition or RAID {member!r}")
            elif member in users:
                problems.append(f"{member} is in {users[member]} and in {user}")
            elif blocks[member].filesystem:
                problems.append(f"{member} has a file system, so it cannot be in {user}")
            elif user in raid_level and member in raid_level:
                problems.append(f"{user}: a RAID of RAIDs ({member}) is not made")
            users.setdefault(member, user)
    problems += [
        f"{r.name}: RAID {r.level} needs {wanted[r.level]} members or more"
        for r in storage.raids
        if len(r.members) < wanted[r.level]
    ]
    problems += [
        f"{c.name} has neither a file system nor a place in a RAID or volume group"
        for c in everything
        if not c.filesystem and c.name not in users
    ]
    for owner, parts in [(d.name, d.partitions) for d in disks] + [
        (g.name, g.volumes) for g in storage.volume_groups
    ]:
        if sum(p.size == "rest" for p in parts) > 1:
            problems.append(f"{owner}: only one can take the rest")
    for disk in disks:
        if any(p.size == "rest" for p in disk.partitions[:-1]):
            problems.append(f"{disk.name}: the partition that takes the rest comes last")
    mounts = [c.mount for c in everything if c.mount]
    problems += [f"{m} is mounted twice" for m in sorted({m for m in mounts if mounts.count(m) > 1})]
    if "/" not in mounts:
        problems.append("nothing is mounted on /")
    anys = [d.name for d in disks if d.match == Disk()]
    if len(anys) > 1:
        problems.append(f"{' and '.join(anys)}: only one disk can be 'first'")
    problems += _boot_problems(storage, everything, users)
    return problems


def _boot_problems(storage: Storage, everything: list[Content], users: dict[str, str]) -> list[str]:
    """The kernel is read by a boot loader that knows plain partitions and RAID 1, and no passphrase."""
    by_name = {c.name: c for c in everything}
    raid_level = {r.name: r.level for r in storage.raids}
    group_of = {v.name: g for g in storage.volume_groups for v in g.volumes}
    boot = next((c for c in everything if c.mount == "/boot"), None)
    root = next((c for c in everything if c.mount == "/"), None)
    kernel = boot or root
    if kernel is None:
        return []
    below = [kernel.name, *(group_of[kernel.name].members if kernel.name in group_of else ())]
    encrypted = any(by_name[n].encrypt for n in below if n in by_name)
    what = "/boot" if boot else "/ (there is no /boot)"
    if encrypted:
        return [f"{what} is encrypted; put /boot on a plain partition or RAID 1"]
    if any(raid_level.get(n, 1) != 1 for n in below):
        return [
            f"{what} is on RAID {next(raid_level[n] for n in below if n in raid_level)}; put /boot on a plain partition or RAID 1"
        ]
    return []


StorageDescription = Annotated[dict[str, Any], AfterValidator(described(Storage))]
