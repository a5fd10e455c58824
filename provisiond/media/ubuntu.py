"""Ubuntu's live-server ISO: which one, and who vouches for it. Kernel and initrd come out of it, and its live system then
fetches the whole ISO from us, so it is kept beside them.

SHA256SUMS lists the ISOs of a release and SHA256SUMS.gpg signs it (https://ubuntu.com/tutorials/how-to-verify-ubuntu).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from provisiond.media.checks import checksums, signed_by
from provisiond.media.fetch import Fetched, Fetcher, MediaError, Missing, OnProgress, check_url
from provisiond.media.layouts import ARCHES, Layout
from provisiond.media.trees import DirectoryTree, IsoTree, MirrorTree, Tree

UBUNTU_KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
ISO_LIMIT = 32 << 30
_RELEASES = {
    "amd64": "https://releases.ubuntu.com/{0}",
    "arm64": "https://cdimage.ubuntu.com/releases/{0}/release",
}
_ARCHIVES = {"amd64": "http://archive.ubuntu.com/ubuntu", "arm64": "http://ports.ubuntu.com/ubuntu-ports"}


class LiveIso(IsoTree):
    """A live-server ISO that was taken: ``file`` as it was ``fetched``, ``word`` on who vouches for it (empty: nobody)."""

    def __init__(self, file: Path, where: str, fetched: Fetched, word: str) -> None:
        super().__init__(file, where, authentic=bool(word))
        self.file, self.fetched, self.word = file, fetched, word


@asynccontextmanager
async def live_iso(
    source: str,
    version: str,
    architecture: str,
    sha256: str,
    keyring: Path,
    folder: Path,
    on_progress: OnProgress,
) -> AsyncIterator[LiveIso]:
    """Take an ISO into ``folder``/iso.part. ``source`` is it, or the directory (URL or path) it lies in with SHA256SUMS; empty:
    releases.ubuntu.com. Raises MediaError, also where its digest is not the one that is listed or given.
    """
    if architecture not in ARCHES:
        raise MediaError(f"there is no Ubuntu server for {architecture}; there are {', '.join(ARCHES)}")
    release = ".".join(version.split(".")[:2])
    source = (source or _RELEASES[ARCHES[architecture]].format(release)).rstrip("/")
    place, _, name = source.rpartition("/") if source.lower().endswith(".iso") else (source, "", "")
    if "://" in source:
        check_url(source)
        async with Fetcher() as fetcher:
            iso = await _take(
                MirrorTree(place, fetcher), name, release, architecture, sha256, keyring, folder, on_progress
            )
    elif not source.startswith("/"):
        raise MediaError(f"{source} is not an absolute path; the daemon does not know where you stand")
    else:
        iso = await _take(
            DirectoryTree(Path(place or "/")),
            name,
            release,
            architecture,
            sha256,
            keyring,
            folder,
            on_progress,
        )
    try:
        yield iso
    finally:
        await iso.close()


async def _take(
    tree: Tree,
    name: str,
    release: str,
    architecture: str,
    sha256: str,
    keyring: Path,
    folder: Path,
    on_progress: OnProgress,
) -> LiveIso:
    sums, word = await _sums(tree, keyring, folder)
    name = name or _newest(tree, sums, release, architecture)
    part = folder / "iso.part"
    try:
        fetched = await tree.take(name, part, limit=ISO_LIMIT, what="iso", on_progress=on_progress)
    except Missing as error:
        raise MediaError(f"there is no {name} in {tree.where}") from error
    for wanted, by in ((sha256.lower(), "the SHA-256 given for the ISO"), (sums.get(name, ""), word)):
        if wanted and fetched.sha256 != wanted:
            raise MediaError(f"{tree.where}/{name} does not match {by}: refused, nothing was kept")
    vouched = "the SHA-256 given for the ISO" if sha256 else word if name in sums else ""
    return LiveIso(part, f"{tree.where}/{name}", fetched, vouched)


async def _sums(tree: Tree, keyring: Path, folder: Path) -> tuple[dict[str, str], str]:
    """The digests of the directory by name, and who says so; none where nobody does who can be believed."""
    try:
        listed = await tree.read("SHA256SUMS")
    except Missing:
        return {}, ""
    by = f"SHA256SUMS of {tree.where}"
    try:
        signature = await tree.read("SHA256SUMS.gpg")
    except Missing:
        signature = b""
    if signature and keyring.is_file():
        await signed_by(keyring, tree.where, listed, signature, folder)
        return checksums(listed), f"{by}, signed by a key of {keyring.name}"
    if not tree.authentic:  # a list that came the same open way as the file proves nothing
        return {}, ""
    return checksums(
        listed
    ), f"{by} (its signature was not checked: {f'there is no {keyring}' if signature else 'it has none'})"


def _newest(tree: Tree, sums: dict[str, str], release: str, architecture: str) -> str:
    pattern = re.compile(rf"ubuntu-{re.escape(release)}(?:\.(\d+))?-live-server-{ARCHES[architecture]}\.iso")
    found = [(int(match[1] or 0), name) for name in sums if (match := pattern.fullmatch(name))]
    if not found:
        raise MediaError(
            f"{tree.where} lists no live-server ISO of Ubuntu {release} for {ARCHES[architecture]} that can be believed; "
            "give the ISO itself with --from, and its --sha256"
        )
    return max(found)[1]


async def live(iso: LiveIso, version: str, architecture: str) -> Layout:
    """Where its kernel and initrd are. Raises MediaError where it is another release, architecture or kind of ISO."""
    paths = {"kernel": "casper/vmlinuz", "initrd": "casper/initrd"}
    if not await iso.has(paths["kernel"]):
        raise MediaError(f"{iso.where} has no casper/vmlinuz: it is no live-server ISO of Ubuntu")
    arch, release = ARCHES[architecture], ".".join(version.split(".")[:2])
    try:
        says = (await iso.read(".disk/info")).decode(errors="replace").strip()
    except Missing:
        says = ""
    if says and (not re.search(rf"\b{re.escape(release)}(\.\d+)?\b", says) or arch not in says.split()):
        raise MediaError(f"{iso.where} is {says[:120]!r}, not Ubuntu {release} for {arch}")
    return Layout(paths, word=iso.word, mirror=_ARCHIVES[arch])
