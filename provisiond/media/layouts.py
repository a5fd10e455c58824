"""Where SUSE, Fedora CoreOS, Flatcar and Talos keep an installer's kernel and initrd, and who vouches for them.

Checksums that come the same open way as the files prove nothing: they count over https and from local trees.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provisiond.media.checks import Expected, checksums
from provisiond.media.fetch import MediaError, Missing
from provisiond.media.trees import MirrorTree, Tree

ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGESTS = {"SHA256": 64, "SHA512": 128}


@dataclass(frozen=True)
class Layout:
    """Where in the tree the two files are, and who vouches for them: checksums, or ``word`` for the source as a whole.

    ``appended`` files are put behind the initrd: the kernel reads one archive after the other.
    """

    paths: Mapping[str, str]
    expected: Expected | None = None
    word: str = ""
    mirror: str = ""
    appended: tuple[str, ...] = ()


async def suse(tree: Tree, architecture: str) -> Layout:
    """A SUSE installation tree, vouched for by its CHECKSUMS (openSUSE's libzypp, RepoMd media). Raises MediaError."""
    base = f"boot/{architecture}" + ("/loader" if architecture == "x86_64" else "")
    paths = {"kernel": f"{base}/linux", "initrd": f"{base}/initrd"}
    try:
        listed = checksums(await tree.read("CHECKSUMS"))
    except Missing as error:
        raise MediaError(f"{tree.where} is no SUSE installation tree: it has no CHECKSUMS") from error
    expected = Expected(
        {path: ("sha256", digest) for path, digest in listed.items()}, f"CHECKSUMS of {tree.where}"
    )
    mirror = tree.where if isinstance(tree, MirrorTree) else ""
    return Layout(paths, believed(tree, expected), mirror=mirror)


async def coreos(tree: Tree, architecture: str) -> Layout:
    """One build of Fedora CoreOS, as builds/VERSION/ARCH with its meta.json (coreos-assembler). The root file system goes behind the initrd."""
    try:
        meta = json.loads(await tree.read("meta.json"))
        images = {n: meta["images"][n] for n in ("live-kernel", "live-initramfs", "live-rootfs")}
        found = {n: (str(i["path"]), ("sha256", str(i["sha256"]))) for n, i in images.items()}
    except Missing as error:
        raise MediaError(
            f"{tree.where} is no build of Fedora CoreOS: it has no meta.json; give .../builds/VERSION/{architecture}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise MediaError(
            f"meta.json of {tree.where} tells of no live kernel, initramfs and rootfs"
        ) from error
    if meta.get("coreos-assembler.basearch", architecture) != architecture:
        raise MediaError(f"{tree.where} is for {meta['coreos-assembler.basearch']}, not for {architecture}")
    expected = Expected(dict(found.values()), f"meta.json of {tree.where}")
    return Layout(
        {"kernel": found["live-kernel"][0], "initrd": found["live-initramfs"][0]},
        believed(tree, expected),
        appended=(found["live-rootfs"][0],),
    )


async def flatcar(tree: Tree) -> Layout:
    """One release of Flatcar for one architecture, such as .../amd64-usr/4230.2.1, with a .DIGESTS beside each file."""
    paths = {"kernel": "flatcar_production_pxe.vmlinuz", "initrd": "flatcar_production_pxe_image.cpio.gz"}
    digests: dict[str, tuple[str, str]] = {}
    for path in paths.values():
        try:
            text = (await tree.read(f"{path}.DIGESTS")).decode(errors="replace")
        except Missing as error:
            raise MediaError(f"{tree.where} is no release of Flatcar: it has no {path}.DIGESTS") from error
        for name in ("SHA256", "SHA512"):
            _, _, section = text.partition(f"# {name} HASH\n")
            digest = re.match(rf"([0-9a-f]{{{_DIGESTS[name]}}})  {re.escape(path)}\n", section)
            if digest:
                digests[path] = (name.lower(), digest[1])
        if path not in digests:
            raise MediaError(f"{path}.DIGESTS of {tree.where} tells no SHA-256 or SHA-512 of it")
    return Layout(paths, believed(tree, Expected(digests, f".DIGESTS of {tree.where}")))


async def talos(tree: Tree, architecture: str) -> Layout:
    """The files of one release of Talos, with sha512sum.txt or sha256sum.txt."""
    arch = ARCHES.get(architecture, architecture)
    paths = {"kernel": f"vmlinuz-{arch}", "initrd": f"initramfs-{arch}.xz"}
    for algorithm, length in (("sha512", 128), ("sha256", 64)):
        try:
            listed = checksums(await tree.read(f"{algorithm}sum.txt"), length)
        except Missing:
            continue
        digests = {Path(path).name: (algorithm, digest) for path, digest in listed.items()}
        expected = Expected(digests, f"{algorithm}sum.txt of {tree.where}")
        return Layout(paths, believed(tree, expected))
    raise MediaError(f"{tree.where} is no release of Talos: it has neither sha512sum.txt nor sha256sum.txt")


def believed(tree: Tree, expected: Expected) -> Expected:
    """The same, saying so where it came in the open; ``installers`` refuses that unless told otherwise."""
    if tree.authentic:
        return expected
    return Expected(expected.digests, f"{expected.by} over plain http (unverified)", open=True)
