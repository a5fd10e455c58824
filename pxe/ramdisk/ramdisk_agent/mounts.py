"""Mounting by whatever mount there is: busybox's knows neither -R nor options that are for systemd, and has no bounds for loop devices."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ramdisk_agent.run import run

_NOT_THE_KERNELS = re.compile(r"x-.*|comment=.*|defaults|nofail|_netdev|(no)?auto|(no)?users?|owner|group")
MOUNTINFO = Path("/proc/self/mountinfo")  # proc(5)


def mount(device: str, where: Path, filesystem: str, options: str | None = None) -> None:
    """Mount; options of an fstab that only mount(8) or systemd understands are left out. Raises Failed."""
    words = [word for word in (options or "").split(",") if word and not _NOT_THE_KERNELS.fullmatch(word)]
    run(["mount", "-t", filesystem, *(["-o", ",".join(words)] if words else []), device, str(where)])


def bind(source: str, where: Path) -> None:
    """The same directory at another place, without what is mounted in it. Raises Failed."""
    run(["mount", "-o", "bind", source, str(where)])


def umount(where: Path | str) -> None:
    """Unmount it and all that is mounted below it, the newest first. Nothing mounted there is no failure; in use is: Failed."""
    top = str(where).rstrip("/")
    for place in reversed([place for _, place in table() if place == top or place.startswith(f"{top}/")]):
        run(["umount", place])


def of(devices: Iterable[str]) -> list[str]:
    """Where these devices (the kernel's names, such as sda1 and dm-0) are mounted, in the order they were mounted in."""
    numbers = set()
    for device in devices:
        with contextlib.suppress(OSError):
            numbers.add(Path("/sys/class/block", device, "dev").read_text().strip())
    return [place for number, place in table() if number in numbers]


def table() -> list[tuple[str, str]]:
    """(device as MAJOR:MINOR, mount point) of every mount, in the order they were made."""
    lines = [line.split() for line in MOUNTINFO.read_text().splitlines()]
    return [
        (words[2], re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])) for words in lines
    ]


@contextlib.contextmanager
def window(device: str, at: int) -> Iterator[str]:
    """What begins at byte `at` of a device that may be mounted, as a device of its own. Raises Failed.

    A loop device: device-mapper takes none that is mounted. It can be written to, so that a journal can be gone through.
    """
    loop = run(["losetup", "-f"]).strip()
    run(["losetup", "-o", str(at), loop, device])
    try:
        yield loop
    finally:
        run(["losetup", "-d", loop])
