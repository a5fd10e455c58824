"""What an image must have to start, its own boot entries, and which of its partitions grow or are mounted."""

from pathlib import Path
from typing import Any

import pytest

from provisiond.inventory.storage import Storage
from provisiond.templating.disks import plan_storage
from ramdisk_agent import bootloader, efi_entries, grow, settle
from ramdisk_agent.work import Failed


def plan(firmware: str = "bios", **storage: Any) -> dict[str, Any]:
    """The settled plan of a description."""
    return plan_storage(Storage.model_validate(storage), firmware)


def test_packages_that_an_image_lacks(tmp_path: Path) -> None:
    """Named as Debian or RHEL name them, and only those that the layout needs."""
    crypt = plan(layout="lvm", mirror="/dev/vdb", encrypt=True)
    assert bootloader.lacking(crypt, tmp_path, "bios", "x86_64") == [
        "initramfs-tools", "mdadm", "lvm2", "cryptsetup", "cryptsetup-initramfs", "grub2-common", "grub-pc-bin",
    ]  # fmt: skip
    sized = plan("uefi", root="20GiB")
    for name in ("usr/sbin/grub-install", "usr/lib/grub/x86_64-efi/moddep.lst"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert bootloader.lacking(sized, tmp_path, "uefi", "x86_64") == []
    assert bootloader.lacking(sized, tmp_path, "uefi", "aarch64") == ["grub-efi-arm64-bin"]
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/dracut").touch()
    assert bootloader.lacking(crypt, tmp_path, "bios", "x86_64") == [
        "mdadm",
        "lvm2",
        "cryptsetup",
        "grub2-pc-modules",
    ]


def test_boot_entries_of_rhel() -> None:
    """Other arguments, $kernelopts resolved, and paths that suit a /boot of its own or none."""
    entry = (
        "title Rocky\nlinux /vmlinuz-5\ninitrd /initramfs-5.img $tuned_initrd\noptions $kernelopts quiet\n"
    )
    arguments = ["root=UUID=1", "rd.lvm.lv=system/root"]
    assert bootloader.boot_entry(entry, arguments, "root=/dev/sda1 ro", separate=False) == (
        "title Rocky\nlinux /boot/vmlinuz-5\ninitrd /boot/initramfs-5.img $tuned_initrd\n"
        "options root=UUID=1 rd.lvm.lv=system/root ro quiet\n"
    )
    again = bootloader.boot_entry("linux /boot/vmlinuz-5\n", arguments, separate=True)
    assert again == "linux /vmlinuz-5\n"


def table(*parts: tuple[int, int, str], label: str = "gpt") -> dict[str, Any]:
    """sfdisk's JSON of a table: (number, first sector, type)."""
    rows = [{"node": f"/dev/vda{n}", "start": start, "size": 2048, "type": kind} for n, start, kind in parts]
    return {"label": label, "device": "/dev/vda", "partitions": rows}


def test_only_the_last_partition_grows() -> None:
    """By its place on the disk, not its number: Debian's cloud images have / as number 1 behind 14 and 15."""
    cloud = table((1, 262144, "X"), (14, 2048, "Y"), (15, 8192, "Z"))
    assert grow.choose(cloud, None) == (True, 1)
    assert grow.choose(cloud, 15) == (False, 15)
    with pytest.raises(Failed, match="no partition 7"):
        grow.choose(cloud, 7)
    with pytest.raises(Failed, match="logical partitions"):
        grow.choose(table((1, 2048, "83"), (2, 4096, "f"), (5, 6144, "83"), label="dos"), 1)
    assert grow.number_of("/dev/nvme0n1p12", "/dev/nvme0n1") == 12


def test_where_an_images_other_partitions_are_mounted() -> None:
    """By the image's own fstab, else by the partition's type or label; never outside of /."""
    part = {"number": 16, "type": "0FC63DAF", "label": "BOOT", "uuid": "ab12", "partuuid": None, "name": None}
    assert settle.mount_of(part, {}) == "/boot"
    assert settle.mount_of({**part, "label": None}, {"UUID=ab12": "/home"}) == "/home"
    assert settle.mount_of({**part, "label": None}, {"UUID=ab12": "/../dev"}) is None
    assert settle.mount_of({**part, "label": None}, {}) is None
    assert settle.mount_of({**part, "type": efi_entries.ESP_TYPES[0]}, {}) == "/boot/efi"
