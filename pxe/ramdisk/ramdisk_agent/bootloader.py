"""The way from the firmware to an image's kernel: initramfs and GRUB, by the image's own tools."""

import contextlib
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramdisk_agent import efi_entries, mounts, tables
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed

if TYPE_CHECKING:
    from ramdisk_agent.layout import Made

# (what GRUB calls it, Debian's name in packages); RHEL's packages are named by the suffix of EFI programs
_MACHINES = {"x86_64": ("x86_64-efi", "amd64"), "aarch64": ("arm64-efi", "arm64")}
_INITRAMFS = 3600.0  # seconds: an image for any machine packs thousands of drivers, a slow processor takes half an hour
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def has_dracut(mnt: Path) -> bool:
    """Whether the image makes its initramfs with dracut; else with initramfs-tools."""
    return (mnt / "usr/bin/dracut").exists() and not (mnt / "usr/sbin/update-initramfs").exists()


def require(made: "Made", mnt: Path) -> None:
    """Raises Failed with the packages that the image lacks for its layout."""
    missing = lacking(made.layout, mnt, made.firmware, platform.machine())
    if missing:
        raise Failed(
            f"the image lacks what its disks need to start: {', '.join(missing)}. Put these packages into the image, or use a "
            "storage description without them"
        )


def lacking(layout: Mapping[str, Any], mnt: Path, firmware: str, machine: str) -> list[str]:
    """The names of packages that are not in the image and without which the layout would not start."""
    dracut, found = has_dracut(mnt), list[str]()
    target, debian = _MACHINES.get(machine, _MACHINES["x86_64"])

    def want(package: str, *paths: str) -> None:
        if not any(next(mnt.glob(path), None) for path in paths):
            found.append(package)

    stacked = layout["raids"] or layout["volume_groups"] or layout["encrypted"]
    if stacked and not dracut:
        want("initramfs-tools", "usr/sbin/update-initramfs")
    if layout["raids"]:
        want("mdadm", "usr/sbin/mdadm", "sbin/mdadm")
    if layout["volume_groups"]:
        want("lvm2", "usr/sbin/lvm", "sbin/lvm")
    if layout["encrypted"]:
        want("cryptsetup", "usr/sbin/cryptsetup", "sbin/cryptsetup")
        if not dracut:
            want("cryptsetup-initramfs", "usr/share/initramfs-tools/hooks/cryptroot")
    if any(block["filesystem"] == "xfs" for block in layout["blocks"]):
        want("xfsprogs", "usr/sbin/xfs_repair", "sbin/xfs_repair")
    want("grub2-tools" if dracut else "grub2-common", "usr/sbin/grub-install", "usr/sbin/grub2-install")
    if firmware != "uefi":
        want("grub2-pc-modules" if dracut else "grub-pc-bin", "usr/lib/grub/i386-pc/moddep.lst")
    elif dracut:
        want(
            f"grub2-efi-{efi_entries.suffix_of(machine)}",
            "boot/efi/EFI/*/grub*.efi",
            f"usr/lib/grub/{target}/moddep.lst",
        )
    else:
        want(f"grub-efi-{debian}-bin", f"usr/lib/grub/{target}/moddep.lst")
    return found


@contextlib.contextmanager
def chroot_ready(mnt: Path) -> Iterator[None]:
    """The kernel's file systems below the installed system, for as long as its programs run."""
    try:
        for name in ("dev", "proc", "sys", "run", "tmp"):
            (mnt / name).mkdir(exist_ok=True)
        mounts.bind("/dev", mnt / "dev")
        mounts.mount("proc", mnt / "proc", "proc")
        mounts.mount("sysfs", mnt / "sys", "sysfs")
        for name in ("run", "tmp"):  # no /run/udev: LVM and GRUB would wait for it
            mounts.mount("tmpfs", mnt / name, "tmpfs")
        yield
    finally:
        for name in ("tmp", "run", "sys", "proc", "dev"):
            mounts.umount(mnt / name)


