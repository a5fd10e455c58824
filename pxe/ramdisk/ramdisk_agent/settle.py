"""A layout made ready to boot: file systems grown and mounted, the image's files in their places, tables, initramfs, boot loader."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ramdisk_agent import bootloader, efi_entries, filesystems, mounts, tables, wipe
from ramdisk_agent.layout import Made, mapping_name
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Work

MNT = Path("/mnt")
_STAGING = ".provisiond"  # a directory on / while files are moved
_BOOT_TYPE = "BC13C2FF-59E6-4262-A352-B275FD6F7172"  # Discoverable Partitions: XBOOTLDR


def mount_all(made: Made) -> None:
    """Mount the empty file systems of a layout below /mnt, for an image that is unpacked into them. Raises Failed."""
    MNT.mkdir(exist_ok=True)
    for block in tables.mounted(made.layout):
        place = MNT / block["mount"].lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        mounts.mount(made.devices[block["name"]], place, block["filesystem"], block["options"])


def settle(work: Work, made: Made) -> list[str]:
    """After the image was written, or unpacked after `mount_all`: everything up to the boot loader. The tree stays mounted below /mnt for the seed.

    Gives the kernel arguments that find /, such as root=UUID=..., for whoever starts the kernel himself. Raises Failed.
    """
    layout, uuids = made.layout, dict[str, str]()
    if made.pieces:
        uuids = _root_first(work, made)
    bootloader.require(made, MNT)
    if made.pieces:
        work.say("layout: moving files to their file systems")
        for block in tables.mounted(layout)[1:]:
            _mount_below(made.devices[block["name"]], block)
        _extras(made)
        filesystems.grow(made.root, str(MNT), layout["root"]["filesystem"])
    for block in layout["blocks"]:
        if block["filesystem"] and block["name"] not in uuids:
            uuids[block["name"]] = filesystems.probe(made.devices[block["name"]])["uuid"]
    arguments = _tables(made, uuids)
    _links(made, uuids)
    work.progress(94, "making the initramfs and the boot loader")
    with bootloader.chroot_ready(MNT):
        for note in bootloader.install(made, MNT, uuids, arguments):
            work.say(f"layout: {note}")
    return arguments


def close(made: Made) -> None:
    """Unmount and stop everything, so that arrays are clean when the machine restarts."""
    os.sync()
    mounts.umount(MNT)
    wipe.stop(list(made.disks.values()))


def _root_first(work: Work, made: Made) -> dict[str, str]:
    device, wanted = made.root, made.layout["root"]["filesystem"]
    found = filesystems.probe(device)
    if found.get("filesystem") != wanted or "uuid" not in found:
        raise Failed(
            f"{device} holds {found.get('filesystem', 'no file system')} after the image was written, not {wanted}: add the image again"
        )
    others = filesystems.others_with(found["uuid"], device)
    if others:
        work.say(f"layout: {', '.join(others)} has the same UUID as the image's /, which gets another")
        filesystems.renew_uuid(device, wanted)
        found = filesystems.probe(device)
    MNT.mkdir(exist_ok=True)
    mounts.mount(device, MNT, wanted, made.layout["root"]["options"])
    if not (MNT / "etc").is_dir() or not (MNT / "usr").is_dir():
        raise Failed(
            "the image's root file system has no /etc and /usr at its top (a btrfs subvolume, or another partition?): it cannot "
            "be put into a layout"
        )
    if len(made.pieces) > 1:  # first only as far as what lies at the end, which may be wanted
        limit = min(piece.there for piece in made.pieces if piece.there)
        filesystems.grow(device, str(MNT), wanted, limit)
    return {made.layout["root"]["name"]: found["uuid"]}


def _mount_below(device: str, block: dict[str, Any]) -> None:
    """Mount at its place; what / has there moves onto it."""
    place, staging = MNT / block["mount"].lstrip("/"), MNT / _STAGING
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        staging.mkdir(exist_ok=True)
        mounts.mount(device, staging, block["filesystem"])
        _copy(block["mount"], f"/{_STAGING}", block["filesystem"])
        mounts.umount(staging)
        for path in list(place.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        staging.rmdir()
    mounts.mount(device, place, block["filesystem"], block["options"])


def _copy(source: str, target: str, filesystem: str) -> None:
    """All below one directory of the installed system into another, by its own cp, which keeps owners, links and attributes."""
    how = ["--recursive", "--preserve=timestamps"] if filesystem == "vfat" else ["--archive"]
    words = ["cp", *how, "--one-file-system", f"{source.rstrip('/')}/.", f"{target}/"]
    run(["chroot", str(MNT), *words], timeout=1800)


def _extras(made: Made) -> None:
    """What the image keeps on partitions of its own (an EFI system partition, /boot, /home) goes to where it is mounted."""
    old = _old_fstab(MNT / "etc/fstab")
    root = made.image["root"]["number"]
    parts = [p for p in made.image["partitions"] if p["number"] != root and p.get("filesystem")]
    wanted = [(mount, part) for part in parts if (mount := mount_of(part, old)) is not None]
    for mount, part in sorted(wanted, key=lambda pair: pair[0]):
        if mount == "/boot/efi" and made.firmware != "uefi":
            continue
        places = made.locate(part["start"], part["size"])
        if len(places) != 1:
            continue
        staging, (device, there, _) = MNT / _STAGING, places[0]
        block = next((b for b in made.layout["blocks"] if b["mount"] == mount), None)
        staging.mkdir(exist_ok=True)
        (MNT / mount.lstrip("/")).mkdir(parents=True, exist_ok=True)
        with mounts.window(device, there) as loop:
            mounts.mount(loop, staging, part["filesystem"])
            _copy(f"/{_STAGING}", mount, block["filesystem"] if block else part["filesystem"])
            mounts.umount(staging)
        staging.rmdir()


def _old_fstab(path: Path) -> dict[str, str]:
    """What the image mounts where: LABEL=..., UUID=... and so on to mount point."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return {words[0].replace('"', ""): words[1] for words in lines if len(words) > 2 and words[0][0] != "#"}


