"""Is this image the one its makers published? A digest that was given, a list of checksums, an OpenPGP signature, or all of them.

A list of checksums from where the image came from shows damage, not deceit: who can change the one can change the other. A
signature by a key that came another way shows both. What vouched is said in one sentence, which is kept with the image.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from provisiond.media.checks import agrees, gpg_verified
from provisiond.media.fetch import Fetched, Fetcher, MediaError, check_url, read_file

_SMALL = 4 << 20
_ARMOR = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*\n(?:[A-Za-z]+: [^\n]*\n)*\s*\n?(.*?)(?:\n=[A-Za-z0-9+/]{4})?\s*\n-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)
_GNU = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *](?:\./)?(.+)")
_BSD = re.compile(r"SHA(?:256|512) \((.+)\) = ([0-9a-fA-F]{64}|[0-9a-fA-F]{128})")


@dataclass(frozen=True)
class Proof:
    """What is to vouch for an image; '' where nothing of the kind was given.

    ``sha256`` of the file as it is fetched. ``checksums``: URL or path of a list (sha256sum's or sha512sum's format, or BSD's).
    ``signature``: URL or path of a detached signature, of the list if there is one, else of the image. Without it, ``key``
    asks for a list that is signed in itself (clear-signed). ``key``: public keys, ASCII-armoured.
    """

    sha256: str = ""
    checksums: str = ""
    signature: str = ""
    key: str = ""

    def check(self, source: str) -> None:
        """Raises MediaError when it cannot be used, or vouches for nothing where something must: plain http."""
        if self.signature and not self.key:
            raise MediaError("a signature says nothing without the key it is checked by: give --key FILE")
        if self.key and not (self.signature or self.checksums):
            raise MediaError("--key needs what was signed by it: give --signature URL, or --checksums URL")
        for url in (self.checksums, self.signature):
            if "://" in url:
                check_url(url)
        if source.startswith("http:") and not (self.sha256 or self.key):
            if self.checksums.startswith("https:"):
                return
            raise MediaError(
                f"{source} comes over plain http: give its checksum with --sha256 or a signature with --signature and --key, or use https"
            )


async def vouch(proof: Proof, source: str, file: Path, fetched: Fetched, scratch: Path) -> str:
    """What vouches for ``file``, fetched from ``source``, in a sentence. Raises MediaError when anything disagrees.

    ``scratch`` is a directory for .part files, which are removed.
    """
    said = []
    if proof.sha256:
        if fetched.sha256 != proof.sha256.lower():
            raise MediaError(
                f"{source} has SHA-256 {fetched.sha256}, not {proof.sha256}: refused, nothing was kept"
            )
        said.append("the SHA-256 that was given")
    key = _binary_key(proof.key) if proof.key else b""
    signature = await _small(proof.signature) if proof.signature else b""
    if proof.checksums:
        said.append(await _listed(proof, source, file, fetched, scratch, key, signature))
    elif proof.signature:
        by = await gpg_verified(key, source, file, signature, scratch)
        said.append(f"a signature by key {by}")
    if not said:
        where = urlsplit(source).hostname if "://" in source else ""
        said.append(f"https from {where} and nothing else" if where else "nothing: a file of this machine")
    return "; ".join(said)[:256]


async def _listed(
    proof: Proof, source: str, file: Path, fetched: Fetched, scratch: Path, key: bytes, signature: bytes
) -> str:
    text = await _small(proof.checksums)
    by = "which nobody signed"
    if key:
        listing = scratch / f"{file.name}.sums.part"
        try:
            await asyncio.to_thread(listing.write_bytes, text)
            if signature:
                signer = await gpg_verified(key, proof.checksums, listing, signature, scratch)
            else:
                signer, text = await _clear_signed(key, proof.checksums, listing, scratch)
        finally:
            listing.unlink(missing_ok=True)
        by = f"signed by key {signer}"
    path = unquote(urlsplit(source).path) if "://" in source else source
    name = path.rpartition("/")[2]
    digest = listed_digest(text, name)
    if digest is None:
        raise MediaError(f"{proof.checksums} does not list {name}: refused, nothing was kept")
    good = (
        digest == fetched.sha256
        if len(digest) == 64
        else await asyncio.to_thread(agrees, file, ("sha512", digest))
    )
    if not good:
        raise MediaError(
            f"{source} is not the {name} that {proof.checksums} lists: refused, nothing was kept"
        )
    return f"{proof.checksums.rpartition('/')[2]}, {by}"


async def _clear_signed(key: bytes, where: str, listing: Path, scratch: Path) -> tuple[str, bytes]:
    """(signer, the text that the signature covers)."""
    covered = scratch / f"{listing.name}.text.part"
    try:
        signer = await gpg_verified(key, where, listing, b"", scratch, output=covered)
        return signer, await asyncio.to_thread(covered.read_bytes)
    finally:
        covered.unlink(missing_ok=True)


def listed_digest(text: bytes, name: str) -> str | None:
    """The digest (SHA-256 or SHA-512, lower-case hex) that a list has for the file ``name``; None: it lists none.

    Raises MediaError when it lists two different ones of a kind.
    """
    found: dict[int, str] = {}
    for line in text.decode(errors="replace").splitlines():
        if gnu := _GNU.fullmatch(line.strip()):
            digest, listed = gnu[1].lower(), gnu[2]
        elif bsd := _BSD.fullmatch(line.strip()):
            digest, listed = bsd[2].lower(), bsd[1]
        else:
            continue
        if listed.rpartition("/")[2] == name and found.setdefault(len(digest), digest) != digest:
            raise MediaError(f"the list of checksums has several files {name}: give --sha256 instead")
    return found.get(64) or found.get(128)


async def _small(source: str) -> bytes:
    if "://" in source:
        async with Fetcher() as fetcher:
            return await fetcher.text(source, limit=_SMALL)
    return await asyncio.to_thread(read_file, Path(source), _SMALL)


def _binary_key(armored: str) -> bytes:
    """Keys as gpgv wants its keyring: without the armour (RFC 9580 section 6)."""
    blocks = _ARMOR.findall(armored.replace("\r\n", "\n"))
    try:
        if not blocks:
            raise ValueError
        return b"".join(base64.b64decode("".join(block.split()), validate=True) for block in blocks)
    except (ValueError, binascii.Error):
        raise MediaError(
            "the key is no ASCII-armoured OpenPGP public key: export it with 'gpg --armor --export KEYID'"
        ) from None
