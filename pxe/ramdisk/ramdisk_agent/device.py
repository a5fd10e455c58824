"""A disk as it is written and read past the page cache.

O_DIRECT, since what is verified must come from the disk, and since the page cache costs an emulated processor more than the
transfer (measured under TCG: 300 MiB/s written instead of 104, 3700 read instead of 283). A regular file may stand for the disk.
"""

import fcntl
import mmap
import os
import stat
from collections.abc import Callable

from ramdisk_agent.work import Failed

MIB = 1 << 20
# linux/fs.h
BLKRRPART, BLKGETSIZE64, BLKFLSBUF = 0x125F, 0x80081272, 0x1261
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
STEP = 1 << 30  # bytes a discard or clearing takes at once, so that progress is told and a stop is heard

EINVAL, EBUSY = 22, 16


def buffer(size: int) -> memoryview:
    """Memory that O_DIRECT takes: it begins at a page."""
    return memoryview(mmap.mmap(-1, size))


class Device:
    """An open disk, or a part of one. Offsets and sizes in bytes. Every failure is Failed and names the disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.block = stat.S_ISBLK(os.stat(path).st_mode)
            # O_EXCL: not while something of this disk is mounted or part of an array (open(2))
            exclusive = os.O_EXCL if self.block else 0
            try:
                self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT | exclusive)
                self.direct = True
            except OSError as error:
                if error.errno != EINVAL:  # no direct access, such as on tmpfs
                    raise
                self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | exclusive)
                self.direct = False
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
        except OSError as error:
            busy = ": something on it is mounted or part of an array" if error.errno == EBUSY else ""
            raise Failed(f"cannot open {path}: {error.strerror}{busy}") from None

    def write(self, offset: int, data: memoryview) -> None:
        """All of `data` at `offset`."""
        while data:
            try:
                wrote = os.pwrite(self.fd, data, offset)
            except OSError as error:
                if self._indirect(error):
                    continue
                raise Failed(
                    f"writing to {self.path} at MiB {offset // MIB} failed: {error.strerror}; replace the disk"
                ) from None
            data, offset = data[wrote:], offset + wrote

    def read(self, offset: int, into: memoryview) -> None:
        """What the disk itself has at `offset`, all of `into`."""
        if not self.direct:
            os.fdatasync(self.fd)
            os.posix_fadvise(self.fd, offset, len(into), os.POSIX_FADV_DONTNEED)
        while into:
            try:
                got = os.preadv(self.fd, [into], offset)
            except OSError as error:
                if self._indirect(error):
                    continue
                raise Failed(
                    f"reading back from {self.path} at MiB {offset // MIB} failed: {error.strerror}; replace the disk"
                ) from None
            if not got:
                raise Failed(f"{self.path} ends at byte {offset}, within what was written to it")
            into, offset = into[got:], offset + got

    def _indirect(self, error: OSError) -> bool:
        """Whether to try again through the page cache: partitions of an image may begin where O_DIRECT cannot."""
        if error.errno != EINVAL or not self.direct:
            return False
        self.direct = False
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        return True

    def discard(self, offset: int, size: int) -> bool:
        """Tell the disk that it may forget this range; whether it can."""
        return self.block and self._ioctl(BLKDISCARD, offset, size)

    def zero(self, offset: int, size: int) -> None:
        """Make the range read as zeros: by the disk's own means where it has them, else written by the kernel."""
        if self.block and self._ioctl(BLKZEROOUT, offset, size):
            return
        blank = buffer(min(size, 4 * MIB))
        while size:
            part = min(size, len(blank))
            self.write(offset, blank[:part])
            offset, size = offset + part, size - part

    def _ioctl(self, number: int, offset: int, size: int) -> bool:
        try:
            fcntl.ioctl(self.fd, number, offset.to_bytes(8, "little") + size.to_bytes(8, "little"))
        except OSError:
            return False
        return True

    def sync(self) -> None:
        """Everything written is on the medium."""
        try:
            os.fsync(self.fd)
            if self.block:
                fcntl.ioctl(self.fd, BLKFLSBUF)
        except OSError as error:
            raise Failed(f"writing to {self.path} failed: {error.strerror}; replace the disk") from None

    def close(self) -> None:
        os.close(self.fd)


Ranges = list[tuple[Device, int, int]]
"""Consecutive bytes of an image: (device, offset on it, size)."""


class Target:
    """Where an image goes: `locate(offset, size)` tells the ranges of its bytes. `name` is for messages."""

    def __init__(self, name: str, devices: list[Device], locate: Callable[[int, int], Ranges]) -> None:
        self.name, self.devices, self.locate = name, devices, locate

    def sync(self) -> None:
        for device in self.devices:
            device.sync()

    def close(self) -> None:
        for device in self.devices:
            device.close()


def whole(path: str) -> Target:
    """A disk that gets the image as it is."""
    device = Device(path)
    return Target(path, [device], lambda offset, size: [(device, offset, size)])
