"""An image as a machine is sent it: which file, which parts of it, and in which encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from provisiond.boot.scripts import NotServable
from provisiond.config import Settings
from provisiond.inventory.resolve import ResolvedHost
from provisiond.media.blockmap import MIB, BlockMap, read_map
from provisiond.media.fetch import MediaError

Encoding = Literal["raw", "zstd", "tar.zst"]


@dataclass(frozen=True)
class ImageSource:
    """``parts`` of ``path``, (offset, bytes), are the stream; ``sha256`` is as in the plan.

    Encoding raw and zstd: ``sha256`` is over the raw used blocks in order, and ``map`` says where they belong. tar.zst (a root
    file system; ``map`` is None): ``sha256`` is that of the file itself.
    """

    path: Path
    encoding: Encoding
    parts: Sequence[tuple[int, int]]
    sha256: str
    map: BlockMap | None
    content_bytes: int
    partitions: Sequence[dict[str, Any]] = ()

    @property
    def size(self) -> int:
        """Bytes of the stream."""
        return sum(count for _, count in self.parts)

    @property
    def name(self) -> str:
        """The last part of its URL below /boot/TOKEN."""
        return {"raw": "image", "zstd": "image.zst", "tar.zst": "image.tar.zst"}[self.encoding]

    @property
    def etag(self) -> str:
        """The same blocks in another encoding are other bytes."""
        return f'"{self.sha256}-{self.encoding}"'

    @property
    def size_mib(self) -> int:
        """Of the disk; of a tree: what its files hold."""
        return self.map.size_mib if self.map else -(-self.content_bytes // MIB)

    @property
    def used_mib(self) -> int:
        """What is written to the disk."""
        return self.map.used_mib if self.map else self.size_mib


def image_source(settings: Settings, host: ResolvedHost, encoding: str = "") -> ImageSource:
    """The host's image, in the ``encoding`` asked for, or by boot.image_encoding. Raises NotServable.

    Blocks (reads the map): call it in a thread.
    """
    image = host.image
    if image is None:
        raise NotServable(
            f"host {host.name} has no image: set one with 'provisionctl host update {host.name} --image NAME'"
        )
    folder = settings.state.image_dir
    path = folder / image.path
    again = f"provisionctl image add {image.name} again"
    if image.content == "tree":
        if encoding not in ("", "tar.zst"):
            raise NotServable(f"image {image.name} of host {host.name} is a root file system, no disk")
        if not path.is_file():
            raise NotServable(f"image {image.name} of host {host.name} has no file at {path}: {again}")
        whole = [(0, path.stat().st_size)]
        return ImageSource(path, "tar.zst", whole, image.sha256, None, image.size)
    if encoding == "tar.zst":
        raise NotServable(f"image {image.name} of host {host.name} is a disk, no root file system")
    if image.format != "raw" or not path.is_file():
        raise NotServable(f"image {image.name} of host {host.name} has no raw file at {path}: {again}")
    try:
        blocks = read_map(path)
    except MediaError as error:
        raise NotServable(str(error)) from error
    packed = folder / image.zstd
    has_zstd = bool(image.zstd and blocks.frames)
    if encoding == "zstd" or (not encoding and has_zstd and settings.boot.image_encoding != "raw"):
        if not (has_zstd and packed.is_file()):
            raise NotServable(f"image {image.name} of host {host.name} has no compressed form: {again}")
        whole = [(0, sum(blocks.frames))]
        return ImageSource(packed, "zstd", whole, image.sha256, blocks, image.size, image.partitions)
    runs = [(first * MIB, count * MIB) for first, count in blocks.extents]
    return ImageSource(path, "raw", runs, image.sha256, blocks, image.size, image.partitions)
