"""Reading what is compressed, with bounds on memory: a small file that unpacks to more than there may be is stopped on the way."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import zstandard

from provisiond.media.fetch import MediaError

_SLICE = 4096  # of compressed bytes: what they can become at once is some 130 MiB in the worst case (zstd's run blocks)
_MEMORY = 512 << 20


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "zst": lambda: zstandard.ZstdDecompressor(max_window_size=_MEMORY).decompressobj(),
    "xz": lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY),
    "gz": lambda: zlib.decompressobj(wbits=31),
}


class Plain:
    """What ``file`` holds when it is unpacked: read() gives as many bytes as asked until the end.

    Several streams one after another are one, as zstd, xz and gzip have it. Raises MediaError when it is no such file, broken,
    cut short, or unpacks to more than ``limit`` bytes. Blocks.
    """

    def __init__(self, file: BinaryIO, compression: str, name: str, limit: int) -> None:
        self._file, self._compression, self._name, self.limit = file, compression, name, limit
        self._make = _DECODERS.get(compression)
        self._decoder: _Decoder | None = None
        self._left = b""  # compressed
        self._ready = bytearray()
        self._begun = False
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def taken(self) -> int:
        """Bytes of the file that were read."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        if self._make is None:
            found = self._file.read(size)
        else:
            while len(self._ready) < size and (more := self._more()) is not None:
                self._ready += more
            found = bytes(memoryview(self._ready)[:size])
            del self._ready[:size]
        self.size += len(found)
        if self.size > self.limit:
            raise MediaError(
                f"{self._name} unpacks to more than {self.limit >> 20} MiB, the most that is taken"
            )
        return found

    def _more(self) -> bytes | None:
        """The next piece of plain bytes, maybe none of them; None at the end."""
        data = self._left or self._file.read(_SLICE)
        self._left = b""
        if self._begun and self._decoder is None and self._compression != "zst":
            data = data.lstrip(b"\0")  # padding between and after streams
            if not data and self._file.peek(1):  # type: ignore[attr-defined]
                return b""
        if not data:
            if self._decoder is not None:
                raise MediaError(f"{self._name} is cut short: it ends within its {self._compression} stream")
            if not self._begun:
                raise MediaError(f"{self._name} is empty")
            return None
        try:
            if self._decoder is None:
                assert self._make is not None
                self._decoder, self._begun = self._make(), True
            plain = self._decoder.decompress(data)
        except (lzma.LZMAError, zlib.error, zstandard.ZstdError, MemoryError) as error:
            raise MediaError(
                f"{self._name} cannot be unpacked as {self._compression}: {error or 'it wants too much memory'}"
            ) from error
        if self._decoder.eof:
            self._left, self._decoder = self._decoder.unused_data, None
        return plain


def open_plain(path: Path, compression: str, name: str, limit: int) -> Plain:
    """``path`` unpacked; ``name`` is what it is called in messages."""
    return Plain(path.open("rb"), compression, name, limit)
