"""A host's console log: its end, or all that comes as it comes. And what its ramdisk logged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web
from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.errors import NotFound
from provisiond.inventory.hosts import get_host
from provisiond.inventory.shapes import Request
from provisiond.lifecycle import agent_logs

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


class AgentLogQuery(Request):
    """``work``: the id of the deployment or task that the log was about; without it the newest log is meant."""

    work: str = Field("", pattern=r"^[A-Za-z0-9-]{0,64}$")


async def read_agent_log(deps: ApiDeps, name: str, query: AgentLogQuery) -> web.Response:
    """Plain text as the ramdisk's agent sent it at the end of its work. Raises NotFound where it sent none."""
    host = await get_host(deps.store, name)
    folder = deps.settings.state.agent_log_dir
    found = await asyncio.to_thread(agent_logs.latest, folder, host.id, query.work)
    if found is None:
        raise NotFound("log of the ramdisk", query.work or name)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Work": found.work}
    return web.Response(text=found.text, headers=headers)


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
