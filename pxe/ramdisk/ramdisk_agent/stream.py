"""An image onto a disk: only its used blocks travel, raw or in zstd frames; a broken transfer goes on at the last whole piece.

A piece is `frame_mib` MiB of the used blocks, one after the other: what one zstd frame has. Pieces are counted when they are
whole, so a connection may end, stall or begin anew anywhere, and any sequence of that leaves the same bytes on the disk.
"""

import time
from collections.abc import Callable
from typing import Any

from ramdisk_agent import sources
from ramdisk_agent.blockmap import Map
from ramdisk_agent.device import MIB, STEP, Device, Target
from ramdisk_agent.http import Answer, Broken, ask
from ramdisk_agent.pipeline import Pipeline
from ramdisk_agent.work import Failed, Work

PATIENCE = 900.0  # seconds without a whole piece before the work fails
REFUSALS = 5  # answers of 4xx, one after the other, before the work fails
LONGEST_PAUSE = 10.0


def read_map(work: Work, image: dict[str, Any]) -> Map:
    """Fetch the map of the plan's `image`."""
    text = "fetching the block map"
    return Map(image, work.client.fetch_json(image["map"], lambda: work.progress(0, text)))


def write(work: Work, image: dict[str, Any], blocks: Map, target: Target) -> None:
    """The image onto its disks, zeros where it has no block, and all of it read back.

    `image` is the plan's: {"url","encoding","sha256",...}. Progress goes from 0 to 90. Raises Failed, Stopped.
    """
    began = time.monotonic()
    for offset, size in blocks.gaps():
        for device, at, length in target.locate(offset, size):
            clear(work, device, at, length)
    cleared = time.monotonic()
    digest = _Transfer(work, image, blocks, target).run()
    target.sync()
    work.say(
        f"{target.name}: gaps cleared in {cleared - began:.1f} s, "
        f"{blocks.used_mib} MiB written and read back in {time.monotonic() - cleared:.1f} s"
    )
    if digest != image["sha256"]:
        raise Failed(
            f"what {target.name} has after writing has SHA-256 {digest}, the image {image['sha256']}: bad disk, memory or "
            "network, or an image that was changed; verify the image and test the machine"
        )


def clear(work: Work, device: Device, offset: int, size: int) -> None:
    """Make a range read as zeros, and tell how far it is."""
    for at in range(offset, offset + size, STEP):
        work.progress(0, f"clearing {device.path}", at, device.size)
        device.zero(at, min(STEP, offset + size - at))


