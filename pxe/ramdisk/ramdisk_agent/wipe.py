"""Disks made blank before something new is written: whatever stands on them is stopped, and its signatures removed.

Only what stands on the disks named is touched, found by the holders that sysfs tells (Documentation/ABI: /sys/block/*/holders).
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ramdisk_agent import mounts
from ramdisk_agent.disks import MIB, SYS, Disk
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed

# no udev answers here: device-mapper, LVM and mdadm make their device nodes by themselves
os.environ.update(DM_DISABLE_UDEV="1", MDADM_NO_UDEV="1", LVM_SUPPRESS_FD_WARNINGS="1")


def partitions(name: str, sys: Path = SYS) -> list[str]:
    """The kernel's names of a disk's partitions, in their order on the disk."""
    found = [path.parent for path in (sys / "block" / name).glob(f"{name}*/partition")]
    return [path.name for path in sorted(found, key=lambda path: int((path / "start").read_text()))]


def holders(name: str, sys: Path = SYS) -> list[str]:
    """What stands on a disk: device-mapper devices and arrays, what stands on others first."""
    found: list[str] = []
    for part in [*partitions(name, sys), name]:
        _holders(part, found, sys)
    return list(dict.fromkeys(reversed(found)))  # the deepest were found last, whatever way led to them


def _holders(name: str, found: list[str], sys: Path) -> None:
    above = sys / "class/block" / name / "holders"
    for holder in sorted(path.name for path in above.iterdir()) if above.is_dir() else ():
        if holder in found:
            found.remove(holder)  # it stands on this one as well, so it is stopped before
        found.append(holder)
        _holders(holder, found, sys)


def _loops(devices: set[str], sys: Path) -> list[str]:
    """The loop devices that show a piece of these: sysfs tells of them as files only."""
    backing = {
        path.parent.parent.name: path.read_text().strip()
        for path in (sys / "block").glob("loop*/loop/backing_file")
    }
    return [f"/dev/{loop}" for loop, file in backing.items() if Path(file).name in devices]


def stop(disks: Sequence[Disk], sys: Path = SYS) -> None:
    """Unmount and stop all that stands on these disks. Raises Failed where something is in use."""
    for disk in disks:
        above = holders(disk.name, sys)
        devices = {*above, *partitions(disk.name, sys), disk.name}
        for where in reversed(mounts.of(devices)):
            mounts.umount(where)
        for loop in _loops(devices, sys):
            run(["losetup", "-d", loop])
        for holder in above:
            folder = sys / "class/block" / holder
            if (folder / "dm").is_dir():
                run(["dmsetup", "remove", "--retry", (folder / "dm/name").read_text().strip()])
            elif (folder / "md").is_dir():
                run(["mdadm", "--stop", f"/dev/{holder}"])


def wipe(disks: Sequence[Disk]) -> None:
    """Stop what stands on these disks and remove partition tables and signatures, of their partitions too.

    So no RAID, LVM or file system of an earlier life comes back in a partition that begins where an old one began. What the
    partitions held is not erased. Raises Failed.
    """
    stop(disks)
    for disk in disks:
        devices = [f"/dev/{part}" for part in partitions(disk.name)]
        run(["wipefs", "--all", "--force", "--quiet", *devices, disk.path], timeout=120)
        try:
            with open(disk.path, "r+b", buffering=0) as file:
                # GRUB's core behind an MBR, and what no probe knows; the last MiB held a backup table or RAID metadata
                for at in (0, max(0, disk.size - MIB)):
                    file.seek(at)
                    file.write(bytes(min(MIB, disk.size)))
                os.fsync(file.fileno())
        except OSError as error:
            raise Failed(f"{disk} cannot be written to: {error.strerror}; replace or exclude it") from error
        reread(disk.path)


def reread(disk: str) -> None:
    """Let the kernel read the partition table again. Somebody may hold the disk for a moment. Raises Failed."""
    for attempt in range(10):
        try:
            run(["blockdev", "--rereadpt", disk])
            return
        except Failed:
            if attempt == 9:
                raise
            time.sleep(0.3)
