"""Images: disks and root file systems, taken, examined, and kept so that a machine can be sent what it needs and no more.

A disk is kept as a sparse raw file (virtual machines use it as their backing), the map of its used blocks, and these compressed
in frames; a root file system as tar.zst. An image's format is always said or in its name, never guessed from what is in it, and
one that leans on another file (backing file, data file) is refused: qemu-img would read whatever it names (CVE-2024-44082).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisiond.config import Settings
from provisiond.media import staging
from provisiond.media.blockmap import MIB, map_path, read_map
from provisiond.media.fetch import Fetched, Fetcher, MediaError, OnProgress, check_url, copy_file, copy_stream
from provisiond.media.formats import Format, format_of, refuse_disguise
from provisiond.media.installers import is_local
from provisiond.media.pack import pack
from provisiond.media.partitions import read_partitions
from provisiond.media.plain import open_plain
from provisiond.media.programs import run, started
from provisiond.media.rootfs import Rootfs, keep_rootfs
from provisiond.media.vouch import Proof, vouch

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
    """What to take: ``source`` is a URL or an absolute path; ``format`` of formats.FORMATS, '' as the source's name says."""

    name: str
    source: str
    format: str = ""
    proof: Proof = field(default_factory=Proof)


@dataclass(frozen=True)
class ImageFacts:
    """An image as it was kept, for the Image row: ``path`` and ``zstd`` ('' where there is none) below state.dir/images.

    ``content`` disk: ``format`` raw, ``sha256`` over the used blocks one after another, ``size`` the disk's in bytes, a whole number
    of MiB, ``used`` the bytes of the used blocks. ``content`` tree: ``format`` tar, ``sha256`` that of the file, ``size`` and
    ``used`` what the files in it hold.
    """

    path: str
    format: str
    sha256: str
    size: int
    used: int
    content: str = "disk"
    zstd: str = ""
    partitions: tuple[dict[str, Any], ...] = ()
    verified_by: str = ""


async def add_image(settings: Settings, request: ImageRequest, on_progress: OnProgress) -> ImageFacts:
    """Take an image. Raises MediaError; then nothing of it is kept.

    ``request.source`` itself is left alone. Files appear whole: NAME-DIGEST.raw, its map and NAME-DIGEST.zst, or NAME-DIGEST.tar.zst.
    """
    staging.check_name(request.name)
    format = format_of(request.source, request.format)
    request.proof.check(request.source)
    folder = staging.prepare(settings.state.image_dir, f"{request.name}-")
    fetched = folder / f"{request.name}-source.part"
    try:
        taken = await _fetch(request, fetched, on_progress)
        verified_by = await vouch(request.proof, request.source, fetched, taken, folder)
        if format.content == "tree":
            return await _add_tree(fetched, request, format, verified_by, on_progress)
        return await _add_disk(settings, fetched, request, format, verified_by, on_progress)
    finally:
        staging.sweep_parts(folder, f"{request.name}-")


async def _add_disk(
    settings: Settings, fetched: Path, request: ImageRequest, format: Format, by: str, on_progress: OnProgress
) -> ImageFacts:
    folder = fetched.parent
    raw, zstd, map_part = (folder / f"{request.name}-{kind}.part" for kind in ("raw", "zst", "map"))
    if format.compression:
        await asyncio.to_thread(_unpack, fetched, raw, request, format, on_progress)
    else:
        if not format.qcow2:
            await asyncio.to_thread(refuse_disguise, fetched, request.source)
        await _examine(fetched, request, format)
        await _convert(fetched, raw, request, format, on_progress)
    fetched.unlink()
    compressed = settings.boot.image_encoding != "raw"
    packed = await asyncio.to_thread(pack, raw, zstd if compressed else None, on_progress)
    partitions = await read_partitions(raw)
    blocks, size = packed.map, packed.map.size_mib * MIB
    whole = hashlib.sha256(
        f"{packed.sha256} {size}\n{blocks.lines()}".encode()
    ).hexdigest()  # the same blocks elsewhere are another image
    final = folder / f"{request.name}-{whole[:16]}.raw"
    final_zstd = final.with_suffix(".zst")
    if compressed:
        await asyncio.to_thread(staging.keep, zstd, final_zstd)
    elif final_zstd.is_file() and map_path(final).is_file():
        blocks = read_map(final)  # it was added before, and machines may be under way with it
    map_part.write_text(blocks.json())
    # the map before the raw file: an image without one is not served; a raw file that is there may be the backing of machines
    await asyncio.to_thread(staging.keep, map_part, map_path(final))
    if not final.exists():
        await asyncio.to_thread(staging.keep, raw, final)
    return ImageFacts(
        final.name, "raw", packed.sha256, size, blocks.used_mib * MIB, "disk",
        final_zstd.name if blocks.frames else "", tuple(partitions), by,
    )  # fmt: skip