def inside(mnt: Path, words: Sequence[str], timeout: float = 900, *, check: bool = True) -> str:
    """Run a program of the installed system in it."""
    calm = [_PATH, "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "GRUB_DISABLE_OS_PROBER=true"]
    return run(["chroot", str(mnt), "/usr/bin/env", *calm, *words], timeout=timeout, check=check)


def install(made: "Made", mnt: Path, uuids: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """Initramfs, GRUB on every disk that carries one, and firmware entries; gives what is worth telling. Within chroot_ready."""
    dracut = has_dracut(mnt)
    defaults = mnt / "etc/default/grub"
    if dracut and defaults.exists():
        defaults.write_text(tables.grub_defaults(defaults.read_text(), arguments))
    # the image's own partition, by its number on the image's disk: Ubuntu's cloud images
    (mnt / "etc/default/grub.d/40-force-partuuid.cfg").unlink(missing_ok=True)
    # on plain partitions the image's own initramfs finds / by what the boot loader says
    stacked = made.layout["raids"] or made.layout["volume_groups"] or made.layout["encrypted"]
    if dracut and stacked:
        modules = _dracut_modules(made.layout)
        inside(mnt, ["dracut", "--force", "--regenerate-all", "--no-hostonly", *modules], _INITRAMFS)
    elif stacked:
        inside(mnt, ["update-initramfs", "-u", "-k", "all"], _INITRAMFS)
    if dracut:
        _entries(made, mnt, arguments)
    grub = "grub2" if (mnt / "usr/sbin/grub2-install").exists() else "grub"
    notes = _uefi(made, mnt, grub, uuids) if made.firmware == "uefi" else _bios(made, mnt, grub)
    (mnt / "boot" / grub).mkdir(exist_ok=True)
    inside(mnt, [f"{grub}-mkconfig", "-o", f"/boot/{grub}/grub.cfg"])
    return notes


def _dracut_modules(layout: Mapping[str, Any]) -> list[str]:
    wanted = {"mdraid": layout["raids"], "lvm": layout["volume_groups"], "crypt": layout["encrypted"]}
    names = [name for name, there in wanted.items() if there]
    return ["--add", " ".join(names)] if names else []


def _bios(made: "Made", mnt: Path, grub: str) -> list[str]:
    disks = [made.disks[name] for name, _ in _carriers(made, "bios_boot")]
    for disk in disks:
        inside(mnt, [f"{grub}-install", "--target=i386-pc", disk.path])
    if (mnt / "var/lib/dpkg/info/grub-pc.list").exists():  # where the next upgrade of the package puts GRUB
        names = ", ".join(f"/dev/disk/by-id/{disk.by_id[0]}" if disk.by_id else disk.path for disk in disks)
        line = f"grub-pc grub-pc/install_devices multiselect {names}"
        (mnt / "tmp/answers").write_text(f"{line}\n")
        inside(mnt, ["debconf-set-selections", "/tmp/answers"], check=False)
    return [f"GRUB is on {', '.join(disk.path for disk in disks)}"]


def _carriers(made: "Made", use: str) -> list[tuple[str, dict[str, Any]]]:
    """(name of the disk, partition) for each partition that the firmware starts from."""
    return [(d["name"], p) for d in made.layout["disks"] for p in d["partitions"] if p["use"] == use]


def _uefi(made: "Made", mnt: Path, grub: str, uuids: Mapping[str, str]) -> list[str]:
    target, _ = _MACHINES.get(platform.machine(), _MACHINES["x86_64"])
    suffix = efi_entries.suffix_of(platform.machine())
    name, efi = efi_entries.vendor(mnt), mnt / "boot/efi/EFI"
    if (mnt / "usr/lib/grub" / target / "moddep.lst").exists() and grub == "grub":
        words = [f"--target={target}", "--efi-directory=/boot/efi", f"--bootloader-id={name}", "--no-nvram"]
        inside(mnt, ["grub-install", *words])
    else:  # RHEL's signed GRUB is a file of its package; it reads grub.cfg beside it
        boot = made.layout["boot"]
        prefix = "/grub2" if boot["mount"] == "/boot" else "/boot/grub2"
        for program in efi.glob(f"*/grub{suffix}.efi"):
            stub = (
                f"search --no-floppy --fs-uuid --set=dev {uuids[boot['name']]}\nset prefix=($dev){prefix}\n"
            )
            stub += "export $prefix\nconfigfile $prefix/grub.cfg\n"
            (program.parent / "grub.cfg").write_text(stub)
    loader = efi_entries.find_loader(efi.parent, suffix)
    if loader is None:
        raise Failed(
            f"there is no boot loader below /boot/efi of the image for {target}: put shim and GRUB into it"
        )
    _removable(efi.parent, loader, suffix)
    notes = []
    for number, (disk, part) in enumerate(_carriers(made, "esp"), start=1):
        if part["mount"] != "/boot/efi":
            _mirror(made.devices[part["name"]], efi.parent, mnt)
        label = name if number == 1 else f"{name} {number}"
        notes.append(efi_entries.make_entry(made.disks[disk].path, part["number"], label, loader))
    return notes


def _mirror(device: str, source: Path, mnt: Path) -> None:
    """The same files on the EFI system partition of a further disk, which starts the machine when the first has died."""
    place = mnt / "run/esp"
    place.mkdir(exist_ok=True)
    mounts.mount(device, place, "vfat")
    try:
        shutil.copytree(source, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
    finally:
        mounts.umount(place)


def _removable(esp: Path, loader: str, suffix: str) -> None:
    """The loader under the name that firmware tries when it has lost its entries (UEFI 2.10, 3.5.1.1)."""
    first = esp / loader.strip("\\").replace("\\", "/")
    boot = esp / "EFI/BOOT"
    boot.mkdir(parents=True, exist_ok=True)
    for path in first.parent.glob(f"*{suffix}.efi"):
        if path.parent != boot:
            shutil.copyfile(path, boot / path.name)
    if first.parent != boot:
        shutil.copyfile(first, boot / f"BOOT{suffix.upper()}.EFI")


def _entries(made: "Made", mnt: Path, arguments: Sequence[str]) -> None:
    environment = mnt / "boot/grub2/grubenv"
    old = (
        re.search(r"^kernelopts=(.*)$", environment.read_text(), re.MULTILINE)
        if environment.exists()
        else None
    )
    for path in (mnt / "boot/loader/entries").glob("*.conf"):
        separate = made.layout["boot"]["mount"] == "/boot"
        path.write_text(boot_entry(path.read_text(), arguments, old[1] if old else "", separate=separate))


def boot_entry(text: str, arguments: Sequence[str], kernelopts: str = "", *, separate: bool) -> str:
    """A Boot Loader Specification entry with other arguments, and paths as from a /boot of its own (`separate`) or not."""
    lines = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "options":
            words = value.replace("$kernelopts", kernelopts).split()
            old = [w for w in words if not w.startswith(("root=", "rd.luks", "rd.md", "rd.lvm", "resume="))]
            line = f"options {' '.join([*arguments, *old])}"
        elif key in ("linux", "initrd"):
            words = [
                f"{'' if separate else '/boot'}/{w.removeprefix('/boot').lstrip('/')}"
                if w.startswith("/")
                else w
                for w in value.split()
            ]
            line = f"{key} {' '.join(words)}"
        lines.append(line)
    return "\n".join(lines) + "\n"
