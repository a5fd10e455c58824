"""The firmware's boot entries: what one starts on an EFI system partition, and where it stands in the boot order.

The boot order is left as curtin (MAAS) leaves it: what the machine was started by now, the network, stays first, and the new entry
comes right behind it. A machine that is to be built again, erased or rescued is then reached by a mere restart, even where it has
no BMC; Ironic's entry comes first, which wants a BMC for each of them. A machine that was started by something that is not in the
order (HTTP boot by its BMC, a CD) gets the entry first. BootNext sends the first start to the disk in either case, without the
detour over the network.
"""

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from ramdisk_agent import mounts
from ramdisk_agent.disks import node
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Work

# of a GPT, and of an MBR
ESP_TYPES = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EF")
EFIVARS = Path("/sys/firmware/efi/efivars")
# of EFI programs: UEFI 2.10, 3.5.1.1
_SUFFIXES = {"x86_64": "x64", "aarch64": "aa64"}


def suffix_of(machine: str) -> str:
    """What the names of EFI programs for this machine (as uname calls it) end in: x64, aa64."""
    return _SUFFIXES.get(machine, _SUFFIXES["x86_64"])


def vendor(mnt: Path) -> str:
    """The directory below /EFI and the label of the entry: debian, ubuntu, rocky ..."""
    release = mnt / "etc/os-release"
    text = release.read_text(errors="replace") if release.exists() else ""
    found = re.search(r"^ID=\"?([a-z0-9._-]+)\"?$", text, re.MULTILINE)
    return found[1] if found else "linux"


def find_loader(esp: Path, suffix: str) -> str | None:
    r"""What the firmware is to start on a mounted EFI system partition, as \EFI\debian\shimx64.efi: shim before GRUB, a vendor's own first."""
    programs = {path.relative_to(esp).as_posix(): path for path in sorted(esp.glob("[Ee][Ff][Ii]/*/*"))}
    for wanted in (
        f"shim{suffix}.efi",
        f"grub{suffix}.efi",
        f"systemd-boot{suffix}.efi",
        f"boot{suffix}.efi",
    ):
        named = [name for name in programs if name.lower().endswith(f"/{wanted}")]
        # \EFI\BOOT is everybody's: last
        for name in sorted(named, key=lambda text: "/boot/" in text.lower()):
            return "\\" + name.replace("/", "\\")
    return None


def efi_entry(work: Work, disk: str) -> None:
    """The boot entry of a disk that an image was written to whole; its root file system is mounted at /mnt."""
    table = json.loads(run(["sfdisk", "--json", disk]))["partitiontable"]
    esp = next((part for part in table["partitions"] if part["type"].upper() in ESP_TYPES), None)
    if esp is None:
        work.say(f"{disk} has no EFI system partition: this image does not start by UEFI")
        return
    number = int(esp["node"].removeprefix(disk).removeprefix("p"))
    work.say(make_entry(disk, number, vendor(Path("/mnt"))))


def make_entry(disk: str, number: int, label: str, loader: str | None = None) -> str:
    """Make the firmware's boot entry for partition `number` of `disk`, in place of older ones with that label. Gives what was done.

    Without `loader` it is looked for on the partition. No firmware variables (BIOS, or a kernel without them), and firmware that
    takes no entry, are told and are no failure: it starts \\EFI\\BOOT then.
    """
    if not EFIVARS.parent.is_dir():
        return "no firmware variables here: no boot entry was made, the firmware finds \\EFI\\BOOT by itself"
    if not any(EFIVARS.iterdir()):
        run(["mount", "-t", "efivarfs", "efivarfs", str(EFIVARS)], check=False)
    try:
        loader = loader or _look_for_loader(node(disk, number))
        before = parse(run(["efibootmgr"]))
        for entry in [key for key, name in before.entries.items() if name == label]:
            run(["efibootmgr", "--quiet", "--bootnum", entry, "--delete-bootnum"])
        there = parse(run(["efibootmgr"]))
        words = ["--create-only", "--disk", disk, "--part", str(number), "--label", label, "--loader", loader]
        after = parse(run(["efibootmgr", *words]))
        new = next(iter(set(after.entries) - set(there.entries)))
        order = ordered(there.order, new, there.current)
        run(["efibootmgr", "--quiet", "--bootorder", ",".join(order)])
        if there.next is None or there.next not in there.entries:
            run(["efibootmgr", "--quiet", "--bootnext", new])
    except (Failed, StopIteration) as error:
        return f"the firmware took no boot entry for {disk} ({error}): it starts \\EFI\\BOOT by itself"
    return f"boot entry {new} '{label}' starts {loader} of {node(disk, number)}; boot order {','.join(order)}"


def _look_for_loader(device: str) -> str:
    place = Path("/tmp/esp")
    place.mkdir(exist_ok=True)
    mounts.mount(device, place, "vfat", "ro")
    try:
        found = find_loader(place, suffix_of(platform.machine()))
    finally:
        mounts.umount(place)
    if found is None:
        raise Failed(f"there is no boot loader on {device}")
    return found


class Entries:
    """What efibootmgr says: entries {number: label}, the order, the one this boot came by, the one for the next."""

    def __init__(
        self, entries: dict[str, str], order: list[str], current: str | None, next: str | None
    ) -> None:
        self.entries, self.order, self.current, self.next = entries, order, current, next


def parse(text: str) -> Entries:
    """efibootmgr's listing, with or without device paths."""
    entries = dict(re.findall(r"^Boot([0-9A-F]{4})[* ] ([^\t\n]*)", text, re.MULTILINE))
    value = dict(re.findall(r"^(BootCurrent|BootOrder|BootNext): (\S+)", text, re.MULTILINE))
    order = [number for number in value.get("BootOrder", "").split(",") if number]
    return Entries(
        {k: v.strip() for k, v in entries.items()}, order, value.get("BootCurrent"), value.get("BootNext")
    )


def ordered(order: Sequence[str], new: str, current: str | None) -> list[str]:
    """The boot order with the new entry right behind the one this boot came by, or first where that one is not in the order."""
    left = [number for number in order if number != new]
    if current in left:
        at = left.index(current)
        return [current, new, *left[:at], *left[at + 1 :]]
    return [new, *left]
