"""Polling: sources that are due are looked at, and what is new there becomes a release. Nothing is made current.

A daemon takes a source by moving its ``due_at`` ahead by LEASE in one compare-and-set; who dies meanwhile leaves it to whoever
looks after that. A webhook that comes during a look moves ``due_at`` again, and so causes one more.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import ProvisiondError
from provisiond.inventory import history
from provisiond.inventory.release_tables import TemplateSource
from provisiond.inventory.store import EVENTS, SOURCES, Store
from provisiond.inventory.tables import table
from provisiond.templating.sources import Sources

LEASE = timedelta(minutes=15)
LONGEST_SLEEP = 60.0  # seconds; other daemons' changes are heard of at once, clocks that jump are not
log = structlog.get_logger(__name__)
_source = table(TemplateSource)


class Poller:
    """One task, one source at a time."""

    def __init__(self, store: Store, sources: Sources) -> None:
        self._store, self._sources = store, sources
        self._changed = store.subscribe(SOURCES)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="template-sources")

    async def stop(self) -> None:
        self._store.unsubscribe(SOURCES, self._changed)
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            wait = LONGEST_SLEEP
            try:
                while (row := await self.take()) is not None:
                    await self.look(row)
                wait = await self._until_next()
            except Exception:
                log.exception("sources.broke")
                wait = 5.0
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def take(self) -> Any:
        """The source that is due longest, taken so that no other daemon takes it; None when none is due."""

        async def work(session: AsyncSession) -> Any:
            now = await self._store.now(session)
            due = select(_source).where(_source.c.due_at <= now).order_by(_source.c.due_at).limit(1)
            row = (await session.execute(due.with_for_update(skip_locked=True))).first()
            if row is None:
                return None
            until = now + LEASE
            await session.execute(_source.update().where(_source.c.id == row.id).values(due_at=until))
            return row, until

        return await self._store.transact(work)

    async def look(self, taken: Any) -> None:
        """Look at a source that ``take`` gave, and write down what came of it."""
        row, until = taken
        failure, commit = "", row.commit
        try:
            newest = await self._sources.newest(row)
            if newest is None or newest != row.commit or row.failure:
                imported = await self._sources.import_from(row, actor=f"source:{row.name}")
                commit = imported.release.git_commit if newest is None else newest
                if imported.new:
                    log.info("source.imported", source=row.name, release=imported.release.number)
        except ProvisiondError as error:
            failure = str(error)[:8192]
            log.warning("source.failed", source=row.name, error=failure[:300])
        except Exception:  # it is written down, and the source is due again in its time, as after any failure
            failure = "an unforeseen error; the daemon's log says more ('source.broke')"
            log.exception("source.broke", source=row.name)

        async def work(session: AsyncSession) -> None:
            now = await self._store.now(session)
            again = now + timedelta(seconds=row.poll_seconds) if row.poll_seconds else None
            mine = _source.c.id == row.id
            told = {"polled_at": now, "failure": failure, "commit": commit}
            # where the source was changed meanwhile, what was seen is not of what it is now
            same = mine & (_source.c.updated_at == row.updated_at)
            await session.execute(_source.update().where(same).values(**told))
            await session.execute(
                _source.update().where(mine & (_source.c.due_at == until)).values(due_at=again)
            )
            if failure and failure != row.failure:
                await history.add(session, kind="source.failed", actor=f"source:{row.name}", message=failure)

        await self._store.transact(work, EVENTS)

    async def _until_next(self) -> float:
        async with self._store.read() as session:
            now = await self._store.now(session)
            next_due = (await session.execute(select(func.min(_source.c.due_at)))).scalar()
        return (
            LONGEST_SLEEP
            if next_due is None
            else min(max((next_due - now).total_seconds(), 0.05), LONGEST_SLEEP)
        )
