"""Action image: an image onto the disk that the plan means, grown, with its seed, ready to start from.

The order keeps the promise that nothing is written before it is clear that it fits, and that `done` is said only of a disk that
was read back. A machine that is switched off in between begins anew at its next start.
"""

import os
import time
from typing import TYPE_CHECKING, Any

from ramdisk_agent import finish, mounts, seed, stream
from ramdisk_agent.blockmap import Map
from ramdisk_agent.device import BLKRRPART, MIB, Device, Target, whole
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Work

if TYPE_CHECKING:
    from ramdisk_agent.layout import Made

MNT = "/mnt"
NODES = 15.0  # seconds until a partition of a new table must be there
APPEAR = 30.0  # seconds until a disk must be there: controllers may be slow
SETTLING, SETTLED = (
    "/tools.squashfs",
    "/run/settled",
)  # the ramdisk's init makes the second when all drivers are loaded


def action(work: Work) -> dict[str, Any]:
    """Carry out the plan `image`. The result says which disk was taken, and by `finish` how the machine goes on."""
    plan = work.plan
    mounts.umount(MNT)  # of a try before this one
    os.makedirs(MNT, exist_ok=True)
    _settle(work)
    if plan.get("layout"):
        return _into_layout(work)
    if plan["image"]["encoding"] not in ("raw", "zstd"):
        raise Failed(
            f"this image is {plan['image']['encoding']}, no disk: the plan must have a layout for it"
        )
    return _whole_disk(work, stream.read_map(work, plan["image"]))


def _whole_disk(work: Work, blocks: Map) -> dict[str, Any]:
    plan, image = work.plan, work.plan["image"]
    disk = _find_disk(work, blocks)
    work.say(f"image to {disk}: {blocks.used_mib} MiB in use of {blocks.size_mib} MiB")
    target = whole(disk.path)
    try:
        device = target.devices[0]
        stream.forget(work, device, blocks.size_mib * MIB)
        stream.write(work, image, blocks, target)
        _reread(device)
    finally:
        target.close()
    root = image.get("root") or _search_root(disk.path)
    part = partition(disk.path, root["number"])
    _appear(part, f"{disk.path} has no partition {root['number']}, the image's root, after writing")
    from ramdisk_agent import grow

    work.progress(91, f"growing {part}")
    grown = grow.partition(disk.path, root["number"])
    work.say(f"{part}: {grown.size // MIB} MiB" + (f", not grown: {grown.why}" if grown.why else ""))
    _appear(part, f"{part} went away when it was grown")
    subvolume = _mount(part, root)
    try:
        seed.write(work, MNT)
        if plan.get("firmware") == "uefi":
            _boot_entry(work, disk.path)
        arguments = f"root=UUID={_probe(part, 'UUID')}"
        if subvolume:
            arguments += f" rootflags=subvol={subvolume}"
        how = finish.prepare(work, MNT, arguments)
    finally:
        os.sync()
        mounts.umount(MNT)
    return {"disk": disk.path, "serial": disk.serial, "finish": how}


def _into_layout(work: Work) -> dict[str, Any]:
    """The same into partitions, arrays, volumes that the storage description wants."""
    from ramdisk_agent import layout, settle, tree

    image = work.plan["image"]
    blocks = stream.read_map(work, image) if image["encoding"] != layout.TREE else None
    work.progress(0, "making the layout")
    made = layout.make(work)
    if blocks is None:
        settle.mount_all(made)
        tree.write(work, image, settle.MNT)
    else:
        _write_pieces(work, blocks, made)
    work.progress(91, "moving the image's files to their file systems")
    arguments = settle.settle(work, made)
    try:
        seed.write(work, MNT)
        how = finish.prepare(work, MNT, " ".join(arguments))
    finally:
        settle.close(made)
    return {"disk": made.root, "serial": None, "finish": how}


def _write_pieces(work: Work, blocks: Map, made: "Made") -> None:
    devices: dict[str, Device] = {}
    for piece in made.pieces:
        if piece.device not in devices:
            devices[piece.device] = Device(piece.device)
    target = Target(
        made.root,
        list(devices.values()),
        lambda offset, size: [(devices[path], at, length) for path, at, length in made.locate(offset, size)],
    )
    try:
        stream.write(work, work.plan["image"], blocks, target)
    finally:
        target.close()


