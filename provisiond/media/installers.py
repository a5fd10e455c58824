"""Kernel and initrd of an operating system's installer, from a mirror, a directory or an ISO, checked and put in place.

Layout: state.dir/media/NAME/{kernel,initrd,iso}-DIGEST, the ISO only where the installer fetches it whole. A new import
never touches files that are being served.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from provisiond.config import Settings
from provisiond.media import staging
from provisiond.media.checks import (
    DEBIAN_KEYRING,
    agrees,
    checksum_list,
    debian_release,
    dpkg_list,
    treeinfo,
)
from provisiond.media.fetch import Fetched, Fetcher, MediaError, Missing, OnProgress, check_url
from provisiond.media.layouts import ARCHES, Layout, believed, coreos, flatcar, suse, talos
from provisiond.media.trees import DirectoryTree, IsoTree, MirrorTree, Tree
from provisiond.media.ubuntu import ISO_LIMIT, UBUNTU_KEYRING, LiveIso, live, live_iso

LIMITS = {"kernel": 128 << 20, "initrd": 1 << 30}
DEBIAN_SUITES = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
DEBIAN_MIRROR = "http://deb.debian.org/debian"


@dataclass(frozen=True)
class InstallerRequest:
    """What to take. ``source`` is a URL (mirror, or an ISO by its name), a directory or an ISO file; empty: the vendor's mirror.

    ``family`` debian, ubuntu, redhat, fedora, suse, coreos, flatcar or talos and ``version`` as in OperatingSystem. ``sha256`` is that of
    the ISO. ``unverified`` takes files that nothing vouches for. ``keyring`` holds the keys a Debian mirror must be signed with,
    or an Ubuntu or SUSE one where another than Debian's is given.
    """

    name: str
    family: str
    version: str
    source: str = ""
    architecture: str = "x86_64"
    sha256: str = ""
    unverified: bool = False
    keyring: Path = DEBIAN_KEYRING


@dataclass(frozen=True)
class InstallerFiles:
    """What was taken. ``files``: kernel, initrd (and iso) -> {path (below state.dir/media), sha256, bytes}, as Medium.files."""

    files: dict[str, dict[str, str | int]]
    verified_by: str
    source: str
    mirror: str


def is_local(source: str) -> bool:
    """Whether a source is a path on the daemon's machine (which only an admin may name)."""
    return bool(source) and "://" not in source


async def add_medium(
    settings: Settings, request: InstallerRequest, on_progress: OnProgress
) -> InstallerFiles:
    """Take an installer's kernel and initrd. Raises MediaError; then nothing of it is kept.

    Both files are fetched to .part files, checked against a signature or checksums, flushed, and only then named.
    """
    staging.check_name(request.name)
    folder = staging.prepare(settings.state.media_dir / request.name)
    try:
        async with _tree(request, folder, on_progress) as tree:
            plan = await _plan(tree, request, folder)
            if plan.expected is None and not plan.word and not request.unverified:
                raise MediaError(
                    f"nothing vouches for the files in {tree.where}: no signature and no checksums; "
                    "give a mirror, or --unverified if you trust it"
                )
            if plan.expected is not None and plan.expected.open and not request.unverified:
                raise MediaError(
                    f"{plan.expected.by}, which proves nothing; use https, or --unverified on a network you trust"
                )
            taken = {
                what: await _take(tree, plan, what, folder, on_progress) for what in ("kernel", "initrd")
            }
            if isinstance(tree, LiveIso):
                await tree.close()
                taken["iso"] = tree.file, tree.fetched
            files: dict[str, dict[str, str | int]] = {}
            for what, (part, fetched) in taken.items():
                final = folder / f"{what}-{fetched.sha256[:16]}"
                await asyncio.to_thread(staging.keep, part, final)
                files[what] = {
                    "path": f"{request.name}/{final.name}",
                    "sha256": fetched.sha256,
                    "bytes": fetched.size,
                }
            verified = plan.expected.by if plan.expected else plan.word or "nothing (taken as unverified)"
            return InstallerFiles(files, verified, tree.where, plan.mirror)
    finally:
        staging.sweep_parts(folder)


