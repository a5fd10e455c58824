"""How the store speaks to PostgreSQL, so that a daemon that freezes (stopped, its machine paused or cut off) holds no lock for long.

The server ends a session that idles within a transaction for ``IDLE_SECONDS``, but it counts only after it has answered a
Sync message, and any message that follows stops the count for good (PostgreSQL manual, 20.11 and 55.2.3; src/backend/tcop/postgres.c).
psycopg's executemany works in libpq's pipeline mode: within the pipeline there is no Sync, and its end is Sync and then Flush.
A daemon frozen after such a call would keep its rows locked until somebody ends its session by hand. So many rows are written
as many statements, each with a Sync of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from psycopg import AsyncCursor
from psycopg.abc import Params, Query, QueryNoTemplate

IDLE_SECONDS = 10
LOCK_SECONDS = 30


class OneByOneCursor(AsyncCursor[Any]):
    """Never in pipeline mode; ``rowcount`` after executemany is the sum, as psycopg's own."""

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        if returning:
            raise NotImplementedError("executemany returns no rows here")
        statement, changed = cast(QueryNoTemplate, query), 0
        for params in params_seq:
            await self.execute(statement, params, prepare=True)
            changed += max(self.rowcount, 0)
        self._rowcount = changed


def connect_args() -> dict[str, Any]:
    """For SQLAlchemy's create_async_engine with psycopg."""
    return {
        "options": f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s -c lock_timeout={LOCK_SECONDS}s",
        "cursor_factory": OneByOneCursor,
    }
