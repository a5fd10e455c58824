"""A host's console log: its end, or all that comes as it comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web
from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.inventory.hosts import get_host
from provisiond.inventory.shapes import Request

_CHUNK = 64 * 1024
_LOOK_SECONDS = 0.3


class ConsoleQuery(Request):
    """``tail``: how many bytes from the end; ``follow``: go on sending what the host writes until the client leaves."""

    tail: int = Field(64 * 1024, ge=0, le=8 << 20)
    follow: bool = False


async def read_console(
    deps: ApiDeps, name: str, query: ConsoleQuery, request: web.Request
) -> web.StreamResponse:
    """Plain text as the machine wrote it, control characters and all."""
    host = await get_host(deps.store, name)
    path = deps.consoles.path(host.id)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/plain; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
    )
    await response.prepare(request)
    offset = max(0, _size(path) - query.tail)
    try:
        while True:
            chunk = await asyncio.to_thread(_read, path, offset)
            if chunk:
                offset += len(chunk)
                await response.write(chunk)
                continue
            if (
                not query.follow
                or deps.history.closed
                or request.transport is None
                or request.transport.is_closing()
            ):
                break
            await asyncio.sleep(_LOOK_SECONDS)
            if _size(path) < offset:  # a new log was begun
                offset = 0
    except (ConnectionResetError, ConnectionAbortedError):
        pass
    return response


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK)
    except OSError:
        return b""
