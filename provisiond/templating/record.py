"""The record of what machines were served: the digest of the true bytes, and the text with its secrets masked.

A machine's answer waits for none of this. What was served is noted in memory and written within moments, many at a time: a
daemon that is killed loses the notes of its last half second, and no machine's boot. The masked text is rendered once for each
build, kind and digest, in a thread, from the same release and host with secrets masked; a value that is a secret by its name
never reaches it, however a template has encoded it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import select

from provisiond.errors import ProvisiondError
from provisiond.inventory.release_tables import ServedFile
from provisiond.inventory.store import Store
from provisiond.inventory.tables import table, utcnow

GATHER_SECONDS = 0.3
MAX_BATCH = 200  # notes in one transaction
MAX_WAITING = (
    5_000  # notes in memory; more than a database that has stopped answering leaves room for are dropped
)
MAX_KNOWN = 20_000  # keys remembered as stored
log = structlog.get_logger(__name__)
_served = table(ServedFile)
_KEY = (_served.c.deployment_id, _served.c.kind, _served.c.digest)

Key = tuple[str, str, str]


@dataclass
class Note:
    """One text of one build. ``masked`` renders it again with its secrets masked."""

    template: str
    size: int
    masked: Callable[[], str] = field(repr=False)
    first_at: datetime
    last_at: datetime
    times: int = 1


class Record:
    """Made by Renderings. ``close`` writes what is left."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[Key, Note] = {}
        self._known: OrderedDict[Key, None] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self.dropped = 0

    def note(
        self, deployment_id: str, kind: str, template: str, text: str, masked: Callable[[], str]
    ) -> None:
        """Remember that a machine was given ``text``. Never waits and never fails."""
        content = text.encode(errors="surrogatepass")
        key = deployment_id, kind, hashlib.sha256(content).hexdigest()
        now = utcnow()
        if key in self._waiting:
            self._waiting[key].times += 1
            self._waiting[key].last_at = now
        elif len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
        else:
            self._waiting[key] = Note(template, len(content), masked, now, now)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write_all(), name="served-files")

    async def close(self) -> None:
        """Write what is left."""
        self._closing.set()
        if self._task:
            await self._task

    async def _write_all(self) -> None:
        while self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._closing.wait()
            batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:MAX_BATCH]}
            try:
                await self._write(batch)
            except Exception:
                log.exception("served.not_written", files=len(batch))

    async def _write(self, batch: dict[Key, Note]) -> None:
        await self._learn([key for key in batch if key not in self._known])
        fresh = {key: note for key, note in batch.items() if key not in self._known}
        texts = await asyncio.to_thread(_masked, fresh) if fresh else {}
        rows = [
            {
                "deployment_id": key[0], "kind": key[1], "digest": key[2], "template": note.template, "size": note.size,
                "times": note.times, "first_at": note.first_at, "last_at": note.last_at, "text": texts.get(key, ""),
            }
            for key, note in sorted(batch.items())
        ]  # fmt: skip
        try:
            await self._store.transact(lambda session: _put(session, rows, sqlite=self._store.sqlite))
        except IntegrityError:  # some build was forgotten meanwhile, with its host
            for row in rows:
                with suppress(IntegrityError):
                    await self._store.transact(lambda s, row=row: _put(s, [row], sqlite=self._store.sqlite))  # type: ignore[misc]
        for key in batch:
            self._know(key)

    async def _learn(self, keys: Sequence[Key]) -> None:
        """Which of these are stored already, by this daemon earlier or by another."""
        if not keys:
            return
        async with self._store.read() as session:
            found = await session.execute(select(*_KEY).where(tuple_(*_KEY).in_(keys)))
        for row in found:
            self._know((row[0], row[1], row[2]))

    def _know(self, key: Key) -> None:
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


async def _put(session: AsyncSession, rows: list[dict[str, Any]], *, sqlite: bool) -> None:
    await (await session.connection()).execute(_PUT["sqlite" if sqlite else "postgresql"], rows)


def _upsert(insert: Any) -> Any:
    return insert.on_conflict_do_update(
        index_elements=["deployment_id", "kind", "digest"],
        set_={"times": _served.c.times + insert.excluded.times, "last_at": insert.excluded.last_at},
    )


_PUT = {"sqlite": _upsert(sqlite.insert(_served)), "postgresql": _upsert(postgresql.insert(_served))}


def _masked(notes: dict[Key, Note]) -> dict[Key, str]:
    texts = {}
    for key, note in notes.items():
        try:
            texts[key] = note.masked()
        except ProvisiondError as error:
            texts[key] = f"(it cannot be shown: with its secrets masked it does not render: {error})"
    return texts
