"""A root file system in a tar: looked through member by member, and kept as tar.zst. Nothing is ever unpacked on this machine.

Refused is what could leave the place it is unpacked to: absolute names, `..`, members that lie below a symbolic link. Devices are
taken below dev only, where the machine's own /dev covers them.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from provisiond.media.fetch import MediaError, OnProgress
from provisiond.media.plain import Plain

LEVEL = 3
MEMBERS = 4_000_000
_CHUNK = 1 << 20
_HEADER = 1 << 20
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True)
class Rootfs:
    """``sha256`` is that of the file that was written; ``content_bytes`` what its files hold, each rounded up to 4 KiB."""

    sha256: str
    content_bytes: int
    members: int


class _Header(tarfile.TarInfo):
    """A header whose extensions (pax, long names) are bounded: tarfile takes them into memory whole."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _HEADER:
            raise tarfile.ReadError(f"an extended header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


class _Tee:
    """Gives tarfile the plain bytes and writes them compressed on the way."""

    def __init__(self, plain: Plain, out: BinaryIO, total: int, on_progress: OnProgress) -> None:
        self._plain, self._out, self._total, self._on_progress = plain, out, total, on_progress
        self._packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, threads=2).compressobj()
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._plain.read(size)
        self._write(self._packer.compress(data))
        self._on_progress("unpack", self._plain.taken, self._total)
        return data

    def finish(self) -> None:
        """The rest behind the archive's end, and the end of the stream."""
        while self.read(_CHUNK):
            pass
        self._write(self._packer.flush())

    def _write(self, packed: bytes) -> None:
        self._out.write(packed)
        self.digest.update(packed)


def keep_rootfs(plain: Plain, total: int, to: Path, source: str, on_progress: OnProgress) -> Rootfs:
    """Check the tar that ``plain`` gives (``total``: bytes of its file) and write it to ``to`` as tar.zst. Blocks.

    Raises MediaError when it is no tar, holds what is refused, or is no root file system.
    """
    with to.open("wb") as out:
        tee = _Tee(plain, out, total, on_progress)
        seen = _Seen(source, plain.limit)
        try:
            # errors of headers are said, not passed over; "|" reads forward only
            with tarfile.open(fileobj=tee, mode="r|", errorlevel=2, bufsize=_CHUNK, tarinfo=_Header) as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    seen.take(member)
                    tar.members.clear()  # they are not needed again
            tee.finish()
        except tarfile.TarError as error:
            raise MediaError(f"{source} is no tar, or a broken one: {error}") from error
        seen.must_be_a_root()
        return Rootfs(tee.digest.hexdigest(), seen.content_bytes, seen.members)


class _Seen:
    """What was met so far."""

    def __init__(self, source: str, limit: int) -> None:
        self._source, self._limit = source, limit
        self._links: set[str] = set()
        self._top: set[str] = set()
        self.members = self.content_bytes = 0

    def take(self, member: tarfile.TarInfo) -> None:
        self.members += 1
        if self.members > MEMBERS:
            raise MediaError(f"{self._source} has more than {MEMBERS} members: refused")
        name = self._inside(member.name, member.name)
        self._top.add(name.split("/", 1)[0])
        if member.issym():
            self._links.add(name)
        elif member.islnk():
            self._inside(member.linkname, member.name)
        elif member.isfile():
            self.content_bytes += -(-member.size // 4096) * 4096
        elif member.ischr() or member.isblk():
            if not name.startswith("dev/"):
                self._refuse(member.name, "is a device outside of dev")
        elif not (member.isdir() or member.isfifo()):
            self._refuse(member.name, f"is of an unknown kind ({member.type!r})")
        self.content_bytes += 4096
        if self.content_bytes > self._limit:
            raise MediaError(f"{self._source} holds more than {self._limit >> 40} TiB: refused")
        if not member.issym():
            self._links.discard(name)

    def _inside(self, path: str, member: str) -> str:
        """``path`` in its plain form, when it stays inside."""
        if path.startswith("/") or ".." in path.split("/"):
            self._refuse(member, "leaves the root it is unpacked to")
        plain = posixpath.normpath(path)
        parts = plain.split("/")
        if any("/".join(parts[:depth]) in self._links for depth in range(1, len(parts))):
            self._refuse(member, "lies below a symbolic link of the same archive")
        return plain

    def _refuse(self, member: str, why: str) -> None:
        raise MediaError(f"{self._source}: member {member[:200]!r} {why}: refused; make the archive anew")

    def must_be_a_root(self) -> None:
        if not {"etc", "usr"} <= self._top:
            raise MediaError(
                f"{self._source} is no root file system: it has no ./etc and ./usr; pack it with 'tar -C ROOT .'"
            )
