"""SQLite without a thread between: a SQLAlchemy async dialect that runs the standard library's sqlite3 in the event loop.

One statement on a row costs some 20 microseconds in SQLite and 500 more on aiosqlite's way to a thread and back (measured:
a SELECT of one host 0.84 ms there, 0.16 ms here; a write transaction 1.05 against 0.31 ms). With WAL, one writer and no fsync
at a commit nothing here waits for a disk or a lock; what would (the checkpoint) runs in a thread, see store.py.
"""

from __future__ import annotations

import sqlite3
from types import ModuleType
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool
from sqlalchemy.util import await_only


async def _at_once() -> None:
    """SQLAlchemy insists on one await in each execution; this one never waits."""


class _Cursor(sqlite3.Cursor):
    server_side = False

    def execute(self, *args: Any) -> _Cursor:
        await_only(_at_once())
        super().execute(*args)
        return self

    def executemany(self, *args: Any) -> _Cursor:
        await_only(_at_once())
        super().executemany(*args)
        return self

    async def _async_soft_close(self) -> None:
        """Part of what SQLAlchemy asks of an async cursor; rows are read at once, nothing stays open."""


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


class InLoopDialect(SQLiteDialect_pysqlite):
    """``sqlite+inloop:///path``"""

    driver = "inloop"
    is_async = True
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        return sqlite3

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return AsyncAdaptedQueuePool

    def connect(self, *args: Any, **options: Any) -> Any:
        return sqlite3.connect(*args, **{**options, "factory": _Connection, "check_same_thread": False})


registry.register("sqlite.inloop", __name__, "InLoopDialect")
