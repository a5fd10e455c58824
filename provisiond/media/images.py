"""Disk images: taken, examined, and kept as a sparse raw file with a map of the blocks that are used.

The ramdisk of a machine is sent the used blocks only, straight from the raw file. An image's format is always said, never
guessed, and one that leans on another file (backing file, data file) is refused: qemu-img would read whatever it names
(CVE-2024-44082).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisiond.config import Settings
from provisiond.media import staging
from provisiond.media.blockmap import MIB, BlockMap, Extents, map_path, used_extents
from provisiond.media.fetch import Fetched, Fetcher, MediaError, OnProgress, check_url, copy_file
from provisiond.media.installers import is_local
from provisiond.media.programs import run, started

FORMATS = ("raw", "qcow2")
SOURCE_LIMIT = 256 << 30
DISK_LIMIT = 2 << 40
_EXAMINE_LIMIT = (
    "prlimit",
    "--as=2147483648",
    "--cpu=30",
    "--",
)  # a hostile image can make qemu-img eat memory and time


@dataclass(frozen=True)
class ImageRequest:
    """What to take: ``source`` is a URL or an absolute path, ``format`` raw or qcow2, ``sha256`` that of the source."""

    name: str
    source: str
    format: str
    sha256: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """An image as it was kept, for the Image row: ``path`` below state.dir/images, always raw.

    ``sha256`` is over the used blocks one after another (what a machine is sent), ``size`` the disk's size in bytes, a whole
    number of MiB; ``used`` the bytes of the used blocks.
    """

    path: str
    format: str
    sha256: str
    size: int
    used: int


async def add_image(settings: Settings, request: ImageRequest, on_progress: OnProgress) -> ImageFacts:
    """Take a disk image. Raises MediaError; then nothing of it is kept.

    ``request.source`` itself is left alone. Files appear whole: NAME-DIGEST.raw and its map beside it.
    """
    staging.check_name(request.name)
    if request.format not in FORMATS:
        raise MediaError(
            f"image format {request.format!r}: say raw or qcow2; others can be converted with qemu-img first"
        )
    folder = staging.prepare(settings.state.image_dir, f"{request.name}-")
    fetched, raw = folder / f"{request.name}-source.part", folder / f"{request.name}-raw.part"
    map_part = folder / f"{request.name}-map.part"
    try:
        await _fetch(request, fetched, on_progress)
        await _examine(fetched, request)
        await _convert(fetched, raw, request, on_progress)
        fetched.unlink()
        extents, size, digest = await asyncio.to_thread(_measure, raw, on_progress)
        blocks = BlockMap(size // MIB, tuple(extents)).json()
        whole = hashlib.sha256(
            f"{digest} {size}\n{blocks}".encode()
        ).hexdigest()  # the same blocks elsewhere are another image
        final = folder / f"{request.name}-{whole[:16]}.raw"
        map_part.write_text(blocks)
        # the map first: an image without one is not served; a raw file that is there may be the backing of machines
        await asyncio.to_thread(staging.keep, map_part, map_path(final))
        if not final.exists():
            await asyncio.to_thread(staging.keep, raw, final)
        return ImageFacts(final.name, "raw", digest, size, sum(count for _, count in extents) * MIB)
    finally:
        staging.sweep_parts(folder, f"{request.name}-")


async def _fetch(request: ImageRequest, to: Path, on_progress: OnProgress) -> Fetched:
    if is_local(request.source):
        path = Path(request.source)
        if not path.is_absolute():
            raise MediaError(f"{path} is not an absolute path; the daemon does not know where you stand")
        fetched = await asyncio.to_thread(
            lambda: copy_file(path, to, limit=SOURCE_LIMIT, what="copy", on_progress=on_progress)
        )
    else:
        check_url(request.source)
        if request.source.startswith("http:") and not request.sha256:
            raise MediaError(
                f"{request.source} comes over plain http: give its checksum with --sha256, or use https"
            )
        async with Fetcher() as fetcher:
            fetched = await fetcher.file(
                request.source, to, limit=SOURCE_LIMIT, what="download", on_progress=on_progress
            )
    if request.sha256 and fetched.sha256 != request.sha256.lower():
        raise MediaError(
            f"{request.source} has SHA-256 {fetched.sha256}, not {request.sha256}: refused, nothing was kept"
        )
    return fetched


async def _examine(file: Path, request: ImageRequest) -> None:
    """Refuse what is not a self-contained image of the format that was said."""
    status, out, said = await run(
        *_EXAMINE_LIMIT, "qemu-img", "info", "--output=json", "-f", request.format, str(file)
    )
    if status != 0:
        raise MediaError(f"{request.source} is no {request.format} image: {_last_line(said)}")
    info: dict[str, Any] = json.loads(out)
    special = info.get("format-specific", {}).get("data", {})
    if any(key in info for key in ("backing-filename", "full-backing-filename", "backing-filename-format")):
        raise MediaError(
            f"{request.source} leans on another file ({info.get('backing-filename')}): refused; flatten it first with "
            "'qemu-img convert -O qcow2' where you made it"
        )
    if special.get("data-file") or special.get("encrypt") or info.get("encrypted"):
        raise MediaError(
            f"{request.source} is encrypted or keeps its data in another file: refused; convert it to a plain image first"
        )
    if not 0 < info["virtual-size"] <= DISK_LIMIT:
        raise MediaError(
            f"{request.source} is a disk of {info['virtual-size']} bytes; up to {DISK_LIMIT >> 40} TiB are taken"
        )


async def _convert(source: Path, raw: Path, request: ImageRequest, on_progress: OnProgress) -> None:
    """Write the sparse raw file, padded with zeros to a whole number of MiB."""
    argv = [
        "qemu-img",
        "convert",
        "-p",
        "-f",
        request.format,
        "-O",
        "raw",
        "-S",
        "64k",
        str(source),
        str(raw),
    ]
    async with started(*argv) as process:
        assert process.stdout is not None and process.stderr is not None
        errors = asyncio.ensure_future(process.stderr.read())
        while piece := await process.stdout.read(4096):
            if found := re.findall(rb"\((\d+)\.\d+/100%\)", piece):
                on_progress("convert", int(found[-1]), 100)
        said = await errors
        if await process.wait() != 0:
            raise MediaError(f"qemu-img cannot convert {request.source}: {_last_line(said)}")
    size = raw.stat().st_size
    os.truncate(raw, -(-size // MIB) * MIB)


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no reason given"


def _measure(raw: Path, on_progress: OnProgress) -> tuple[Extents, int, str]:
    """(extents, size, digest of the used blocks). Blocks."""
    extents = used_extents(raw)
    total, done = sum(count for _, count in extents) * MIB, 0
    digest, buffer, blank = hashlib.sha256(), bytearray(MIB), True
    with raw.open("rb", buffering=0) as file:
        for first, count in extents:
            file.seek(first * MIB)
            for _ in range(count):
                if file.readinto(buffer) != MIB:
                    raise MediaError("the image changed while it was read; add it again")
                digest.update(buffer)
                blank = blank and not any(buffer)
                done += MIB
                on_progress("checksum", done, total)
    if blank:
        raise MediaError("the image is empty: it holds zeros and nothing else")
    return extents, raw.stat().st_size, digest.hexdigest()
