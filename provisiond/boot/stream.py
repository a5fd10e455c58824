"""An image sent to a machine: straight from the page cache to its socket with sendfile(2), in ranges (RFC 9110 section 14).

The daemon's event loop (uvloop) has no sendfile, so it is called here on a duplicate of the connection's descriptor, which the
loop may watch beside its own. What is not in the page cache is read by a thread first: the loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from provisiond.boot.image_source import ImageSource
from provisiond.boot.shares import Busy, Limits, Share, Shares

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
STALL_SECONDS = 60.0
"""A machine that takes nothing for so long has gone; it will ask again for what is missing."""
_PROBE = 256 << 10
_AHEAD = 8 << 20


def pieces(parts: Iterable[tuple[int, int]], start: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset in the file, bytes) of the stream's part that begins at byte ``start`` and is ``length`` long.

    ``parts`` of the file, (offset, bytes), one after another are the stream.
    """
    for offset, size in parts:
        if start < size and length > 0:
            take = min(size - start, length)
            yield offset + start, take
            start, length = 0, length - take
        else:
            start -= min(size, start)


def byte_range(header: str, total: int) -> tuple[int, int] | None:
    """(start, length) that a Range header asks of ``total`` bytes; None for all of it (no or several ranges, other units).

    Raises HTTPRequestRangeNotSatisfiable.
    """
    found = _RANGE.fullmatch(header.strip())
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:  # the last so many bytes
        start, end = max(0, total - int(found[2])), total - 1
    else:
        start, end = int(found[1]), min(int(found[2]) if found[2] else total - 1, total - 1)
    if start > end:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{total}"})
    return start, end - start + 1


async def send_image(
    request: web.Request, source: ImageSource, shares: Shares, limits: Limits, machine: str
) -> web.StreamResponse:
    """Answer ``request`` with the stream, or the part of it that it asks for, when ``machine`` may have it now.

    503 with Retry-After where all streams of its lane are taken.
    """
    wanted = byte_range(request.headers.get("Range", ""), source.size)
    if request.headers.get("If-Range", source.etag) != source.etag:
        wanted = None
    response = web.StreamResponse(status=206 if wanted else 200)
    start, length = wanted or (0, source.size)
    response.headers.update(
        {"ETag": source.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    )
    if wanted:
        response.headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{source.size}"
    response.content_length = length
    if request.method == "HEAD":
        await response.prepare(request)
        await response.write_eof()
        return response
    try:
        share = shares.enter(limits, machine)
    except Busy as busy:
        raise web.HTTPServiceUnavailable(
            text=f"{busy}\n", headers={"Retry-After": str(busy.retry_after)}
        ) from busy
    with share:
        file = await asyncio.to_thread(_open, source.path)
        try:
            await response.prepare(request)
            await _send(request, file, pieces(source.parts, start, length), share)
        finally:
            os.close(file)
        await response.write_eof()
    return response


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


async def _send(request: web.Request, file: int, parts: Iterator[tuple[int, int]], share: Share) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the machine hung up")
    await _head_sent(transport)
    out = os.dup(transport.get_extra_info("socket").fileno())
    try:
        for begin, count in parts:
            offset, end = begin, begin + count
            ready = offset  # so far it is known to be in the page cache
            while offset < end:
                granted = await share.grant(end - offset)
                sent = 0
                try:
                    if ready < offset + granted:
                        ready = min(offset + _AHEAD, end)
                        if not _cached(file, offset, ready - offset):
                            await asyncio.to_thread(_read_ahead, file, offset, ready - offset)
                    sent = os.sendfile(out, file, offset, granted)
                    if not sent:
                        raise ConnectionResetError("the image became shorter while it was sent")
                except BlockingIOError:
                    pass
                finally:
                    share.used(granted, sent)
                offset += sent
                if sent < granted:
                    await _writable(out)
    finally:
        os.close(out)


async def _head_sent(transport: asyncio.Transport) -> None:
    """Until what the connection's own buffer holds is on its way: the answer's head goes first."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110 - only its protocol is told
                await asyncio.sleep(0.005)
    except TimeoutError:
        transport.abort()
    if transport.is_closing():
        raise ConnectionResetError("the machine hung up")


async def _writable(out: int) -> None:
    """Until the socket takes more. Raises ConnectionResetError when it takes nothing for STALL_SECONDS."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(out, ready.set)
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await ready.wait()
    except TimeoutError:
        raise ConnectionResetError(f"the machine took nothing for {STALL_SECONDS:.0f} s") from None
    finally:
        loop.remove_writer(out)


def _cached(file: int, offset: int, count: int) -> bool:
    """Whether this part can be read without waiting (preadv2(2), RWF_NOWAIT); sampled, as the kernel reads ahead in runs."""
    byte = [bytearray(1)]
    try:
        for place in range(offset, offset + count, _PROBE):
            os.preadv(file, byte, place, os.RWF_NOWAIT)
        os.preadv(file, byte, offset + count - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system in memory, which cannot be asked
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return True


def _read_ahead(file: int, offset: int, count: int) -> None:
    """Bring a part of the file into the page cache. Blocks."""
    with suppress(OSError):
        os.posix_fadvise(file, offset, count, os.POSIX_FADV_WILLNEED)
    buffer = bytearray(1 << 20)
    for place in range(offset, offset + count, len(buffer)):
        os.preadv(file, [memoryview(buffer)[: min(len(buffer), offset + count - place)]], place)
