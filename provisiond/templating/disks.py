"""What templates see as ``storage``: the description of a host's disks in its one long form, with everything settled.

Shape of the plan (plain dicts and lists)::

    {disks: [{name, match: {path, id, serial, min_mib, rotational, first: bool}, partitions: [BLOCK + {size_mib, number, flag}]}],
     raids: [BLOCK + {level, members: [name], spares: [name]}],
     volume_groups: [{name, members: [name], volumes: [BLOCK + {size_mib}]}],
     keep: [match], blocks: [BLOCK] (all of them, in this order), root: BLOCK, boot: BLOCK, swap: [BLOCK], encrypted: bool, first: bool}

    BLOCK: {name, kind: partition|raid|volume, use: filesystem|swap|raid|lvm|esp|bios_boot, inside: name or None (the RAID or
            volume group it is a member of), filesystem, mount, options, encrypt: bool}

``size_mib`` None takes the rest. ``number`` counts partitions on a disk from 1. ``flag`` is esp, bios_boot, raid, lvm, swap or None.
``root`` and ``boot`` are the blocks that hold / and the kernel (the same one where there is no /boot). ``first`` says that some
disk is found by the machine itself (``match.first``), ``described`` that an operator wrote any of this; templates also see ``layout``:
an image's root file system goes into a layout that the ramdisk makes by this plan. The first disk, and each
disk that carries a mirror of /boot or of /, begins with what the firmware boots from: an EFI system partition (the first one
mounted on /boot/efi), or 1 MiB for GRUB's core.
"""

from __future__ import annotations

from typing import Any

from provisiond.inventory.storage import BOOT_MIB, ESP_MIB, Content, Disk, Storage, mib

DEFAULT_SWAP = "1GiB"


def plan_storage(
    storage: Storage | None, firmware: str, filesystem: str | None = None, swap: str | None = DEFAULT_SWAP
) -> dict[str, Any]:
    """The plan for a machine with ``firmware`` (bios, uefi). ``filesystem`` and ``swap`` are the family's own where the description says none."""
    described, storage = storage is not None, storage or Storage()
    if storage.disks is None:
        storage = _long_form(storage, filesystem or "ext4", swap)
    assert storage.disks is not None
    inside = {m: r.name for r in storage.raids for m in [*r.members, *r.spares]}
    lvm = {m: g.name for g in storage.volume_groups for m in g.members}
    kinds = {"raid": inside, "lvm": lvm}

    def block(content: Content, kind: str) -> dict[str, Any]:
        owner = next(
            ((use, names[content.name]) for use, names in kinds.items() if content.name in names), None
        )
        plain = "swap" if content.filesystem == "swap" else "filesystem"
        return {
            "name": content.name,
            "kind": kind,
            "use": owner[0] if owner else plain,
            "inside": owner[1] if owner else None,
            "filesystem": content.filesystem,
            "mount": content.mount,
            "options": content.options,
            "encrypt": content.encrypt,
        }

    raids = [
        {**block(r, "raid"), "level": r.level, "members": list(r.members), "spares": list(r.spares)}
        for r in storage.raids
    ]
    groups = [
        {
            "name": g.name,
            "members": list(g.members),
            "volumes": [{**block(v, "volume"), "size_mib": mib(v.size)} for v in g.volumes],
        }
        for g in storage.volume_groups
    ]
    disks: list[dict[str, Any]] = []
    for use in storage.disks:
        parts = [{**block(p, "partition"), "size_mib": mib(p.size)} for p in use.partitions]
        disks.append({"name": use.name, "match": match(use.match), "partitions": parts})
    blocks = [p for d in disks for p in d["partitions"]] + raids + [v for g in groups for v in g["volumes"]]
    root = next(b for b in blocks if b["mount"] == "/")
    boot = next((b for b in blocks if b["mount"] == "/boot"), root)
    mirrors = _carriers(boot, disks, raids, groups)
    for number, disk in enumerate(disks):
        if number == 0 or disk["name"] in mirrors:
            _make_bootable(disk, firmware, first=number == 0)
        for index, part in enumerate(disk["partitions"], start=1):
            part["number"] = index
            part["flag"] = part["use"] if part["use"] in ("esp", "bios_boot", "raid", "lvm", "swap") else None
    return {
        "disks": disks,
        "raids": raids,
        "volume_groups": groups,
        "keep": [match(selector) for selector in storage.keep],
        "blocks": [p for d in disks for p in d["partitions"]]
        + raids
        + [v for g in groups for v in g["volumes"]],
        "root": root,
        "boot": boot,
        "swap": [b for b in blocks if b["use"] == "swap"],
        "encrypted": any(b["encrypt"] for b in blocks),
        "first": any(d["match"]["first"] for d in disks),
        "described": described,
    }


