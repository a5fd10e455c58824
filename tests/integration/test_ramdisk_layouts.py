"""LVM, RAID and LUKS as the real ramdisk makes them: its kernel and tools on three disks of an emulated machine, one layout after the other.

The image is a small tree that has what the agent asks of one, on partitions as Ubuntu's cloud images have them: / and a /boot beside
it. Each case also has to clear away what the one before left mounted and running.
"""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from provisiond.inventory.storage import Storage
from provisiond.media.partitions import read_partitions
from provisiond.templating.disks import needs_layout, plan_storage
from tests.lab.kit.lab import build

HERE = Path(__file__).parent / "ramdisk_guest"
MIB = 1 << 20
ROOT_MIB, BOOT_MIB = 40, 12
NEEDED = ("qemu-system-x86_64", "mke2fs", "sfdisk", "blkid", "cpio")

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of the image belong to others"),
    pytest.mark.skipif(
        not all(shutil.which(program) for program in NEEDED), reason=f"needs {', '.join(NEEDED)}: make apt"
    ),
]

A, B, C = ({"serial": serial} for serial in ("one", "two", "three"))


def parts(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Partitions of one disk; what has no size takes the rest."""
    return [{"size": "rest", **row} for row in rows]


# name: (description, firmware, text that files must have, MiB that is mounted at least)
CASES: dict[str, tuple[dict[str, Any], str, dict[str, str], dict[str, int]]] = {
    "plain": (
        {
            "disks": [
                {
                    "name": "a",
                    "match": A,
                    "partitions": parts(
                        {"name": "swap", "size": "32MiB", "filesystem": "swap"},
                        {"name": "root", "size": "200MiB", "filesystem": "ext4", "mount": "/"},
                        {"name": "home", "filesystem": "ext4", "mount": "/home", "options": "nodev,noatime"},
                    ),
                }
            ]
        },
        "bios",
        {"etc/fstab": "/home ext4 nodev,noatime 0 2"},
        {"/": 150, "/home": 1500},
    ),
    "lvm": (
        {"layout": "lvm", "disk": A, "swap": "32MiB", "root": "300MiB"},
        "uefi",
        {"etc/fstab": "/boot/efi vfat umask=0077", "boot/efi/EFI/old/x.efi": "loader"},
        {"/": 250, "/boot": 900, "/boot/efi": 500},
    ),
    "raid1": (
        {"disk": A, "mirror": B, "swap": "32MiB", "root": "rest"},
        "bios",
        {"etc/mdadm/mdadm.conf": "ARRAY /dev/md/root metadata=1.2 UUID="},
        {"/": 1500},
    ),
    "lvm on luks on raid1": (
        {"layout": "lvm", "disk": A, "mirror": B, "swap": "32MiB", "encrypt": True},
        "bios",
        {"etc/crypttab": "pv_crypt UUID=", "etc/mdadm/mdadm.conf": "/dev/md/pv"},
        {"/": 700, "/boot": 900},
    ),
    "raid5 beside lvm over two disks": (
        {
            "disks": [
                {
                    "name": "a",
                    "match": A,
                    "partitions": parts({"name": "r1", "size": "300MiB"}, {"name": "p1"}),
                },
                {
                    "name": "b",
                    "match": B,
                    "partitions": parts({"name": "r2", "size": "300MiB"}, {"name": "p2"}),
                },
                {
                    "name": "c",
                    "match": C,
                    "partitions": parts(
                        {"name": "r3", "size": "300MiB"},
                        {"name": "boot", "size": "200MiB", "filesystem": "ext4", "mount": "/boot"},
                        {"name": "var", "filesystem": "btrfs", "mount": "/var"},
                    ),
                },
            ],
            "raids": [
                {
                    "name": "srv",
                    "level": 5,
                    "members": ["r1", "r2", "r3"],
                    "filesystem": "xfs",
                    "mount": "/srv",
                }
            ],
            "volume_groups": [
                {
                    "name": "my-group",
                    "members": ["p1", "p2"],
                    "volumes": [
                        {"name": "root-vol", "size": "rest", "filesystem": "ext4", "mount": "/"},
                        {"name": "home", "size": "64MiB", "filesystem": "ext4", "mount": "/home"},
                    ],
                }
            ],
        },
        "bios",
        {"etc/fstab": "/srv xfs defaults 0 0", "var/lib/state": "moved"},
        {"/": 2000, "/srv": 400, "/var": 1000, "/home": 40},
    ),
}


def make_image(folder: Path) -> Path:
    """A disk image with a BIOS boot partition, an EFI system partition, /boot and, last, /, and files of others in them."""
    root = folder / "root"
    for name in (
        "etc/mdadm",
        "home/alice",
        "usr/bin",
        "var/lib",
        "srv",
        "boot",
        "boot.part",
        "lib64",
        "usr/lib",
    ):
        (root / name).mkdir(parents=True)
    (root / "boot.part").rename(folder / "boot")
    (folder / "boot/vmlinuz").write_text("kernel\n")
    (root / "etc/fstab").write_text("LABEL=root / ext4 defaults 0 1\nLABEL=BOOT /boot ext4 defaults 0 2\n")
    (root / "var/lib/state").write_text("moved\n")
    file = root / "home/alice/file"
    file.write_text("hello\n")
    file.chmod(0o640)
    os.chown(file, 1000, 1000)
    os.setxattr(file, "user.tag", b"kept")
    os.link(file, root / "home/alice/link")
    cp = shutil.which("cp")
    assert cp
    shutil.copy(cp, root / "usr/bin/cp")
    for line in subprocess.run(["ldd", cp], capture_output=True, text=True, check=True).stdout.splitlines():
        for word in line.split():
            if word.startswith("/"):
                target = root / word[1:]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, target)
    files = {}
    for label, tree, size in (("root", root, ROOT_MIB), ("BOOT", folder / "boot", BOOT_MIB)):
        files[label] = folder / f"{label}.ext4"
        with files[label].open("wb") as file_:
            file_.truncate(size * MIB)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", label, "-d", tree, files[label]], check=True)
    esp, loader = folder / "esp.fat", folder / "x.efi"
    loader.write_text("loader")
    with esp.open("wb") as file_:
        file_.truncate(8 * MIB)
    subprocess.run(["mkfs.vfat", "-n", "ESP", esp], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mmd", "-i", esp, "::EFI", "::EFI/old"], check=True)
    subprocess.run(["mcopy", "-i", esp, loader, "::EFI/old/x.efi"], check=True)
    image = folder / "image.raw"
    rows = [
        "label: gpt",
        "size=1MiB, type=21686148-6449-6E6F-744E-656564454649",
        "size=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        f"size={BOOT_MIB}MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        f"size={ROOT_MIB}MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    ]
    with image.open("wb") as file_:
        file_.truncate((1 + 1 + 8 + ROOT_MIB + BOOT_MIB + 1) * MIB)
    subprocess.run(["sfdisk", "-q", image], input="\n".join(rows), text=True, check=True)
    for at, part in ((2, esp), (10, files["BOOT"]), (10 + BOOT_MIB, files["root"])):
        subprocess.run(
            ["dd", f"if={part}", f"of={image}", "bs=1M", f"seek={at}", "conv=notrunc,sparse", "status=none"],
            check=True,
        )
    return image


def plans(image: Path) -> dict[str, Any]:
    """The plan of each case, as the daemon gives it, and what is expected of it."""
    found = asyncio.run(read_partitions(image))
    root = next(part for part in found if part["mount"] == "/")
    size = image.stat().st_size // MIB
    data = image.read_bytes()
    used = [[mib, 1] for mib in range(size) if any(data[mib * MIB : (mib + 1) * MIB])]
    wanted = {}
    for name, (description, firmware, expect, mounts) in CASES.items():
        layout = plan_storage(Storage.model_validate(description), firmware, root["filesystem"])
        assert needs_layout(layout) or name == "plain" or layout["raids"]
        wanted[name] = {
            "image": {"encoding": "raw", "size_mib": size, "root": root, "partitions": found},
            "layout": layout,
            "keep": [],
            "firmware": firmware,
            "hostname": "node1",
            "passphrase": "correct horse" if layout["encrypted"] else None,
            "map": used,
            "expect": expect,
            "mounts": mounts,
        }
    return wanted


def archive(folder: Path, image: Path) -> bytes:
    """What is unpacked over the ramdisk: the cases, whoever runs them, and the agent as it is now."""
    tree = folder / "over"
    (tree / "test").mkdir(parents=True)
    for name in ("init", "cases.py"):
        shutil.copy(HERE / name, tree / "test" / name)
    (tree / "test/init").chmod(0o755)
    agent = Path(__file__).parents[2] / "pxe/ramdisk/ramdisk_agent"
    shutil.copytree(agent, tree / "test/ramdisk_agent", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "test/path.json").write_text('["/test"]')
    (tree / "test/cases.json").write_text(json.dumps(plans(image)))
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    return subprocess.run(
        ["cpio", "--quiet", "--null", "-o", "-H", "newc"],
        input=names.encode(),
        cwd=tree,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def test_layouts_in_the_ramdisk(tmp_path: Path) -> None:
    """Plain, LVM, RAID 1, LVM on LUKS on RAID 1, RAID 5: made, written, stopped, found again; files, owners, sizes, tables are right;
    at last the image as a whole on a larger disk, whose last partition and file system grow."""
    ramdisk = build("pxe/ramdisk/build", print)
    image = make_image(tmp_path)
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes((ramdisk / "initrd.img").read_bytes() + archive(tmp_path, image))
    words = [
        "nice",
        "-n",
        "5",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
        "-nic",
        "none",
    ]
    words += [
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
        "-kernel",
        str(ramdisk / "vmlinuz"),
        "-initrd",
        str(initrd),
    ]
    words += ["-append", "console=ttyS0 quiet mitigations=off rdinit=/test/init"]
    for serial in ("one", "two", "three", "image"):
        disk = image if serial == "image" else tmp_path / serial
        if serial != "image":
            with disk.open("wb") as file:
                file.truncate(2 << 30)
        words += ["-drive", f"if=none,id={serial},file={disk},format=raw,cache=unsafe,discard=unmap"]
        words += ["-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    said = subprocess.run(
        words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=800
    )
    print(said.stdout[-20000:], said.stderr)
    assert [name for name in [*CASES, "grow"] if f"OK {name} " in said.stdout] == [*CASES, "grow"]
    assert "correct horse" not in said.stdout
