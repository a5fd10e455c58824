"""A process that renders for a shadow run: ``python -m provisiond.rollouts.shadow_worker``, started by shadow_pool.py.

It reads frames (4 bytes of length, JSON) from standard input and answers each on standard output: first what to do (Task), then
ids of hosts, again and again. It reads the database itself, so the daemon's event loop carries ids and findings only. It ends when its input
does: also when the daemon was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

from sqlalchemy import select

from provisiond.errors import ProvisiondError
from provisiond.inventory.known import Known
from provisiond.inventory.release_tables import Release
from provisiond.inventory.resolve import ResolvedHost, resolve_hosts
from provisiond.inventory.store import Store
from provisiond.inventory.tables import table
from provisiond.rollouts.shadow_render import Comparer, Found
from provisiond.templating.catalogue import catalogue_of
from provisiond.templating.current import load_standing
from provisiond.templating.render import Limits, Renderer

LENGTH = struct.Struct(">I")
NICENESS = 10


def pack(message: Any) -> bytes:
    """A frame."""
    body = json.dumps(message).encode()
    return LENGTH.pack(len(body)) + body


def answer_of(found: Found) -> dict[str, Any]:
    """What a chunk came to, as JSON takes it; shadow.py stores it."""
    hosts = [
        {
            "host_id": h.host_id, "host_name": h.name, "outcome": h.outcome, "diffs": h.findings, "size": h.size,
            "size_before": h.size_before, "milliseconds": h.seconds * 1000, "milliseconds_before": h.seconds_before * 1000,
        }
        for h in found.hosts
    ]  # fmt: skip
    return {
        "hosts": hosts,
        "findings": {mark: asdict(finding) for mark, finding in found.findings.items()},
        "skipped": found.skipped,
        "validated": found.validated,
        "checked": found.checked,
    }


class Worker:
    """``task``: url (database), release_id, seconds and size (limits), boot_url, authorized_keys, validating."""

    def __init__(self, task: dict[str, Any], run: Callable[[Any], Any]) -> None:
        self._task, self._run = task, run
        self._store = Store(task["url"], pool_size=1, lock=False)
        self._known = Known()
        self._renderers: dict[str, Renderer] = {}

    def open(self) -> None:
        """Connect, and read what is current where. Raises NotFound, ConfigError, RenderError."""
        self._run(self._store.open())
        standing = self._run(self._standing())
        self._comparer = Comparer(
            self._task["release_id"],
            self._renderer,
            standing,
            boot_url=self._task["boot_url"],
            authorized_keys=self._task["authorized_keys"],
            validating=self._task["validating"],
        )
        self._renderer(self._task["release_id"])

    def look(self, ids: Sequence[str]) -> Found:
        """What these hosts come to."""
        return self._comparer.compare(self._run(self._resolve(ids)))

    def close(self) -> None:
        self._run(self._store.close())

    async def _standing(self) -> Any:
        async with self._store.read() as session:
            return await load_standing(session)

    async def _resolve(self, ids: Sequence[str]) -> list[ResolvedHost]:
        async with self._store.read() as session:
            return await resolve_hosts(session, ids, self._known)

    def _renderer(self, release_id: str) -> Renderer:
        if release_id not in self._renderers:
            release = self._run(self._release(release_id))
            limits = Limits(self._task["seconds"], self._task["size"])
            self._renderers[release_id] = Renderer(catalogue_of(release), limits)
        return self._renderers[release_id]

    async def _release(self, release_id: str) -> Any:
        async with self._store.connect() as connection:
            return (
                await connection.execute(select(table(Release)).where(table(Release).c.id == release_id))
            ).one()


def main() -> int:
    os.nice(NICENESS)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the frames
    with asyncio.Runner() as runner:
        worker = None
        while (message := _receive(incoming)) is not None:
            try:
                if worker is None:
                    worker = Worker(message, runner.run)
                    worker.open()
                    answer: dict[str, Any] = {"ready": True}
                else:
                    answer = answer_of(worker.look(message["ids"]))
            except ProvisiondError as error:
                answer = {"error": str(error)}
            except Exception as error:
                answer = {"error": f"a worker broke: {type(error).__name__}: {str(error)[:500]}"}
            try:
                outgoing.write(pack(answer))
                outgoing.flush()
            except BrokenPipeError:  # the daemon is gone
                os._exit(0)
        if worker is not None:
            worker.close()
    return 0


def _receive(source: BinaryIO) -> Any:
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = source.read(length)
    return json.loads(body) if len(body) == length else None


if __name__ == "__main__":
    sys.exit(main())
