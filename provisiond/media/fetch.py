"""Fetching from http(s) and from files, with limits: size, scheme, redirects, and addresses no medium ever comes from.

The connection goes to the very address that was checked (a name cannot change its mind in between), nothing is decompressed
on the way, and no credentials are sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from provisiond.errors import ProvisiondError

OnProgress = Callable[[str, int, int | None], None]
"""Told (what is being done, bytes so far, bytes in all or None when unknown). Called from the event loop or a worker thread."""

CHUNK = 1 << 20
MAX_REDIRECTS = 5
RESERVE = 256 << 20
TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30, sock_connect=30, sock_read=60)

# Link-local (which holds the clouds' metadata address), and the metadata addresses outside it.
_FORBIDDEN = tuple(
    ipaddress.ip_network(n)
    for n in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::254/128",
        "100.100.100.200/32",
        "0.0.0.0/8",
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
    )
)


class MediaError(ProvisiondError):
    """A medium or image cannot be taken: says which source, what is wrong with it, and what to do. Nothing is kept of it."""


@dataclass(frozen=True)
class Fetched:
    """A file as it was taken: its digest in hex and its size in bytes."""

    sha256: str
    size: int


class _CheckedResolver(AbstractResolver):
    """Resolves names and drops the addresses that nothing is fetched from."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for entry in found:
            refuse_address(entry["host"], host)
        return found

    async def close(self) -> None:
        await self._inner.close()


def refuse_address(address: str, asked: str) -> None:
    """Raise MediaError when ``address`` is link-local, multicast, unspecified or a cloud's metadata service."""
    ip = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    if any(ip.version == net.version and ip in net for net in _FORBIDDEN):
        raise MediaError(
            f"{asked} is at {ip}: media are never fetched from link-local or metadata addresses; give another source"
        )


def check_url(url: str) -> str:
    """The URL again, if media may come from there; else MediaError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise MediaError(f"{url!r}: media come from http:// or https:// URLs, or from a path on this machine")
    if parts.username or parts.password:
        raise MediaError(
            f"the URL on {parts.hostname} holds a user name or password: media sources are stored in the open; leave them out"
        )
    with suppress(ValueError):  # a name; the resolver checks what it stands for
        refuse_address(parts.hostname, parts.hostname)
    return url


class Fetcher:
    """Fetches for one import. Use as an async context manager."""

    async def __aenter__(self) -> Fetcher:
        connector = aiohttp.TCPConnector(resolver=_CheckedResolver(), limit=4)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=TIMEOUT, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "provisiond"},
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def text(self, url: str, *, limit: int) -> bytes:
        """A small file into memory. Raises MediaError, or Missing when the server says 404."""
        content = bytearray()
        async with await self._get(url) as response:
            async for chunk in response.content.iter_chunked(CHUNK):
                content += chunk
                _within(len(content), limit, url)
        return bytes(content)

    async def file(self, url: str, to: Path, *, limit: int, what: str, on_progress: OnProgress) -> Fetched:
        """A large file into ``to``, flushed to disk. Whole or MediaError; the caller removes what is left."""
        digest, size = hashlib.sha256(), 0
        async with await self._get(url) as response:
            total = response.content_length
            _within(total or 0, limit, url)
            with to.open("wb") as out:
                try:
                    async for chunk in response.content.iter_chunked(CHUNK):
                        size += len(chunk)
                        _within(size, limit, url)
                        await asyncio.to_thread(_write, out, chunk, digest)
                        on_progress(what, size, total)
                except (aiohttp.ClientError, TimeoutError) as error:
                    raise MediaError(
                        f"{url} broke off after {size} bytes ({type(error).__name__}); try again"
                    ) from error
                await asyncio.to_thread(_flush, out)
        if total is not None and size != total:
            raise MediaError(f"{url} broke off after {size} of {total} bytes; try again")
        return Fetched(digest.hexdigest(), size)

    async def _get(self, url: str) -> aiohttp.ClientResponse:
        for _ in range(MAX_REDIRECTS + 1):
            check_url(url)
            try:
                response = await self._session.get(url, allow_redirects=False)
            except MediaError:
                raise
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise MediaError(
                    f"cannot reach {url}: {error or type(error).__name__}; check the URL and the way there"
                ) from error
            if response.status in {301, 302, 303, 307, 308} and "Location" in response.headers:
                response.release()
                url = urljoin(url, response.headers["Location"])
                continue
            if response.status == 200:
                return response
            response.release()
            if response.status == 404:
                raise Missing(f"{url} does not exist (404); check --from")
            raise MediaError(
                f"{url} answered {response.status} {response.reason}; check --from, or try again"
            )
        raise MediaError(f"{url}: more than {MAX_REDIRECTS} redirects")


class Missing(MediaError):
    """The server has no such file."""


def copy_file(source: Path, to: Path, *, limit: int, what: str, on_progress: OnProgress) -> Fetched:
    """A regular file of this machine into ``to``, flushed to disk. Blocks: call it in a thread. Raises MediaError.

    Devices, pipes and the like are refused: they end never or say something else the second time.
    """
    try:
        with (
            open(source, "rb", opener=_open_regular) as read,
            to.open("wb") as out,
        ):
            total = os.fstat(read.fileno()).st_size
            return copy_stream(
                read, out, str(source), total=total, limit=limit, what=what, on_progress=on_progress
            )
    except OSError as error:
        raise MediaError(f"cannot read {source}: {error.strerror or error}") from error


def read_file(path: Path, limit: int) -> bytes:
    """A small regular file of this machine. Blocks. Raises MediaError."""
    if not path.is_absolute():
        raise MediaError(f"{path} is not an absolute path; the daemon does not know where you stand")
    try:
        with open(path, "rb", opener=_open_regular) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
    _within(len(content), limit, str(path))
    return content


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes: ...


def copy_stream(
    read: Readable,
    out: BinaryIO,
    name: str,
    *,
    total: int | None,
    limit: int,
    what: str,
    on_progress: OnProgress,
) -> Fetched:
    """Copy with the limit, the digest and the progress; zeros become holes; flushes ``out`` to disk. Blocks."""
    digest, size = hashlib.sha256(), 0
    _within(total or 0, limit, name)
    while chunk := read.read(CHUNK):
        size += len(chunk)
        _within(size, limit, name)
        digest.update(chunk)
        if chunk.count(0) == len(chunk):
            out.seek(len(chunk), os.SEEK_CUR)
        else:
            _room(out, name)
            out.write(chunk)
        on_progress(what, size, total)
    out.truncate(size)
    _flush(out)
    return Fetched(digest.hexdigest(), size)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not os.path.isfile(f"/proc/self/fd/{descriptor}"):  # noqa: PTH113 - a pathlib of an open file does not exist
        os.close(descriptor)
        raise MediaError(f"{path} is not a regular file")
    return descriptor


def _room(out: BinaryIO, name: str) -> None:
    """Raise MediaError before the file system is full: the daemon's own database may lie on it."""
    left = os.fstatvfs(out.fileno())
    if left.f_bavail * left.f_frsize < RESERVE:
        raise MediaError(
            f"no room for {name}: less than {RESERVE >> 20} MiB are left on the disk of state.dir"
        )


def _write(out: BinaryIO, chunk: bytes, digest: hashlib._Hash) -> None:
    _room(out, "what is fetched")
    out.write(chunk)
    digest.update(chunk)


def _flush(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _within(size: int, limit: int, name: str) -> None:
    if size > limit:
        raise MediaError(f"{name} is larger than {limit >> 20} MiB, the most that is taken for such a file")
