"""The store: one SQL database, SQLite (WAL, one writer) or PostgreSQL, with wake-ups for those who wait for a change.

Reads and writes are short and never span I/O to a machine. A write transaction on SQLite begins IMMEDIATE under one lock of
this process, and one daemon holds a file (a lock beside it); on PostgreSQL several daemons share the database and hear each
other by LISTEN/NOTIFY.

What is lost: nothing that was answered when the daemon is killed, on either database. SQLite runs with synchronous=NORMAL,
so a power cut of the daemon's own machine may lose the transactions since the last checkpoint (seconds of work), never the
file's consistency; FULL would add an fsync to every commit, in the event loop (measured: 0.3 ms on a fast virtual disk; a
spinning one takes 5 to 10). Who needs every answer to outlive a power cut takes PostgreSQL.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import stamina
import structlog
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

import provisiond.inventory.sqlite  # noqa: F401  (registers the dialect)
from provisiond.errors import Conflict
from provisiond.inventory import postgres
from provisiond.inventory.known import Known
from provisiond.inventory.tables import utcnow

T = TypeVar("T")
log = structlog.get_logger(__name__)

HOSTS = "hosts"  # some host may be due
EVENTS = "events"  # the history grew
CATALOGUE_CHANGED = "catalogue"  # groups, subnets, images, global parameters ... changed
RELEASES = "releases"  # a pointer, rollout or flag moved: another release is current for some host
SOURCES = "sources"  # some source of templates may be due
TOPICS = (HOSTS, EVENTS, CATALOGUE_CHANGED, RELEASES, SOURCES)
_CHANNEL = "provisiond"
_CHECKPOINT_COMMITS = 500  # the log is folded into the SQLite file after so many


class Store:
    """Opens the database at ``url`` (a SQLAlchemy URL with an async driver).

    ``lock`` False lets a short-lived tool in beside a running daemon (it still writes one at a time).
    """

    def __init__(self, url: str, *, pool_size: int = 8, lock: bool = True) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        self._pool_size = pool_size
        self._want_lock = lock
        self._lock_file: int | None = None
        self._write_lock = asyncio.Lock()
        self._subscribers: dict[str, set[asyncio.Event]] = {topic: set() for topic in TOPICS}
        self.known = Known()
        self.hears = self.sqlite
        """Whether every change of the other daemons is heard of now: while it is not, nothing that others change may be kept."""
        self._commits = 0
        self._enough = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._reader: AsyncEngine
        self._looker: AsyncEngine
        self._writer: AsyncEngine

    async def open(self) -> None:
        """Connect. Raises Conflict when another daemon has the SQLite file."""
        if self.sqlite:
            self._take_file()
            self._writer = _sqlite_engine(self._file, "BEGIN IMMEDIATE", size=1)
            self._reader = _sqlite_engine(self._file, "BEGIN", size=self._pool_size)
            self._looker = self._reader
            self._task = asyncio.create_task(self._fold(), name="store-fold")
        else:
            self._writer = create_async_engine(
                self.url,
                pool_size=self._pool_size,
                max_overflow=self._pool_size,
                pool_pre_ping=True,
                connect_args=postgres.connect_args(),
            )
            self._reader = self._writer.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._looker = self._writer.execution_options(isolation_level="AUTOCOMMIT")
            self._task = asyncio.create_task(self._listen(), name="store-listen")

    async def close(self) -> None:
        """Disconnect and let go of the file."""
        self._closing = True
        self._enough.set()
        if self._task:
            if not self.sqlite:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.dispose()
        await self._writer.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session to look with: one consistent view, nothing to commit."""
        async with AsyncSession(self._reader, expire_on_commit=False, autoflush=False) as session:
            yield session

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A bare connection to look with, for reads of one statement on a hot path (no BEGIN and ROLLBACK on PostgreSQL)."""
        async with self._looker.connect() as connection:
            yield connection

    async def look(self, work: Callable[[Connection], T]) -> T:
        """Run the few short SELECTs of ``work`` on one consistent view: ``connect`` for code without awaits."""
        async with self._reader.connect() as connection:
            return await connection.run_sync(work)

    @asynccontextmanager
    async def write(self, *topics: str) -> AsyncIterator[AsyncSession]:
        """A write transaction, committed at the end; those who wait for ``topics`` are woken after the commit."""
        async with (
            _maybe(self._write_lock if self.sqlite else None),
            AsyncSession(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
            if topics and not self.sqlite:
                for topic in topics:
                    await session.execute(text("SELECT pg_notify(:c, :t)"), {"c": _CHANNEL, "t": topic})
        self._commits += 1
        if self._commits >= _CHECKPOINT_COMMITS:
            self._enough.set()
        for topic in topics:
            self.wake(topic)

    async def transact(self, work: Callable[[AsyncSession], Awaitable[T]], *topics: str) -> T:
        """Run ``work`` in a write transaction, again if the database was busy, broke off or found a deadlock.

        ``work`` may run several times, so it touches nothing but the session.
        """
        async for attempt in stamina.retry_context(
            on=is_transient, attempts=8, timeout=60.0, wait_initial=0.05, wait_max=5.0
        ):
            with attempt:
                async with self.write(*topics) as session:
                    return await work(session)
        raise AssertionError("unreachable")

    async def now(self, session: AsyncSession) -> datetime:
        """The database's time: on SQLite daemon and file share one clock; on PostgreSQL every daemon uses the server's."""
        if self.sqlite:
            return utcnow()
        return (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()  # type: ignore[no-any-return]

    # --- wake-ups ---------------------------------------------------------------------------------------

    def subscribe(self, topic: str) -> asyncio.Event:
        """An event that is set at every change of ``topic``; clear it before you look. End with ``unsubscribe``."""
        signal = asyncio.Event()
        self._subscribers[topic].add(signal)
        return signal

    def unsubscribe(self, topic: str, signal: asyncio.Event) -> None:
        self._subscribers[topic].discard(signal)

    def wake(self, topic: str) -> None:
        """Wake everyone in this process who waits for ``topic``."""
        if topic == CATALOGUE_CHANGED:
            self.known = Known()  # whoever is still reading fills the old one, which nobody asks any more
        for signal in self._subscribers.get(topic, ()):
            signal.set()

    async def _listen(self) -> None:
        """Hear the other daemons (PostgreSQL). After a broken connection everyone is woken: something may have been missed."""
        url = self.url.replace("postgresql+psycopg://", "postgresql://", 1)
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {_CHANNEL}")
                    self.hears = True
                    for topic in TOPICS:
                        self.wake(topic)
                    async for notice in connection.notifies():
                        self.wake(notice.payload)
            except psycopg.Error as error:
                self.hears = False
                log.warning("store.listen_broken", error=type(error).__name__)
                await asyncio.sleep(1.0)

    async def _fold(self) -> None:
        """Fold SQLite's log into its file, in a thread, because that waits for the disk.

        Twice: the first pass runs beside the writers and does nearly all; the second, short one holds them off, so that
        it reaches the end of the log, which then starts over instead of growing.
        """
        while True:
            await self._enough.wait()
            if self._closing:
                return
            self._enough.clear()
            self._commits = 0
            try:
                await asyncio.to_thread(_checkpoint, self._file)
                async with self._write_lock:
                    await asyncio.to_thread(_checkpoint, self._file)
            except sqlite3.Error as error:
                log.warning("store.checkpoint_failed", error=str(error))

    @property
    def _file(self) -> Path:
        return Path(self.url.partition(":///")[2])

    def _take_file(self) -> None:
        path = self._file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._want_lock:
            return
        self._lock_file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            self._lock_file = None
            raise Conflict(
                f"another provisiond uses {path}; SQLite serves one daemon: stop that one, or move to PostgreSQL"
            ) from None


def is_transient(error: Exception) -> bool:
    """Whether the same transaction may succeed if tried again: busy, deadlock, serialization, a lost connection."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, OperationalError):
        if isinstance(error.orig, sqlite3.Error):
            return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in {
                sqlite3.SQLITE_BUSY,
                sqlite3.SQLITE_LOCKED,
            }
        code = getattr(error.orig, "sqlstate", None)
        return code is None or code[:2] in {"08", "40", "53", "55", "57"}
    return isinstance(error, InterfaceError)


@asynccontextmanager
async def _maybe(lock: asyncio.Lock | None) -> AsyncIterator[None]:
    if lock is None:
        yield
    else:
        async with lock:
            yield


def _checkpoint(file: Path) -> None:
    connection = sqlite3.connect(file)
    try:
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()


def _sqlite_engine(file: Path, begin: str, *, size: int) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+inloop:///{file}", pool_size=size, max_overflow=0, pool_timeout=60)

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = sqlite3.Cursor(connection)
        # Only tools beside the daemon ever hold the file; transact() goes on trying where busy_timeout ends.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "busy_timeout=2000",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "wal_autocheckpoint=0",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
