"""Is this the file its vendor made? Debian's signed Release chain, dpkg's own list, SHA256SUMS and .treeinfo.

Each check answers with the digest that is expected and a sentence for Medium.verified_by.
"""

from __future__ import annotations

import configparser
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provisiond.media.fetch import MediaError, Missing
from provisiond.media.programs import run
from provisiond.media.trees import DirectoryTree, Tree

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DPKG_LISTS = Path("/var/lib/dpkg/info")


@dataclass(frozen=True)
class Expected:
    """The digests that files must have: path below the tree -> (algorithm, hex). ``by`` names who says so.

    ``open``: they came over plain http without a signature, so they show damage, not deceit.
    """

    digests: Mapping[str, tuple[str, str]]
    by: str
    open: bool = False


async def debian_release(tree: Tree, suite: str, arch: str, scratch: Path, keyring: Path) -> Expected:
    """Digests of the netboot files, by the chain SHA256SUMS <- Release <- the archive's signing key.

    Sources: https://wiki.debian.org/DebianRepository/Format; sections "Release files" and "Installer".
    Raises Missing when the tree is no Debian mirror, MediaError when the chain breaks.
    """
    release = await _signed_release(tree, f"dists/{suite}", scratch, keyring)
    codename = next(
        (line.split(":", 1)[1].strip() for line in release.splitlines() if line.startswith("Codename:")), ""
    )
    if codename != suite:
        raise MediaError(
            f"{tree.where} gives the Release of {codename or 'nothing'} for {suite}; use another mirror"
        )
    images = f"main/installer-{arch}/current/images"
    wanted = _release_sums(release).get(f"{images}/SHA256SUMS")
    if wanted is None:
        raise MediaError(f"the Release of {suite} on {tree.where} lists no installer for {arch}")
    sums = await tree.read(f"dists/{suite}/{images}/SHA256SUMS")
    if hashlib.sha256(sums).hexdigest() != wanted:
        raise MediaError(
            f"{tree.where}: SHA256SUMS of the installer does not match the signed Release; the mirror is being updated, or lies"
        )
    return Expected(
        {f"dists/{suite}/{images}/{path}": ("sha256", digest) for path, digest in checksums(sums).items()},
        f"Release of {suite}, signed by a key of {keyring.name}",
    )


async def _signed_release(tree: Tree, dists: str, scratch: Path, keyring: Path) -> str:
    """The text of Release that the signature covers, and no more."""
    if not keyring.is_file():
        raise MediaError(
            f"{keyring} is missing, so no Debian mirror can be checked: apt install debian-archive-keyring"
        )
    signed, detached = scratch / "InRelease.part", scratch / "Release.gpg.part"
    try:
        signed.write_bytes(await tree.read(f"{dists}/InRelease"))
        return (await _gpgv(keyring, tree.where, "--output", "-", str(signed))).decode(errors="replace")
    except Missing:
        release = await tree.read(f"{dists}/Release")
        signed.write_bytes(release)
        detached.write_bytes(await tree.read(f"{dists}/Release.gpg"))
        await _gpgv(keyring, tree.where, str(detached), str(signed))
        return release.decode(errors="replace")
    finally:
        signed.unlink(missing_ok=True)
        detached.unlink(missing_ok=True)


async def _gpgv(keyring: Path, where: str, *arguments: str) -> bytes:
    """Run gpgv; its standard output when at least one signature is good and none is bad.

    Its exit status is no help: a second signature by a key that is not in the ring makes it fail (apt reads the status
    lines, too). Status lines: GnuPG's doc/DETAILS.
    """
    _, out, status = await run("gpgv", "--status-fd", "2", "--keyring", str(keyring), *arguments)
    words = {
        line.split()[1]
        for line in status.decode(errors="replace").splitlines()
        if line.startswith("[GNUPG:] ")
    }
    if "VALIDSIG" not in words or words & {"BADSIG", "NODATA"}:
        raise MediaError(
            f"what {where} says of itself carries no good signature of {keyring.name}: nothing is taken from there"
        )
    return out


async def signed_by(keyring: Path, where: str, text: bytes, signature: bytes, scratch: Path) -> None:
    """Raises MediaError unless a key of ``keyring`` made this detached signature."""
    if not keyring.is_file():
        raise MediaError(f"there is no keyring {keyring}")
    signed, detached = scratch / "signed.part", scratch / "signature.part"
    try:
        signed.write_bytes(text)
        detached.write_bytes(signature)
        await _gpgv(keyring, where, str(detached), str(signed))
    finally:
        signed.unlink(missing_ok=True)
        detached.unlink(missing_ok=True)


