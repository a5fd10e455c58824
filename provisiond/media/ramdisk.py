"""The ramdisk of provisiond: built here from Debian packages by pxe/ramdisk/build, and put where machines fetch it from.

Below boot.ramdisk_dir every build has a directory of its own, builds/DIGEST, and a link of each architecture's name shows the one in
use: kernel and initrd change hands together. Whoever makes a ramdisk elsewhere puts vmlinuz and initrd.img straight into the directory.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sysconfig
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provisiond.config import Settings
from provisiond.media.fetch import MediaError, OnProgress
from provisiond.media.programs import started

ARCHITECTURES = ("x86_64", "aarch64")
FILES = ("vmlinuz", "initrd.img", "manifest.json", "sbom.spdx.json")
SECONDS = 3600
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True)
class RamdiskRequest:
    """``kernel`` is Debian's package, or "" for the usual one; ``packages`` come along; ``firmware`` needs Debian's non-free-firmware."""

    architecture: str = "x86_64"
    firmware: bool = False
    packages: tuple[str, ...] = ()
    kernel: str = ""

    def check(self) -> None:
        """Raises MediaError for what cannot be handed to the build."""
        if self.architecture not in ARCHITECTURES:
            raise MediaError(
                f"there is no ramdisk for {self.architecture!r}, only for {', '.join(ARCHITECTURES)}"
            )
        for word in (*self.packages, *([self.kernel] if self.kernel else [])):
            if not _NAME.fullmatch(word):
                raise MediaError(f"{word!r} is no name of a Debian package")

    def options(self) -> list[str]:
        """For the script."""
        words = ["--arch", self.architecture]
        words += ["--firmware"] if self.firmware else []
        words += [f"--kernel={self.kernel}"] if self.kernel else []
        return words + [f"--with={package}" for package in self.packages]


def folder(settings: Settings, architecture: str) -> Path:
    """Where vmlinuz and initrd.img of an architecture are, or should be."""
    own = settings.boot.ramdisk_dir / architecture
    if own.is_dir():
        return own.resolve()
    flat = settings.boot.ramdisk_dir
    about = read_manifest(flat)
    if about is not None and about.get("architecture", architecture) != architecture:
        return own
    return flat if architecture == ARCHITECTURES[0] or about is not None else own


def read_manifest(place: Path) -> dict[str, Any] | None:
    """manifest.json of a ramdisk's directory; None where there is none that can be read."""
    try:
        found = json.loads((place / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def installed(settings: Settings) -> list[dict[str, Any]]:
    """What machines are given: a manifest for each architecture, with ``directory`` and ``installed_at``. Blocks."""
    found = []
    for architecture in ARCHITECTURES:
        place = folder(settings, architecture)
        about = read_manifest(place)
        if about is not None and all((place / name).is_file() for name in FILES[:2]):
            link = settings.boot.ramdisk_dir / architecture
            since = (link if link.is_symlink() else place / "manifest.json").lstat().st_mtime
            found.append(
                {**about, "directory": str(place), "installed_at": datetime.fromtimestamp(since, UTC)}
            )
    return found


async def build_ramdisk(settings: Settings, request: RamdiskRequest, on_progress: OnProgress) -> str:
    """Build and put in place; what it has become, in a sentence. Raises MediaError with the build's last words, and changes nothing then."""
    request.check()
    script = shipped_directory() / "build"
    if not script.is_file():
        raise MediaError(f"the ramdisk's sources are not in {script.parent}: install provisiond anew")
    work = await asyncio.to_thread(_workplace, settings)
    try:
        made = work / "made"
        cache = settings.state.dir / "ramdisk-cache"
        argv = (
            "nice",
            "-n",
            "10",
            "/usr/bin/python3",
            "-B",
            str(script),
            *request.options(),
            "--out",
            str(made),
        )
        await _run(argv, cache, lambda text: on_progress(text, 0, None))
        return await asyncio.to_thread(install, settings, made)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)


async def _run(argv: tuple[str, ...], cache: Path, heard: Callable[[str], None]) -> None:
    last: deque[str] = deque(maxlen=4)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    try:
        async with (
            asyncio.timeout(SECONDS),
            started(*argv, environment={**environment, "PROVISIOND_LAB_CACHE": str(cache)}) as process,
        ):
            assert process.stderr is not None and process.stdout is not None
            while line := await process.stderr.readline():
                text = line.decode(errors="replace").strip().removeprefix("ramdisk: ")
                last.append(text[:300])
                heard(text[:120])
            status = await process.wait()
    except TimeoutError:
        raise MediaError(f"the build of the ramdisk took more than {SECONDS // 60} minutes: ended") from None
    if status != 0:
        raise MediaError(f"the ramdisk was not built: {' | '.join(last) or 'the build said nothing'}")


def install(settings: Settings, made: Path) -> str:
    """Put the build in directory ``made`` in the place of the one in use. Raises MediaError when it is not whole. Blocks."""
    about = read_manifest(made)
    if about is None or not all((made / name).is_file() for name in FILES):
        raise MediaError(f"{made} holds no whole ramdisk")
    root = settings.boot.ramdisk_dir
    architecture, key = str(about["architecture"]), str(about["key"])[:12]
    target = root / "builds" / f"{architecture}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
    link = root / architecture
    before = link.resolve() if link.is_symlink() else None
    fresh = root / f".{architecture}.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.relative_to(root))
    fresh.replace(link)
    for old in target.parent.glob(f"{architecture}-*"):  # the one before stays: machines may be fetching it
        if old not in (target, before):
            shutil.rmtree(old, ignore_errors=True)
    size = sum(about[part]["size"] for part in ("kernel", "initrd"))
    return f"{architecture}, kernel {about['kernel_version']}, {size / 1e6:.1f} MB"


def _workplace(settings: Settings) -> Path:
    """A fresh directory beside the builds; what a daemon that died left goes."""
    root = settings.boot.ramdisk_dir
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(".making-*"):
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=".making-", dir=root))


def shipped_directory() -> Path:
    """The ramdisk's sources: in a checkout beside the package, below share/ when installed."""
    checkout = Path(__file__).parents[2] / "pxe" / "ramdisk"
    if (checkout / "build").is_file():
        return checkout
    return Path(sysconfig.get_path("data")) / "share" / "provisiond" / "pxe" / "ramdisk"
