"""One disk being erased: its ways from the best to the last, each verified and recorded.

`auto`: the disk's own erasure (NVMe format or sanitize, ATA secure erase), else a discard after which it reads as zeros, else zeros
written over everything; looked at again in samples. `full`: zeros over everything, each block read back; before them the disk's own
erasure where it has one. `quick`: partition tables and signatures, and a discard where there is one.

Before anything is erased, random marks are written here and there: an erasure that did nothing cannot pass for one. A way that fails
is recorded as tried, and the next one is taken; nothing is called erased that was not verified.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from ramdisk_agent import firmware_erase
from ramdisk_agent.device import MIB, STEP, Device, buffer
from ramdisk_agent.disks import Disk
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Stopped

CHUNK = 8 * MIB
SAMPLES = 128  # MiB that are read back, beside the first and the last
MARK = 4096  # bytes: a sector of any disk
OPEN_TRIES = 10

Record = dict[str, Any]


class Marks:
    """Random blocks written over a disk before it is erased, at places that nobody knows beforehand."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.block = buffer(MARK)
        self.block[:] = os.urandom(MARK)
        last = max(0, (device.size - MIB) // MIB)
        chosen = random.SystemRandom().sample(range(1, last), min(SAMPLES, last - 1)) if last > 1 else []
        # the end of the disk is no whole MiB on most disks
        self.places = sorted(
            {0, *(place * MIB for place in chosen), max(0, device.size - MIB) // MARK * MARK}
        )

    def write(self) -> None:
        """Put them there. Raises Failed."""
        for place in self.places:
            self.device.write(place, self.block)
        self.device.sync()

    def check(self, *, zeros: bool) -> str:
        """What is wrong with the places now; '' when no mark is left and (with ``zeros``) nothing but zeros is there. Raises Failed."""
        found = buffer(MIB)
        self.device.sync()  # nothing may come from the page cache
        for place in self.places:
            size = min(MIB, self.device.size - place)
            self.device.read(place, found[:size])
            text = found[:size].tobytes()
            if self.block.tobytes() in text:
                return f"what was written at MiB {place // MIB} before is still there"
            if zeros and text.count(0) != size:
                return f"MiB {place // MIB} does not read as zeros"
        return ""


class Erasing:
    """One disk being erased, in a thread of its own. ``done`` of ``total`` bytes; ``doing`` in words; ``error`` why it could not be."""

    def __init__(self, disk: Disk, mode: str, alone: bool, tell: Callable[[Record], None]) -> None:
        self.disk, self.mode, self.alone, self._tell = disk, mode, alone, tell
        self.total = {"full": 2, "auto": 1, "quick": 1}[mode] * disk.size
        self.done = 0
        self.doing = "waiting"
        self.error = ""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name=disk.name, daemon=True)

    def _run(self) -> None:
        try:
            self._erase()
            self.doing, self.done = "erased", self.total
        except Stopped:
            self.doing = self.error = "stopped"
        except Failed as error:
            self.doing, self.error = "failed", str(error)
        except Exception as error:  # no thread may end without its disk being accounted for
            self.doing, self.error = "failed", f"{type(error).__name__}: {error}"

    def _erase(self) -> None:
        before = ""
        why: list[str] = []
        for method, way in self._ways(why):
            started, self.doing = _now(), method
            try:
                remark = way()
            except Failed as error:
                self._record(before + method, started, verified=False, message=str(error))
                why.append(f"{method}: {error}")
                continue
            if self.mode == "full" and method != "overwrite":
                before += f"{method}+"  # every byte is overwritten besides, and that is the record
                continue
            self._record(before + method, started, verified=True, message=remark or "; ".join(why))
            return
        raise Failed(f"{self.disk}: {'; '.join(why)}")

    def _ways(self, why: list[str]) -> Iterator[tuple[str, Callable[[], str]]]:
        """Name and function of each way, the best first. A way gives a remark for the record, or raises Failed."""
        if self.mode == "quick":
            if _discards(self.disk):
                yield "discard", self._discard
            yield "metadata", self._metadata
            return
        for method, way in firmware_erase.ways(self.disk, alone=self.alone, why=why):
            yield method, lambda way=way: self._by_itself(way)  # type: ignore[misc]
        if self.mode == "auto" and _discards(self.disk):
            yield "discard", self._discard
        yield "overwrite", self._overwrite

    def _by_itself(self, way: Callable[[], None]) -> str:
        with _opened(self.disk) as device:
            marks = Marks(device)
            marks.write()
        way()
        with _opened(self.disk) as device:
            marks.device = device
            if wrong := marks.check(zeros=False):
                raise Failed(f"the disk said that it is erased, but {wrong}")
            return "" if not marks.check(zeros=True) else "it does not read as zeros"

    def _discard(self) -> str:
        with _opened(self.disk) as device:
            marks = Marks(device)
            marks.write()
            if not self._over(device, lambda at, size: device.discard(at, size), STEP):
                raise Failed("the disk refused to discard")
            if wrong := marks.check(zeros=True):
                raise Failed(f"after the discard {wrong}")
        return ""

    def _overwrite(self) -> str:
        blank, self.done = buffer(CHUNK), 0

        with _opened(self.disk) as device:
            marks = Marks(device)
            marks.write()

            def write(at: int, size: int) -> bool:
                device.write(at, blank[:size])
                return True

            self._over(device, write, CHUNK)
            device.sync()
            if self.mode != "full":
                if wrong := marks.check(zeros=True):
                    raise Failed(f"after zeros were written {wrong}")
                return ""
            self.doing, found, zeros = "verify", buffer(CHUNK), bytes(CHUNK)

            def read(at: int, size: int) -> bool:
                device.read(at, found[:size])
                if found[:size] != zeros[:size]:
                    raise Failed(f"MiB {at // MIB} does not read as zeros after they were written")
                return True

            self._over(device, read, CHUNK)
        return "every byte was read back"

    def _metadata(self) -> str:
        with _opened(self.disk) as device:
            blank = buffer(MIB)
            places = [0, max(0, device.size - MIB) // MARK * MARK]
            run(["wipefs", "--all", "--force", "--quiet", self.disk.path], timeout=120)
            for place in places:
                device.write(place, blank[: min(MIB, device.size - place)])
            device.sync()
            found = buffer(MIB)
            for place in places:
                size = min(MIB, device.size - place)
                device.read(place, found[:size])
                if found[:size] != bytes(size):
                    raise Failed(f"MiB {place // MIB} does not read as zeros after they were written")
        return "partition tables and signatures only: what lay between them is still there"

    def _over(self, device: Device, each: Callable[[int, int], bool], step: int) -> bool:
        """``each(offset, size)`` over the whole disk, until one says False."""
        for at in range(0, device.size, step):
            if self.stopped.is_set():
                raise Stopped("called off")
            size = min(step, device.size - at)
            if not each(at, size):
                return False
            self.done += size
        return True

    def _record(self, method: str, started: str, *, verified: bool, message: str) -> None:
        disk = self.disk
        told = {
            "name": disk.name, "path": disk.path, "model": disk.model, "serial": disk.serial, "wwn": disk.wwn, "size": disk.size
        }  # fmt: skip
        self._tell(
            {"disk": told, "method": method[:32], "started": started, "ended": _now(), "verified": verified, "message": message[:1024]}
        )  # fmt: skip


class _opened:
    """The disk, closed again whatever happens; the kernel reads its partitions again afterwards."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def __enter__(self) -> Device:
        for tries in range(OPEN_TRIES):
            try:
                self.device = Device(self.disk.path)
                break
            except Failed:
                if tries == OPEN_TRIES - 1:
                    raise
                time.sleep(1)  # the kernel reads its partitions, or looks at it anew after a format
        return self.device

    def __exit__(self, *_: object) -> None:
        self.device.close()
        if self.device.block:
            run(["blockdev", "--rereadpt", self.disk.path], check=False)


def _discards(disk: Disk) -> bool:
    try:
        with open(f"/sys/block/{disk.name}/queue/discard_max_bytes") as file:
            return int(file.read()) > 0
    except (OSError, ValueError):
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
