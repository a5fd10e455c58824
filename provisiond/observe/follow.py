"""Follow the history: one task reads new events once and hands them to everybody who watches.

A watcher gets every event once and in order of id, whatever the number of watchers, and the database is read only when
something happened. Ids are commit order on SQLite (one writer). On PostgreSQL a lower id may become visible after a higher
one; so where ids have a gap, delivery waits until every transaction that could fill it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import func

from provisiond.inventory import history
from provisiond.inventory.shapes import EventView
from provisiond.inventory.store import EVENTS, Store, is_transient
from provisiond.inventory.tables import Event, table

log = structlog.get_logger(__name__)
_event = table(Event)
_PAGE = 500
_BACKLOG = (
    2000  # events a watcher may be behind before it reads them from the database instead of from memory
)
_GATHER = 0.02  # seconds to let more events come before they are read
_PATIENCE = 30.0  # seconds a gap may hold events back: no transaction of ours lives that long
_SWEEP = 5.0  # seconds between two looks when nobody woke us: a safety net


@dataclass(eq=False)
class Watcher:
    """One who watches: all events, or those of one host."""

    host_id: str | None
    pending: list[EventView] = field(default_factory=list)
    overrun: bool = False
    signal: asyncio.Event = field(default_factory=asyncio.Event)


class History:
    """The follower. ``start`` it once; ``watch`` as often as wanted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: set[Watcher] = set()
        self._listeners: list[Callable[[Sequence[EventView]], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self.last = 0  # every event up to this id has been handed out

    async def start(self) -> None:
        """Begin at the end of the history."""
        async with self._store.connect() as connection:
            horizon = await self._snapshot_end(connection)
            last = (await connection.execute(select(func.max(_event.c.id)))).scalar() or 0
        await self._wait_for(horizon)
        self.last = last
        self._task = asyncio.create_task(self._follow(), name="history-follow")

    async def close(self) -> None:
        """Stop; every watcher's iteration ends."""
        self._closing.set()
        for watcher in self._watchers:
            watcher.signal.set()
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def closed(self) -> bool:
        """Whether the daemon is stopping; long answers end then."""
        return self._closing.is_set()

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def listen(self, listener: Callable[[Sequence[EventView]], None]) -> None:
        """Call ``listener`` with every batch of new events (for counters; it must be quick)."""
        self._listeners.append(listener)

    async def watch(
        self, *, after: int | None = None, host_id: str | None = None, beat: float = 15.0
    ) -> AsyncIterator[list[EventView]]:
        """Batches of events with an id above ``after`` (None: only what comes from now on), for ever.

        An empty batch means that nothing happened for ``beat`` seconds. Ends when the follower is closed.
        """
        watcher = Watcher(host_id)
        self._watchers.add(watcher)
        sent = self.last if after is None else min(after, self.last)
        try:
            watcher.overrun = sent < self.last
            while not self._closing.is_set():
                watcher.signal.clear()
                if watcher.overrun:
                    watcher.overrun = False
                    watcher.pending.clear()
                    upto = self.last
                    while sent < upto:
                        events = await self._page(sent, upto, host_id)
                        sent = events[-1].id if len(events) == _PAGE else upto
                        if events:
                            yield events
                    continue
                if batch := [e for e in watcher.pending if e.id > sent]:
                    watcher.pending = []
                    sent = batch[-1].id
                    yield batch
                    continue
                watcher.pending = []
                try:
                    async with asyncio.timeout(beat):
                        await watcher.signal.wait()
                except TimeoutError:
                    yield []
        finally:
            self._watchers.discard(watcher)

    async def now(self) -> int:
        """The id of the last event; every event committed before this call has been handed out when it returns."""
        async with self._store.connect() as connection:
            last = (await connection.execute(select(func.max(_event.c.id)))).scalar() or 0
        while self.last < last and not self._closing.is_set():
            self._store.wake(EVENTS)
            await asyncio.sleep(_GATHER)
        return self.last

    async def _follow(self) -> None:
        signal = self._store.subscribe(EVENTS)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SWEEP):
                        await signal.wait()
                if signal.is_set():
                    await asyncio.sleep(_GATHER)
                signal.clear()
                try:
                    while events := await self._next():
                        self._hand_out(events)
                except Exception as error:
                    if not is_transient(error):
                        log.error("history.follow", exc_info=error)
                    await asyncio.sleep(0.5)
                    signal.set()
        finally:
            self._store.unsubscribe(EVENTS, signal)

    def _hand_out(self, events: list[EventView]) -> None:
        self.last = events[-1].id
        for listener in self._listeners:
            listener(events)
        for watcher in self._watchers:
            mine = events if watcher.host_id is None else [e for e in events if e.host_id == watcher.host_id]
            if not mine:
                continue
            if len(watcher.pending) + len(mine) > _BACKLOG:
                watcher.pending.clear()
                watcher.overrun = True
            elif not watcher.overrun:
                watcher.pending += mine
            watcher.signal.set()

    async def _next(self) -> list[EventView]:
        events = await self._page(self.last, None, None)
        if self._store.sqlite or not events:
            return events
        ids = [e.id for e in events]
        if ids[-1] - self.last == len(ids):
            return events
        async with self._store.connect() as connection:
            horizon = await self._snapshot_end(connection)
        await self._wait_for(horizon)
        upto = ids[-1]
        return await self._page(self.last, upto, None)

    async def _page(self, after: int, upto: int | None, host_id: str | None) -> list[EventView]:
        query = select(_event).where(_event.c.id > after).order_by(_event.c.id).limit(_PAGE)
        if upto is not None:
            query = query.where(_event.c.id <= upto)
        if host_id is not None:
            query = query.where(_event.c.host_id == host_id)
        async with self._store.connect() as connection:
            return [history.view(row) for row in await connection.execute(query)]

    async def _snapshot_end(self, connection: AsyncConnection) -> int | None:
        """The first transaction id not yet given out (PostgreSQL manual, 9.27.6, pg_snapshot_xmax)."""
        if self._store.sqlite:
            return None
        end = await connection.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))
        return int(end.scalar_one())

    async def _wait_for(self, horizon: int | None) -> None:
        """Until every transaction older than ``horizon`` has ended."""
        patience = asyncio.get_running_loop().time() + _PATIENCE
        while horizon is not None and asyncio.get_running_loop().time() < patience:
            await asyncio.sleep(0.02)
            async with self._store.connect() as connection:
                oldest = await connection.execute(
                    text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
                )
                if oldest.scalar_one() >= horizon:
                    return