def mount_of(part: dict[str, Any], old: dict[str, str]) -> str | None:
    """Where one of the image's partitions is mounted: by its fstab (`old`), its type, or the label of a /boot. None: not known."""
    names = {
        "UUID": part.get("uuid"),
        "LABEL": part.get("label"),
        "PARTUUID": part.get("partuuid"),
        "PARTLABEL": part.get("name"),
    }
    for key, value in names.items():
        mount = old.get(f"{key}={value}") or old.get(f"{key}={str(value).upper()}") if value else None
        if mount and mount.startswith("/") and mount != "/":
            return mount if re.fullmatch(r"(/[A-Za-z0-9._-]+)+", mount) and ".." not in mount else None
    kind = str(part.get("type") or "").upper()
    if kind in efi_entries.ESP_TYPES:
        return "/boot/efi"
    return "/boot" if kind == _BOOT_TYPE or str(part.get("label")).lower() == "boot" else None


def _tables(made: Made, uuids: dict[str, str]) -> list[str]:
    """Write fstab, crypttab, mdadm.conf, key files; gives the kernel arguments."""
    layout, etc = made.layout, MNT / "etc"
    encrypted = [b["name"] for b in layout["blocks"] if b["encrypt"]]
    luks = {name: filesystems.probe(made.below[name])["uuid"] for name in encrypted}
    for name in encrypted:
        if tables.keyed(layout, name):
            _key(made, name)
    write(etc / "fstab", tables.fstab(layout, uuids, read(etc / "fstab")))
    if encrypted:
        names = {name: mapping_name(name) for name in encrypted}
        write(etc / "crypttab", tables.crypttab(layout, luks, names, read(etc / "crypttab")), 0o600)
    arrays = [_array(name, device) for name, device in made.arrays.items()]
    if arrays:
        where = etc / "mdadm" if (etc / "mdadm").is_dir() else etc
        write(where / "mdadm.conf", tables.mdadm_conf(arrays))
    if layout["volume_groups"]:
        (etc / "lvm/devices/system.devices").unlink(
            missing_ok=True
        )  # else LVM looks at the disks of the image's maker only
    resume = etc / "initramfs-tools/conf.d"
    if resume.is_dir():
        write(
            resume / "resume", "RESUME=none\n"
        )  # the image's swap is not here, and waiting for it takes half a minute
    volume = layout["root"]["kind"] == "volume" and not layout["root"]["encrypt"]
    # Debian's initramfs starts the volume group that is named, and none for a UUID
    root = made.root if volume else f"UUID={uuids[layout['root']['name']]}"
    return tables.kernel_arguments(
        layout, root, luks, {a["name"]: a["uuid"] for a in arrays}, dracut=bootloader.has_dracut(MNT)
    )


def _array(name: str, device: str) -> dict[str, str]:
    said = run(["mdadm", "--detail", "--export", device])
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return {"name": name, "metadata": values["MD_METADATA"], "uuid": values["MD_UUID"]}


def _key(made: Made, name: str) -> None:
    """A second key in a file on the encrypted /, so that one passphrase is asked for and not several."""
    folder = MNT / tables.KEYS.lstrip("/")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{mapping_name(name)}.key"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400), "wb") as file:
        file.write(os.urandom(64))
    # a random key needs no slow derivation: cryptsetup(8), PBKDF
    words = [
        "cryptsetup",
        "luksAddKey",
        "--batch-mode",
        "--key-file",
        "-",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
    ]
    run([*words, made.below[name], str(path)], input=made.passphrase, timeout=180)


def _links(made: Made, uuids: dict[str, str]) -> None:
    """What udev would have made below /dev, for the image's own tools: GRUB's and initramfs-tools' look for these names."""
    folder = Path("/dev/disk/by-uuid")
    folder.mkdir(parents=True, exist_ok=True)
    for name, uuid in uuids.items():
        _link(folder / uuid, made.devices[name])
    for name, device in made.arrays.items():
        Path("/dev/md").mkdir(exist_ok=True)
        _link(Path("/dev/md", name), device)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def read(path: Path) -> str:
    """The text of a file, empty where there is none."""
    return path.read_text(errors="replace") if path.exists() else ""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of the installed system. A new one gets the SELinux label of its directory."""
    fresh = not path.exists()
    path.write_text(text)
    if fresh:
        path.chmod(mode)
        with contextlib.suppress(OSError):  # no label where the image knows no SELinux
            os.setxattr(path, "security.selinux", os.getxattr(path.parent, "security.selinux"))