def forget_old(settings: Settings, name: str, files: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Remove what earlier imports of this medium left, once ``files`` (Medium.files) is what is served."""
    folder = settings.state.media_dir / staging.check_name(name)
    if not folder.is_dir():
        return []
    return staging.sweep_unused(folder, [Path(str(entry["path"])).name for entry in files.values()])


async def _take(
    tree: Tree, plan: Layout, what: str, folder: Path, on_progress: OnProgress
) -> tuple[Path, Fetched]:
    part = folder / f"{what}.part"
    fetched = await _checked(tree, plan, plan.paths[what], what, part, on_progress)
    for path in plan.appended if what == "initrd" else ():
        more = folder / "appended.part"
        await _checked(tree, plan, path, what, more, on_progress)
        fetched = await asyncio.to_thread(_append, part, more)
    return part, fetched


async def _checked(
    tree: Tree, plan: Layout, path: str, what: str, part: Path, on_progress: OnProgress
) -> Fetched:
    fetched = await tree.take(path, part, limit=LIMITS[what], what=what, on_progress=on_progress)
    if plan.expected is not None:
        wanted = plan.expected.digests.get(path)
        if wanted is None:
            raise MediaError(f"{plan.expected.by} does not list {path}: refused")
        good = (
            fetched.sha256 == wanted[1]
            if wanted[0] == "sha256"
            else await asyncio.to_thread(agrees, part, wanted)
        )
        if not good:
            raise MediaError(
                f"{path} of {tree.where} does not match {plan.expected.by}: refused, nothing was kept; try again or use another mirror"
            )
    return fetched


def _append(part: Path, more: Path) -> Fetched:
    """Put an archive behind another, where the kernel looks for it (Documentation/driver-api/early-userspace/buffer-format). Blocks."""
    with part.open("r+b") as file, more.open("rb") as content:
        file.seek(0, os.SEEK_END)
        file.write(b"\0" * (-file.tell() % 4))
        shutil.copyfileobj(content, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.seek(0)
        return Fetched(hashlib.file_digest(file, "sha256").hexdigest(), size)


@asynccontextmanager
async def _tree(request: InstallerRequest, folder: Path, on_progress: OnProgress) -> AsyncIterator[Tree]:
    """The source, opened."""
    source = request.source
    if request.family == "ubuntu":
        keyring = UBUNTU_KEYRING if request.keyring == DEBIAN_KEYRING else request.keyring
        async with live_iso(
            source, request.version, request.architecture, request.sha256, keyring, folder, on_progress
        ) as live_server:
            yield live_server
        return
    if not source:
        if request.family != "debian":
            raise MediaError(
                f"there is no default mirror for {request.family}; give the source with --from URL, DIRECTORY or ISO"
            )
        source = DEBIAN_MIRROR
    if not is_local(source):
        check_url(source)
        async with Fetcher() as fetcher:
            if not source.lower().endswith(".iso"):
                yield MirrorTree(source, fetcher)
                return
            part = folder / "iso.part"
            fetched = await fetcher.file(source, part, limit=ISO_LIMIT, what="iso", on_progress=on_progress)
        async with _iso(part, source, request, fetched.sha256, authentic=source.startswith("https:")) as iso:
            yield iso
        return
    path = Path(source)
    if not path.is_absolute():
        raise MediaError(f"{source} is not an absolute path; the daemon does not know where you stand")
    if path.is_dir():
        yield DirectoryTree(path)
    elif path.is_file():
        digest = ""
        if request.sha256:
            digest = (
                request.sha256.lower()
                if await asyncio.to_thread(agrees, path, ("sha256", request.sha256.lower()))
                else "other"
            )
        async with _iso(path, source, request, digest, authentic=True) as iso:
            yield iso
    else:
        raise MediaError(f"{source} does not exist on the daemon's machine")


@asynccontextmanager
async def _iso(
    path: Path, where: str, request: InstallerRequest, digest: str, *, authentic: bool
) -> AsyncIterator[IsoTree]:
    if request.sha256 and digest != request.sha256.lower():
        raise MediaError(f"{where} does not have the SHA-256 {request.sha256}: refused, nothing was kept")
    iso = IsoTree(path, where, authentic=authentic or bool(request.sha256))
    try:
        yield iso
    finally:
        await iso.close()


async def _plan(tree: Tree, request: InstallerRequest, folder: Path) -> Layout:
    match request.family:
        case "debian":
            return await _debian(tree, request, folder)
        case "ubuntu":
            assert isinstance(tree, LiveIso)
            return await live(tree, request.version, request.architecture)
        case "redhat" | "fedora":
            return await _redhat(tree, request)
        case "suse":
            return await suse(tree, request.architecture)
        case "coreos":
            return await coreos(tree, request.architecture)
        case "flatcar":
            return await flatcar(tree)
        case "talos":
            return await talos(tree, request.architecture)
        case "esxi":
            raise MediaError(
                "ESXi's installer is no kernel and initrd but mboot.efi with some 150 modules, which is not imported; "
                "serve the ISO's files yourself, with the build's ks= on kernelopt in boot.cfg (docs/templates/families.md)"
            )
        case _:
            raise MediaError(
                f"no installer of the family {request.family!r} is known; there are debian, ubuntu, redhat, fedora, suse, coreos, flatcar and talos"
            )


async def _debian(tree: Tree, request: InstallerRequest, folder: Path) -> Layout:
    suite, arch = DEBIAN_SUITES.get(request.version.split(".")[0]), ARCHES.get(request.architecture)
    if suite is None or arch is None:
        raise MediaError(
            f"no Debian {request.version} for {request.architecture} is known; there are {', '.join(DEBIAN_SUITES)}"
        )
    base = f"dists/{suite}/main/installer-{arch}/current/images/netboot/debian-installer/{arch}"
    paths = {"kernel": f"{base}/linux", "initrd": f"{base}/initrd.gz"}
    try:
        expected = await debian_release(tree, suite, arch, folder, request.keyring)
    except Missing as error:
        if isinstance(tree, MirrorTree):
            raise MediaError(f"{tree.where} is no Debian mirror with {suite}: {error}") from error
    else:
        return Layout(paths, expected, mirror=tree.where if isinstance(tree, MirrorTree) else "")
    for base in (
        f"netboot/debian-installer/{arch}",
        f"debian-installer/{arch}",
        f"text/debian-installer/{arch}",
        "netboot",
        "",
    ):
        prefix = f"{base}/" if base else ""
        paths = {"kernel": f"{prefix}linux", "initrd": f"{prefix}initrd.gz"}
        if await tree.has(paths["kernel"]) and await tree.has(paths["initrd"]):
            if isinstance(tree, IsoTree):
                return Layout(paths, word="the SHA-256 given for the ISO" if request.sha256 else "")
            listed = await checksum_list(tree, base)
            if listed is None and isinstance(tree, DirectoryTree):
                listed = dpkg_list(tree, tuple(paths.values()))
            return Layout(paths, listed)
    raise MediaError(
        f"{tree.where} holds no Debian netboot kernel (linux and initrd.gz); give a mirror, a netboot directory or mini.iso"
    )


async def _redhat(tree: Tree, request: InstallerRequest) -> Layout:
    paths = {"kernel": "images/pxeboot/vmlinuz", "initrd": "images/pxeboot/initrd.img"}
    try:
        expected = treeinfo(await tree.read(".treeinfo"), tree.where, request.architecture)
    except Missing as error:
        raise MediaError(f"{tree.where} is no installation tree: it has no .treeinfo") from error
    mirror = tree.where if isinstance(tree, MirrorTree) else ""
    return Layout(paths, believed(tree, expected), mirror=mirror)
