"""The used blocks of a raw image read once: their digest, and their compressed form in frames that can be fetched apart."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import zstandard

from provisiond.media.blockmap import FRAME_MIB, MIB, BlockMap, used_extents
from provisiond.media.fetch import MediaError, OnProgress

LEVEL = 3
THREADS = 2
"""Compressing beside the daemon's own work: its processors are not all taken."""


@dataclass(frozen=True)
class Packed:
    """``sha256`` is over the used blocks in order, uncompressed."""

    map: BlockMap
    sha256: str


def pack(raw: Path, to: Path | None, on_progress: OnProgress) -> Packed:
    """Map ``raw`` (whose size is a whole number of MiB) and write its used blocks, compressed, into ``to`` if given. Blocks.

    Raises MediaError when it holds nothing but zeros. Library: python-zstandard; frames carry their size and checksum (RFC 8878).
    """
    blocks = BlockMap(raw.stat().st_size // MIB, used_extents(raw))
    digest, blank = hashlib.sha256(), True
    sizes: list[int] = []
    with ThreadPoolExecutor(THREADS, "provisiond-zstd") as pool:
        out = to.open("wb") if to else None
        try:
            under_way: deque[Future[bytes]] = deque()
            done = 0
            for frame in _frames(raw, blocks):
                digest.update(frame)
                blank = blank and frame.count(0) == len(frame)
                done += len(frame)
                on_progress("compress" if out else "checksum", done, blocks.used_mib * MIB)
                if out is None:
                    continue
                under_way.append(pool.submit(_compress, frame))
                if len(under_way) > 2 * THREADS:
                    sizes.append(out.write(under_way.popleft().result()))
            while under_way and out is not None:
                sizes.append(out.write(under_way.popleft().result()))
        finally:
            if out is not None:
                out.close()
    if blank:
        raise MediaError("the image is empty: it holds zeros and nothing else")
    return Packed(blocks.with_frames(sizes), digest.hexdigest())


def _compress(frame: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(frame)


def _frames(raw: Path, blocks: BlockMap) -> Iterator[bytes]:
    """The used blocks in pieces of FRAME_MIB, the last one shorter."""
    frame = bytearray()
    with raw.open("rb", buffering=0) as file:
        for first, count in blocks.extents:
            file.seek(first * MIB)
            left = count * MIB
            while left:
                piece = file.read(min(left, FRAME_MIB * MIB - len(frame)))
                if not piece:
                    raise MediaError("the image changed while it was read; add it again")
                left -= len(piece)
                frame += piece
                if len(frame) == FRAME_MIB * MIB:
                    yield bytes(frame)
                    frame.clear()
    if frame:
        yield bytes(frame)
