"""Where an installer's files come from: a mirror, a directory or an ISO, each read in the same three ways."""

from __future__ import annotations

import asyncio
import io
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from provisiond.media.fetch import Fetched, Fetcher, MediaError, Missing, OnProgress, copy_file, copy_stream

INDEX_LIMIT = 64 << 20


class Tree(Protocol):
    """Files by relative path. ``authentic``: what it says of itself may be believed (it is local, or came over TLS)."""

    where: str
    authentic: bool

    async def read(self, path: str) -> bytes:
        """A small file (64 MiB at most). Raises Missing, MediaError."""

    async def take(self, path: str, to: Path, *, limit: int, what: str, on_progress: OnProgress) -> Fetched:
        """A large file into ``to``, flushed. Raises Missing, MediaError."""

    async def has(self, path: str) -> bool:
        """Whether there is such a file."""


class MirrorTree:
    """A directory of a web server."""

    def __init__(self, url: str, fetcher: Fetcher) -> None:
        self.where = url.rstrip("/")
        self.authentic = url.startswith("https:")
        self._fetcher = fetcher

    async def read(self, path: str) -> bytes:
        return await self._fetcher.text(f"{self.where}/{path}", limit=INDEX_LIMIT)

    async def take(self, path: str, to: Path, *, limit: int, what: str, on_progress: OnProgress) -> Fetched:
        return await self._fetcher.file(
            f"{self.where}/{path}", to, limit=limit, what=what, on_progress=on_progress
        )

    async def has(self, path: str) -> bool:
        try:
            await self.read(path)
        except Missing:
            return False
        return True


class DirectoryTree:
    """A directory of this machine."""

    authentic = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root)

    async def read(self, path: str) -> bytes:
        file = self.root / path
        if not file.is_file():
            raise Missing(f"{file} does not exist")
        if file.stat().st_size > INDEX_LIMIT:
            raise MediaError(f"{file} is too large for a list of checksums")
        return await asyncio.to_thread(file.read_bytes)

    async def take(self, path: str, to: Path, *, limit: int, what: str, on_progress: OnProgress) -> Fetched:
        if not await self.has(path):
            raise Missing(f"{self.root / path} does not exist")
        return await asyncio.to_thread(
            lambda: copy_file(self.root / path, to, limit=limit, what=what, on_progress=on_progress)
        )

    async def has(self, path: str) -> bool:
        return (self.root / path).is_file()


class IsoTree:
    """An ISO image (ISO 9660 with Rock Ridge or Joliet), read in place. ``authentic`` as its file is."""

    def __init__(self, file: Path, where: str, *, authentic: bool) -> None:
        self.where = where
        self.authentic = authentic
        self._file = file
        self._iso: Any = None
        self._turn = asyncio.Lock()  # one reader at a time: the library seeks in one file

    async def read(self, path: str) -> bytes:
        out = io.BytesIO()

        def copy(source: Any, size: int) -> None:
            if size > INDEX_LIMIT:
                raise MediaError(f"{path} in {self.where} is too large for a list of checksums")
            out.write(source.read())

        await self._with(path, copy)
        return out.getvalue()

    async def take(self, path: str, to: Path, *, limit: int, what: str, on_progress: OnProgress) -> Fetched:
        def copy(source: Any, size: int) -> Fetched:
            with to.open("wb") as out:
                return copy_stream(
                    source,
                    out,
                    f"{path} in {self.where}",
                    total=size,
                    limit=limit,
                    what=what,
                    on_progress=on_progress,
                )

        fetched: Fetched = await self._with(path, copy)
        return fetched

    async def has(self, path: str) -> bool:
        try:
            await self._with(path, lambda _source, _size: None)
        except Missing:
            return False
        return True

    async def close(self) -> None:
        if self._iso is not None:
            await asyncio.to_thread(self._iso.close)
            self._iso = None

    async def _with(self, path: str, work: Any) -> Any:
        async with self._turn:
            return await asyncio.to_thread(self._open_and, path, work)

    def _open_and(self, path: str, work: Any) -> Any:
        try:
            if self._iso is None:
                iso = pycdlib.PyCdlib()
                iso.open(str(self._file))
                self._iso = iso
            for kind in self._kinds(path):
                with suppress(PyCdlibException):
                    record = self._iso.get_record(**kind)
                    if record.is_dir():
                        continue
                    with self._iso.open_file_from_iso(**kind) as source:
                        return work(source, source.length())
        except (PyCdlibException, OSError, ValueError, IndexError) as error:
            raise MediaError(
                f"{self.where} cannot be read as an ISO image: {error}; check that it is whole"
            ) from error
        raise Missing(f"{self.where} holds no {path}")

    def _kinds(self, path: str) -> list[dict[str, str]]:
        kinds = []
        if self._iso.has_rock_ridge():
            kinds.append({"rr_path": f"/{path}"})
        if self._iso.has_joliet():
            kinds.append({"joliet_path": f"/{path}"})
        if self._iso.has_udf():
            kinds.append({"udf_path": f"/{path}"})
        kinds.append({"iso_path": f"/{path.upper()};1"})
        return kinds