def forget(work: Work, device: Device, beyond: int) -> None:
    """What an earlier life left on a whole disk: discarded where it can be, and zeros at its end.

    There may be a backup partition table, or the superblock of an array. `beyond`: bytes from the beginning that the image
    fills.
    """
    for at in range(0, device.size, STEP):
        work.progress(0, f"clearing {device.path}", at, device.size)
        if not device.discard(at, min(STEP, device.size - at)):
            break
    last = max(beyond, (device.size - MIB) // 4096 * 4096)
    if last < device.size:
        device.zero(last, device.size - last)


class _Transfer:
    """One image on its way to one disk, over as many connections as it takes."""

    def __init__(self, work: Work, image: dict[str, Any], blocks: Map, target: Target) -> None:
        self.work, self.image, self.blocks, self.target = work, image, blocks, target
        self.pieces = blocks.pieces(target)
        self.total = blocks.used_mib * MIB
        self.etag = ""
        self.zstd = image["encoding"] == "zstd"
        self.size = sum(blocks.frames) if self.zstd else self.total  # bytes that travel
        self.trouble = ""
        self.pipeline = Pipeline(self.pieces, min(blocks.piece, self.total))

    def tick(self) -> None:
        """Tell where it is. Raises Stopped."""
        pipe = self.pipeline
        done = min(self.total, pipe.written * self.blocks.piece)
        checked = min(self.total, pipe.verified * self.blocks.piece)
        percent = 45 * (done + checked) // self.total
        text = f"writing to {self.target.name}{self.trouble}"
        if pipe.written == len(self.pieces):
            text, done = f"checking {self.target.name}", checked
        self.work.progress(percent, text, done, self.total)

    def run(self) -> str:
        """Until all is on the disk: SHA-256 of what the disk has."""
        pipe = self.pipeline
        try:
            since, before, tries, refusals = time.monotonic(), 0, 0, 0
            while pipe.received < len(self.pieces):
                try:
                    self._connection()
                    continue
                except _Refusal as error:
                    why, refusals = str(error), refusals + 1
                except (
                    _Busy
                ) as error:  # others are served first: as long as the daemon says so, there is no hurry
                    self.trouble = f" (waiting for a turn: {error})"
                    self._pause(error.seconds)
                    since, refusals = time.monotonic(), 0
                    continue
                except OSError as error:
                    why, refusals = str(error) or type(error).__name__, 0
                if pipe.received > before:
                    since, before, tries = time.monotonic(), pipe.received, 0
                tries += 1
                at = f"{min(self.total, pipe.received * self.blocks.piece) // MIB} of {self.total // MIB} MiB"
                self.work.say(f"the transfer of {self.image['url']} broke off after {at}: {why}")
                if refusals >= REFUSALS or time.monotonic() - since > PATIENCE:
                    raise Failed(
                        f"the image cannot be fetched from {self.image['url']}: it broke off after {at}: {why}; "
                        "is the server that the URL names up, and does it have the image?"
                    )
                self.trouble = f" (asking again: {why})"
                self._pause(min(LONGEST_PAUSE, 0.25 * 2 ** min(tries, 6)))
            return pipe.finish(self.tick)
        finally:
            pipe.stop()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.tick()
            time.sleep(min(1.0, left))

    def _connection(self) -> None:
        """Ask for what is missing and take pieces until none is missing. Raises OSError when the connection ends before."""
        first = self.pipeline.received
        start = sum(self.blocks.frames[:first]) if self.zstd else first * self.blocks.piece
        url = self.image["url"]
        headers = self.work.client.headers_for(url)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag:
                headers["If-Range"] = self.etag
        self.tick()
        try:
            answer = ask("GET", url, headers, timeout=sources.STALL)
        except ValueError as error:
            raise Failed(str(error)) from None
        try:
            self._check(answer, start)
            source = sources.unpacked if self.zstd else sources.plain
            self.trouble = ""
            source(answer, start if answer.status == 200 else 0, self._take, self.tick)
        finally:
            answer.close()

    def _check(self, answer: Answer, start: int) -> None:
        """Whether the answer is the part of the image that was asked for."""
        url, etag = self.image["url"], answer.headers.get("etag", "")
        if 400 <= answer.status < 500 and answer.status not in (408, 416, 425, 429):
            raise _Refusal(answer.reason)
        if answer.status == 503 and answer.headers.get("retry-after", "").isdecimal():
            raise _Busy(answer.reason, int(answer.headers["retry-after"]))
        if answer.status not in (200, 206, 416):
            raise Broken(answer.reason)
        size: int | None = answer.left
        if answer.status != 200:  # Content-Range: bytes START-END/TOTAL, or bytes */TOTAL with 416
            given, _, whole = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
            if answer.status == 206 and given.partition("-")[0] != str(start):
                raise Broken(f"bytes {given} came, from {start} were asked for")
            size = int(whole) if whole.isdecimal() else None
        if size is not None and size != self.size:
            raise Failed(f"{url} has {size} bytes, its block map speaks of {self.size}: add the image again")
        if answer.status == 416:
            raise Broken(answer.reason)
        if self.etag and etag and etag != self.etag:
            raise Failed(f"the image at {url} was changed while it was written: deploy again")
        self.etag = etag

    def _take(self, read_full: Callable[[memoryview], None]) -> None:
        """Pieces, until none is missing."""
        pipe = self.pipeline
        while pipe.received < len(self.pieces):
            read_full(pipe.free(self.tick))
            pipe.filled()


class _Refusal(OSError):
    """The server says that there is no such image for us."""


class _Busy(OSError):
    """The server serves others first: ask again in so many seconds."""

    def __init__(self, reason: str, seconds: int) -> None:
        super().__init__(reason)
        self.seconds = max(1, min(seconds, 60))
