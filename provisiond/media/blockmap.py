"""The map of a disk image: which MiB are used, and where each compressed frame of them begins.

A machine is sent the used blocks one after another. Compressed, every frame holds FRAME_MIB of them (the last one the rest) and
is a whole Zstandard frame (RFC 8878), so that a transfer can be taken up again at any of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from provisiond.media.fetch import MediaError

MIB = 1 << 20
FRAME_MIB = 8

Extents = Sequence[tuple[int, int]]
"""(first MiB, number of MiB) of each run of used blocks, ascending."""


@dataclass(frozen=True)
class BlockMap:
    """``size_mib`` of the disk, its used ``extents``, and the compressed bytes of each frame (none: there is no such form)."""

    size_mib: int
    extents: tuple[tuple[int, int], ...]
    frames: tuple[int, ...] = ()

    @property
    def used_mib(self) -> int:
        return sum(count for _, count in self.extents)

    def with_frames(self, frames: Sequence[int]) -> BlockMap:
        """The same with the sizes of its compressed frames."""
        return replace(self, frames=tuple(frames))

    def json(self) -> str:
        """What lies beside the image, and what the ramdisk fetches."""
        return json.dumps(
            {
                "size_mib": self.size_mib,
                "extents": [list(extent) for extent in self.extents],
                "frame_mib": FRAME_MIB,
                "frames": list(self.frames),
            },
            separators=(",", ":"),
        )

    def lines(self) -> str:
        """One line `offset_mib count_mib` for each run, as maps were kept by the first releases: images are told apart by it."""
        return "".join(f"{first} {count}\n" for first, count in self.extents)


def map_path(raw: Path) -> Path:
    """Where the map of a raw image lies."""
    return raw.with_name(f"{raw.name}.map")


def read_map(raw: Path) -> BlockMap:
    """The map of a raw image. Raises MediaError when it is missing or broken. Blocks."""
    try:
        text = map_path(raw).read_text()
        if text.startswith("{"):
            return _parsed(text)
        # images of the first releases: lines, and no compressed form
        extents = tuple((int(first), int(count)) for first, count in map(str.split, text.splitlines()))
        return BlockMap(raw.stat().st_size // MIB, extents)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MediaError(f"image {raw.name} has no usable block map; add the image again") from error


def _parsed(text: str) -> BlockMap:
    given = json.loads(text)
    if given["frame_mib"] != FRAME_MIB:
        raise ValueError("frames of another size")
    extents = tuple((int(first), int(count)) for first, count in given["extents"])
    frames = tuple(int(size) for size in given["frames"])
    found = BlockMap(int(given["size_mib"]), extents, frames)
    if frames and len(frames) != -(-found.used_mib // FRAME_MIB):
        raise ValueError("frames do not fit the blocks")
    return found


def used_extents(raw: Path) -> tuple[tuple[int, int], ...]:
    """The runs of MiB that hold data, as the file system knows them (SEEK_DATA, SEEK_HOLE; lseek(2)). Blocks."""
    extents: list[tuple[int, int]] = []
    descriptor = os.open(raw, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end, at = os.fstat(descriptor).st_size, 0
        while at < end:
            try:
                begin = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole is left
                break
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
            first, last = begin // MIB, -(-at // MIB)
            if extents and first <= sum(extents[-1]):
                first = extents[-1][0]
                extents.pop()
            extents.append((first, last - first))
    finally:
        os.close(descriptor)
    return tuple(extents)