def _settle(work: Work) -> None:
    """Wait until the drivers are loaded: the first disk of half of the disks may be another one."""
    until = time.monotonic() + APPEAR
    while os.path.exists(SETTLING) and not os.path.exists(SETTLED) and time.monotonic() < until:
        work.progress(0, "waiting for the drivers of the disks")
        time.sleep(0.2)


def _find_disk(work: Work, blocks: Map) -> Any:
    """The disk that the plan means; disks may still be appearing. Raises Failed, which names what there is."""
    from ramdisk_agent import disks

    plan, until = work.plan, time.monotonic() + APPEAR
    while True:
        try:
            return disks.find(
                plan["disk"], disks.list_disks(), plan.get("keep") or [], need_bytes=blocks.size_mib * MIB
            )
        except Failed:
            # one that is there and too small or kept will not change
            if time.monotonic() > until or disks.list_disks():
                raise
        work.progress(0, "waiting for the disk to appear")
        time.sleep(0.5)


def partition(disk: str, number: int) -> str:
    """The device of a partition: /dev/sda3, /dev/nvme0n1p3."""
    return f"{disk}{'p' if disk[-1].isdigit() else ''}{number}"


def _reread(device: Device) -> None:
    """The kernel reads the new partition table; another may be looking at the disk, so more than once."""
    import fcntl

    for _ in range(20):
        try:
            fcntl.ioctl(device.fd, BLKRRPART)
            return
        except OSError as error:
            last = error
        time.sleep(0.5)
    raise Failed(f"the kernel does not read the new partition table of {device.path}: {last.strerror}")


def _appear(part: str, otherwise: str) -> None:
    until = time.monotonic() + NODES
    while not os.path.exists(part):
        if time.monotonic() > until:
            raise Failed(f"{otherwise}: is the image complete?")
        time.sleep(0.1)


def _probe(part: str, tag: str) -> str:
    return run(["blkid", "-p", "-o", "value", "-s", tag, part], check=False).strip()


def _search_root(disk: str) -> dict[str, Any]:
    """The partition with a root file system, of an image of which the daemon does not know it."""
    _appear(partition(disk, 1), f"{disk} has no partition after writing the image")
    name = disk.rpartition("/")[2]
    numbers = []
    for entry in os.listdir(f"/sys/block/{name}"):
        digits = entry.removeprefix(name).lstrip("p")
        if entry.startswith(name) and digits.isdecimal():
            numbers.append(int(digits))
    seen = []
    for number in sorted(numbers):
        part = partition(disk, number)
        root = {"number": number, "filesystem": _probe(part, "TYPE"), "label": _probe(part, "LABEL")}
        seen.append(f"{part} {root['filesystem'] or 'empty'}")
        if root["filesystem"] in ("ext4", "ext3", "xfs", "btrfs"):
            _mount(part, root)
            there = os.path.isdir(f"{MNT}/etc") and os.path.isdir(f"{MNT}/usr")
            run(["umount", MNT], check=False)
            if there:
                return root
    raise Failed(
        f"no partition of {disk} has a root file system after writing the image; found: {', '.join(seen)}"
    )


def _mount(part: str, root: dict[str, Any]) -> str:
    """The root file system on /mnt: of btrfs the subvolume that has it, whose name is given."""
    kind = root.get("filesystem") or _probe(part, "TYPE")
    run(["mount", "-t", kind, part, MNT])
    if kind == "btrfs" and not os.path.isdir(f"{MNT}/etc"):
        for name in ("root", "@", "@rootfs"):
            if os.path.isdir(f"{MNT}/{name}/etc"):
                run(["umount", MNT])
                run(["mount", "-t", kind, "-o", f"subvol={name}", part, MNT])
                return name
    return ""


def _boot_entry(work: Work, disk: str) -> None:
    from ramdisk_agent import efi_entries

    work.progress(97, "setting the boot entry of the firmware")
    efi_entries.efi_entry(work, disk)
