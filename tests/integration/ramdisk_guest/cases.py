"""Runs in the ramdisk: each layout of /test/cases.json is made, written, settled and stopped, then put together again and looked at.

It prints OK NAME or FAIL NAME and why. The image is the disk with the serial number `image`. GRUB and the initramfs are left out: the
image of this test is no whole operating system.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = json.loads(Path("/test/path.json").read_text())

from ramdisk_agent import bootloader, disks, filesystems, grow, layout, mounts, settle, wipe  # noqa: E402
from ramdisk_agent.log import LOG  # noqa: E402
from ramdisk_agent.run import run  # noqa: E402

STARTED = time.monotonic()
MNT = Path("/mnt")


class Work:
    """What the agent's work is to a layout."""

    def __init__(self, plan):
        self.plan = plan

    def say(self, text):
        """Onto the console."""
        print(f"{time.monotonic() - STARTED:6.1f} {text}", flush=True)

    def progress(self, *_):
        """Nobody asks."""


def write_image(made, extents, source):
    """The used blocks to where the layout wants them, and read back; zeros elsewhere."""
    files = {device: os.open(device, os.O_RDWR) for device in {piece.device for piece in made.pieces}}
    image = os.open(source, os.O_RDONLY)
    used = {mib for first, count in extents for mib in range(first, first + count)}
    size = sum(piece.size for piece in made.pieces) >> 20
    for mib in range(size):
        data = os.pread(image, 1 << 20, mib << 20) if mib in used else bytes(1 << 20)
        for device, at, length in made.locate(mib << 20, 1 << 20):
            assert os.pwrite(files[device], data[:length], at) == length
            data = data[length:]
    for file in files.values():
        os.fsync(file)
        os.close(file)
    os.close(image)


def look(plan, where):
    """Whether everything is where it belongs, as the machine would find it: by its own fstab."""
    for line in (where / "etc/fstab").read_text().splitlines():
        source, mount, kind, options, *_ = line.split()
        if source.startswith("UUID=") and mount not in ("/", "none"):
            mounts.mount(
                run(["blkid", "-U", source.removeprefix("UUID=")]).strip(), where / mount[1:], kind, options
            )
        if mount == "none":
            device = run(["blkid", "-U", source.removeprefix("UUID=")]).strip()
            assert run(["blkid", "-p", "-o", "value", "-s", "TYPE", device]).strip() == "swap", device
    for path, text in plan["expect"].items():
        found = (where / path).read_text()
        assert text in found, f"{path} has {found!r}"
    file, link = (where / "home/alice/file").stat(), (where / "home/alice/link").stat()
    assert (file.st_uid, file.st_mode & 0o7777, file.st_ino) == (1000, 0o640, link.st_ino), file
    assert os.getxattr(where / "home/alice/file", "user.tag") == b"kept"
    assert (where / "boot/vmlinuz").read_text() == "kernel\n"
    assert not (where / ".provisiond").exists()
    mounted = {place for _, place in mounts.table()}
    for mount, least in plan["mounts"].items():
        place = str(where / mount.strip("/")) if mount != "/" else str(where)
        assert place in mounted, (mount, mounted)
        state = os.statvfs(place)
        assert state.f_blocks * state.f_frsize >= least << 20, (mount, state)


def again(plan, root):
    """Put together what is on the disks without knowing how it was made, and mount / of it. `root` is the kernel's root=."""
    if plan["layout"]["raids"]:
        run(["mdadm", "--assemble", "--scan"], check=False)
    locked = [block for block in plan["layout"]["blocks"] if block["encrypt"]]
    for number, device in enumerate(
        run(["blkid", "-t", "TYPE=crypto_LUKS", "-o", "device"]).split() if locked else ()
    ):
        run(["cryptsetup", "open", "--key-file", "-", device, f"again{number}"], input=plan["passphrase"])
    for group in plan["layout"]["volume_groups"]:
        settings = "activation { udev_sync=0 udev_rules=0 monitoring=0 } devices { use_devicesfile=0 }"
        run(["lvm", "vgchange", "-q", "-ay", group["name"], "--config", settings])
    if root.startswith("UUID="):
        root = run(["blkid", "-U", root.removeprefix("UUID=")]).strip()
    mounts.mount(root, MNT, plan["layout"]["root"]["filesystem"])


def case(plan, source):
    """One layout from the beginning to the end."""
    work = Work(plan)
    made = layout.make(work)
    work.say("made")
    write_image(made, plan["map"], source)
    work.say("written")
    arguments = settle.settle(work, made)
    assert arguments[0].startswith("root="), arguments
    settle.close(made)
    work.say("settled and stopped")
    left = [
        path.name
        for disk in made.disks.values()
        for path in Path("/sys/block", disk.name).glob("*/holders/*")
    ]
    assert not left, left
    again(plan, arguments[0].removeprefix("root="))
    look(plan, MNT)
    # it is left as it is: the next case has to clear it away


def whole_disk(plan, source):
    """The image as it is on the third disk: the partition of / grows, then its file system."""
    disk = next(disk for disk in disks.list_disks() if disk.serial == "three")
    wipe.wipe([one for one in disks.list_disks() if one.serial in ("one", "two", "three")])
    Path(disk.path).write_bytes(Path(source).read_bytes())
    wipe.reread(disk.path)
    began = time.monotonic()
    grown = grow.grow(disk.path, plan["image"]["root"])
    print(f"grown in {time.monotonic() - began:.1f} s: {grown}", flush=True)
    assert grown.grown and grown.size > disk.size - (100 << 20), grown
    assert not grow.grow(disk.path, plan["image"]["root"]).grown
    assert "No errors detected" in run(["sfdisk", "--verify", disk.path])
    mounts.mount(grown.device, MNT, "ext4")
    filesystems.grow(grown.device, str(MNT), "ext4")
    state = os.statvfs(MNT)
    assert state.f_blocks * state.f_frsize > disk.size * 0.9, state
    mounts.umount(MNT)


def main():
    """All cases, until one fails."""
    bootloader.require = lambda *_: None
    bootloader.install = lambda *_: []
    source = next(disk for disk in disks.list_disks(everything=True) if disk.serial == "image").path
    plans = json.loads(Path("/test/cases.json").read_text())
    for name, plan in {**plans, "grow": next(iter(plans.values()))}.items():
        try:
            (whole_disk if name == "grow" else case)(plan, source)
        except BaseException as error:
            print(
                run(
                    ["sh", "-c", "losetup -a; cat /proc/mounts; ls -l /proc/*/fd | grep /dev/vd"], check=False
                )
            )
            print(LOG.text(8000), traceback.format_exc(), f"FAIL {name}: {error}", sep="\n", flush=True)
            return
        print(f"OK {name} {time.monotonic() - STARTED:.1f}", flush=True)
    print("END", flush=True)


main()