async def gpg_verified(
    key: bytes, where: str, file: Path, signature: bytes, scratch: Path, *, output: Path | None = None
) -> str:
    """The fingerprint of the key of the binary keyring ``key`` that signed ``file``. Raises MediaError when none did.

    ``signature`` is detached; empty, when ``file`` is signed in itself: then what it covers is written to ``output``.
    """
    keyring, detached = scratch / f"{file.name}.keyring.part", scratch / f"{file.name}.sig.part"
    try:
        keyring.write_bytes(key)
        detached.write_bytes(signature)
        told = ["--output", str(output)] if output else []
        files = [str(detached), str(file)] if signature else [str(file)]
        _, _, status = await run("gpgv", "--status-fd", "2", "--keyring", str(keyring), *told, *files)
    finally:
        keyring.unlink(missing_ok=True)
        detached.unlink(missing_ok=True)
    lines = [
        line.split()[1:]
        for line in status.decode(errors="replace").splitlines()
        if line.startswith("[GNUPG:] ")
    ]
    words = {line[0] for line in lines}
    signers = [line[-1] for line in lines if line[0] == "VALIDSIG"]
    if not signers or words & {"BADSIG", "NODATA", "EXPKEYSIG", "REVKEYSIG", "EXPSIG"}:
        raise MediaError(
            f"{where} carries no good signature by the key that was given: refused, nothing was kept"
        )
    return signers[0]


def _release_sums(release: str) -> dict[str, str]:
    """The SHA256 section of a Release file: path -> digest."""
    sums: dict[str, str] = {}
    inside = False
    for line in release.splitlines():
        if not line.startswith(" "):
            inside = line.strip() == "SHA256:"
        elif inside and len(words := line.split()) == 3:
            sums[words[2]] = words[0].lower()
    return sums


def checksums(text: bytes, length: int = 64) -> dict[str, str]:
    """sha256sum's format (sha512sum's with ``length`` 128 hex digits): path (without ./) -> digest."""
    pairs = (line.split(maxsplit=1) for line in text.decode(errors="replace").splitlines())
    return {
        pair[1].lstrip("*").removeprefix("./"): pair[0].lower()
        for pair in pairs
        if len(pair) == 2 and len(pair[0]) == length
    }


async def checksum_list(tree: Tree, folder: str) -> Expected | None:
    """SHA256SUMS in ``folder`` of the tree or above it; None when there is none."""
    here = folder
    while True:
        prefix = f"{here}/" if here else ""
        try:
            sums = checksums(await tree.read(f"{prefix}SHA256SUMS"))
        except Missing:
            sums = {}
        if sums:
            return Expected(
                {prefix + path: ("sha256", d) for path, d in sums.items()}, f"SHA256SUMS in {tree.where}"
            )
        if not here:
            return None
        here = here.rpartition("/")[0]


def dpkg_list(tree: DirectoryTree, paths: tuple[str, ...]) -> Expected | None:
    """The MD5 sums dpkg keeps of installed packages; None when the files belong to no netboot package."""
    for listing in sorted(_DPKG_LISTS.glob("debian-installer-*-netboot-*.md5sums")):
        lines = (line.split(maxsplit=1) for line in listing.read_text().splitlines())
        known = {f"/{pair[1]}": pair[0] for pair in lines if len(pair) == 2}
        found = {
            path: ("md5", known[full])
            for path in paths
            if (full := str((tree.root / path).resolve())) in known
        }
        if len(found) == len(paths):
            return Expected(found, f"checksums of the installed package {listing.stem}")
    return None


def treeinfo(text: bytes, where: str, arch: str) -> Expected:
    """The [checksums] of a RHEL-family .treeinfo. Raises MediaError when it is another architecture's, or lists none.

    Source: https://release-engineering.github.io/productmd/treeinfo-1.2.html
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text.decode())
        own = parser.get("tree", "arch", fallback=parser.get("general", "arch", fallback=arch))
        rows = dict(parser.items("checksums"))
    except configparser.NoSectionError as error:
        raise MediaError(
            f"{where}/.treeinfo lists no [checksums] for its files; take a whole tree or ISO of the distribution"
        ) from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise MediaError(f"{where}/.treeinfo cannot be read: {type(error).__name__}") from error
    if own != arch:
        raise MediaError(f"{where} is for {own}, not for {arch}; give --arch {own} or another source")
    digests = {}
    for path, value in rows.items():
        algorithm, _, digest = value.partition(":")
        if algorithm in {"sha256", "sha512"}:
            digests[path] = (algorithm, digest.strip().lower())
    return Expected(digests, f".treeinfo of {where}")


def agrees(file: Path, expected: tuple[str, str]) -> bool:
    """Whether the file has the digest. Blocks: call it in a thread."""
    algorithm, digest = expected
    with file.open("rb") as content:
        return (
            hashlib.file_digest(
                content, lambda: hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
            ).hexdigest()
            == digest
        )