async def _add_tree(
    fetched: Path, request: ImageRequest, format: Format, by: str, on_progress: OnProgress
) -> ImageFacts:
    part = fetched.parent / f"{request.name}-tree.part"
    tree = await asyncio.to_thread(_keep_rootfs, fetched, part, request, format, on_progress)
    final = fetched.parent / f"{request.name}-{tree.sha256[:16]}.tar.zst"
    await asyncio.to_thread(staging.keep, part, final)
    return ImageFacts(
        final.name, "tar", tree.sha256, tree.content_bytes, tree.content_bytes, "tree", verified_by=by
    )


def _keep_rootfs(
    fetched: Path, part: Path, request: ImageRequest, format: Format, on_progress: OnProgress
) -> Rootfs:
    with open_plain(fetched, format.compression, request.source, DISK_LIMIT) as plain:
        return keep_rootfs(plain, fetched.stat().st_size, part, request.source, on_progress)


def _unpack(fetched: Path, raw: Path, request: ImageRequest, format: Format, on_progress: OnProgress) -> None:
    """A compressed raw disk into a sparse file, padded with zeros to a whole number of MiB. Blocks."""
    total = fetched.stat().st_size
    with open_plain(fetched, format.compression, request.source, DISK_LIMIT) as plain, raw.open("wb") as out:
        copy_stream(
            plain, out, request.source, total=None, limit=DISK_LIMIT, what="unpack",
            on_progress=lambda what, _done, _total: on_progress(what, plain.taken, total),
        )  # fmt: skip
    refuse_disguise(raw, request.source)
    os.truncate(raw, -(-raw.stat().st_size // MIB) * MIB)


async def _fetch(request: ImageRequest, to: Path, on_progress: OnProgress) -> Fetched:
    if not is_local(request.source):
        check_url(request.source)
        async with Fetcher() as fetcher:
            return await fetcher.file(
                request.source, to, limit=SOURCE_LIMIT, what="download", on_progress=on_progress
            )
    path = Path(request.source)
    if not path.is_absolute():
        raise MediaError(f"{path} is not an absolute path; the daemon does not know where you stand")
    return await asyncio.to_thread(
        lambda: copy_file(path, to, limit=SOURCE_LIMIT, what="copy", on_progress=on_progress)
    )


async def _examine(file: Path, request: ImageRequest, format: Format) -> None:
    """Refuse what is not a self-contained image of the format that was said."""
    status, out, said = await run(
        *_EXAMINE_LIMIT, "qemu-img", "info", "--output=json", "-f", format.name, str(file)
    )
    if status != 0:
        raise MediaError(f"{request.source} is no {format.name} image: {_last_line(said)}")
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


async def _convert(
    source: Path, raw: Path, request: ImageRequest, format: Format, on_progress: OnProgress
) -> None:
    """Write the sparse raw file, padded with zeros to a whole number of MiB."""
    argv = [
        "qemu-img",
        "convert",
        "-p",
        "-f",
        format.name,
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
