"""A daemon's door for the ramdisk's agent that misbehaves as it is told, and small images to write through it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MIB = 1 << 20
Answer = Callable[[web.Request], web.Response | None]


@dataclass
class SmallImage:
    """A sparse disk image: its extents, its used blocks as raw and as zstd frames, and what the disk must be in the end."""

    disk: bytes
    extents: list[tuple[int, int]]
    frame_mib: int = 2
    frames: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.raw = b"".join(self.disk[first * MIB : (first + count) * MIB] for first, count in self.extents)
        size = self.frame_mib * MIB
        self.frames = [
            subprocess.run(
                ["zstd", "-qc1", "--check"], input=self.raw[at : at + size], capture_output=True, check=True
            ).stdout
            for at in range(0, len(self.raw), size)
        ]

    @property
    def size_mib(self) -> int:
        return len(self.disk) // MIB

    def map(self) -> dict[str, Any]:
        return {
            "size_mib": self.size_mib,
            "extents": [list(extent) for extent in self.extents],
            "frame_mib": self.frame_mib,
            "frames": [len(frame) for frame in self.frames],
        }

    def plan(self, url: str, encoding: str = "raw") -> dict[str, Any]:
        """The plan's `image`."""
        return {
            "url": f"{url}/image-{encoding}",
            "map": f"{url}/map",
            "encoding": encoding,
            "sha256": hashlib.sha256(self.raw).hexdigest(),
            "size_mib": self.size_mib,
            "used_mib": len(self.raw) // MIB,
            "root": None,
        }


def random_image(extents: list[tuple[int, int]], size_mib: int, seed: int = 1) -> SmallImage:
    """An image of bytes that compress by half."""
    disk, some = bytearray(size_mib * MIB), random.Random(seed)
    for first, count in extents:
        for mib in range(first, first + count):
            disk[mib * MIB : (mib + 1) * MIB] = some.randbytes(MIB // 2) + bytes([mib % 255 + 1]) * (MIB // 2)
    return SmallImage(bytes(disk), extents)


@dataclass
class Cut:
    """What happens to one request for the image: `after` so many bytes the connection ends, or stalls for good."""

    after: int | None = None
    stall: bool = False
    status: int = 0
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)


class Door:
    """The server in a thread of its own. `cuts` are used up one a request for the image; `posts` is what the agent said."""

    def __init__(self, image: SmallImage | None = None, plans: list[dict[str, Any]] | None = None) -> None:
        self.image = image
        self.plans = plans or []
        self.cuts: list[Cut] = []
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.requests: list[tuple[str, str]] = []  # path, Range
        self.files: dict[str, bytes] = {}
        self.troubles: list[int] = []  # statuses of the next calls below /agent
        self.stop: str | None = None  # why the work is called off
        self.session = "s-1"
        self.secret = ""
        self.claim_status = 200
        self.etag = '"one"'
        self.corrupt: bytes | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Door:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def up(self) -> None:
        """Listen; again on the same port after `down`."""
        asyncio.run_coroutine_threadsafe(self._up(), self._loop).result()

    def down(self) -> None:
        """As a kill: every connection ends."""
        asyncio.run_coroutine_threadsafe(self._down(), self._loop).result()

    async def _up(self) -> None:
        app = web.Application(client_max_size=4 * MIB)
        app.router.add_get("/map", self._map)
        app.router.add_get("/image-{encoding}", self._image)
        app.router.add_get("/agent/plan", self._plan)
        app.router.add_post("/agent/{name}", self._post)
        app.router.add_get("/{path:.+}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _down(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def said(self, name: str) -> list[dict[str, Any]]:
        """The bodies of POST /agent/NAME."""
        return [body for posted, body in self.posts if posted == name]

    def _proved(self, request: web.Request) -> web.Response | None:
        if self.troubles:
            return web.Response(status=self.troubles.pop(0), text="trouble")
        if request.headers.get("Authorization") != f"Bearer {self.session}:{self.secret}":
            return web.Response(status=401, text="who are you?")
        return None

    async def _map(self, request: web.Request) -> web.Response:
        assert self.image
        return web.json_response(self.image.map())

    async def _plan(self, request: web.Request) -> web.Response:
        if (refused := self._proved(request)) is not None:
            return refused
        return web.json_response(self.plans[0] if len(self.plans) == 1 else self.plans.pop(0))

    async def _post(self, request: web.Request) -> web.Response:
        name, body = request.match_info["name"], json.loads(await request.read())
        if name == "claim":
            if self.claim_status != 200:
                return web.Response(status=self.claim_status, text="this ticket was used by another machine")
            if self.secret and self.secret != body["secret"]:
                return web.Response(status=403, text="used by another machine")
            self.secret = body["secret"]
            self.posts.append((name, body))
            return web.json_response({"session": self.session, "host": "web01"})
        if (refused := self._proved(request)) is not None:
            return refused
        self.posts.append((name, body))
        if name == "progress":
            return web.json_response({"go": False, "why": self.stop} if self.stop else {"go": True})
        return web.json_response({"host": "web01"} if name == "facts" else {})

    async def _file(self, request: web.Request) -> web.Response:
        body = self.files.get(request.match_info["path"])
        return web.Response(body=body) if body is not None else web.Response(status=404, text="no such file")

    async def _image(self, request: web.Request) -> web.StreamResponse:
        assert self.image
        wanted = request.headers.get("Range", "")
        self.requests.append((request.path, wanted))
        cut = self.cuts.pop(0) if self.cuts else Cut()
        if cut.status:
            return web.Response(status=cut.status, headers=cut.headers)
        body = self.image.raw if request.match_info["encoding"] == "raw" else b"".join(self.image.frames)
        body = self.corrupt or body
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and cut.ranges else 0
        if request.headers.get("If-Range", self.etag) != self.etag:
            start = 0
        response = web.StreamResponse(
            status=206 if start else 200, headers={"ETag": self.etag, **cut.headers}
        )
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        response.content_length = len(body) - start
        await response.prepare(request)
        end = len(body) if cut.after is None else min(len(body), start + cut.after)
        for at in range(start, end, 256 * 1024):
            await response.write(body[at : min(end, at + 256 * 1024)])
        if cut.stall:
            await asyncio.sleep(3600)
        if cut.after is not None and request.transport:
            request.transport.close()
        return response