def needs_layout(plan: dict[str, Any]) -> bool:
    """Whether an image's root file system is put into a layout made for it; else the whole image is written to the disk of /.

    An image has its own partitions and becomes / that takes the rest of its disk; cloud-init adds swap as a file, and one file system
    on a further disk that it finds by path or id (snippets/image-storage.yaml). RAID, LVM, LUKS, a size for /, partitions beside it
    are beyond that.
    """
    if plan["raids"] or plan["volume_groups"] or plan["encrypted"]:
        return True
    for disk in plan["disks"]:
        own = plan["root"]["name"] in [part["name"] for part in disk["partitions"]]
        files = [part for part in disk["partitions"] if part["use"] == "filesystem"]
        if len(files) != 1 or files[0]["size_mib"] is not None:
            return True
        if not own and (
            len(disk["partitions"]) != 1 or (disk["match"]["path"] or disk["match"]["id"]) is None
        ):
            return True
    return any(block["size_mib"] is None for block in plan["swap"])


def match(disk: Disk) -> dict[str, Any]:
    """A selector as templates see it; exactly one of path, id, search (serial, min_mib, rotational) or first is given."""
    found = {
        "path": disk.path,
        "id": disk.id,
        "serial": disk.serial,
        "min_mib": mib(disk.min) if disk.min else None,
        "rotational": disk.rotational,
    }
    return {**found, "first": all(value is None for value in found.values())}


def _long_form(short: Storage, filesystem: str, default_swap: str | None) -> Storage:
    """The usual layouts: a swap, a root, on LVM or plain; over two disks as RAID 1; / under LUKS with a /boot beside it."""
    lvm = short.layout == "lvm"
    boot = lvm or short.encrypt
    root = {
        "name": "root",
        "filesystem": short.filesystem or filesystem,
        "mount": "/",
        "encrypt": short.encrypt and not lvm,
    }
    swap = {
        "name": "swap",
        "filesystem": "swap",
        "size": short.swap or default_swap,
        "encrypt": short.encrypt and not lvm,
    }
    selectors = [short.disk or Disk()] + ([short.mirror] if short.mirror else [])
    contents: list[dict[str, Any]] = []
    if boot:
        contents.append({"name": "boot", "size": f"{BOOT_MIB}MiB", "filesystem": "ext4", "mount": "/boot"})
    if lvm:
        contents.append({"name": "pv", "size": "rest", "encrypt": short.encrypt})
    else:
        contents += [*([swap] if swap["size"] else []), {**root, "size": short.root or "rest"}]
    groups = []
    if lvm:
        volumes = [*([swap] if swap["size"] else []), {**root, "size": short.root or "rest"}]
        groups = [{"name": "system", "members": ["pv"], "volumes": volumes}]
    disks: list[dict[str, Any]] = []
    raids: list[dict[str, Any]] = []
    for letter, selector in zip("ab", selectors, strict=False):
        parts = [{**c} for c in contents]
        if len(selectors) > 1:
            parts = [{"name": f"{c['name']}-{letter}", "size": c["size"]} for c in contents]
        disks.append({"name": f"disk-{letter}", "match": selector.model_dump(), "partitions": parts})
    if len(selectors) > 1:
        for content in contents:
            raid = {name: value for name, value in content.items() if name != "size"}
            raids.append({**raid, "level": 1, "members": [f"{content['name']}-{x}" for x in "ab"]})
    return Storage.model_validate(
        {
            "disks": disks,
            "raids": raids,
            "volume_groups": groups,
            "keep": [k.model_dump() for k in short.keep],
        }
    )


def _carriers(
    boot: dict[str, Any],
    disks: list[dict[str, Any]],
    raids: list[dict[str, Any]],
    groups: list[dict[str, Any]],
) -> set[str]:
    """The disks that hold a copy of ``boot``, so that the machine starts when another has died."""
    names = {boot["name"]}
    for group in groups:
        if any(v["name"] in names for v in group["volumes"]):
            names |= set(group["members"])
    for raid in raids:
        if raid["name"] in names and raid["level"] == 1:
            names |= set(raid["members"])
    return {d["name"] for d in disks if any(p["name"] in names for p in d["partitions"])}


def _make_bootable(disk: dict[str, Any], firmware: str, *, first: bool) -> None:
    uefi = firmware == "uefi"
    described = [part for part in disk["partitions"] if part["mount"] == "/boot/efi"]
    if uefi and described:
        for part in described:
            part["use"] = "esp"
        return
    disk["partitions"].insert(
        0,
        {
            "name": f"{'esp' if uefi else 'bios-boot'}{'' if first else '-' + disk['name']}",
            "kind": "partition",
            "use": "esp" if uefi else "bios_boot",
            "inside": None,
            "filesystem": "vfat" if uefi else None,
            "mount": "/boot/efi" if uefi and first else None,
            "options": None,
            "encrypt": False,
            "size_mib": ESP_MIB if uefi else 1,
        },
    )
