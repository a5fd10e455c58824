"""The history: one event a line, written in the transaction that changes the host, never changed afterwards.

An event's id grows and is the place in the history that readers remember. On SQLite there is one writer, so ids become visible
in their order. On PostgreSQL an id is drawn before its transaction commits: 7 may show before 6, and whoever went on to 7 by
``list_events`` alone would never see 6. A reader that must miss nothing therefore waits, where ids have a gap, until every
transaction that was open when the gap was seen has ended, and reads that stretch again; observe/follow.py does so, once for
all who watch. For that to hold, writers change the host's row before they add its events (so that PostgreSQL has given the
transaction its number before the first id is drawn), as all of provisiond does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.shapes import EventView
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Event, Host, table, utcnow

_event, _host = table(Event), table(Host)
_ADD = insert(_event).returning(_event.c.id)
_ADD_ONCE: Mapping[str, Any] = {  # made once: building a statement costs more than running it
    "postgresql": postgresql.insert(_event)
    .on_conflict_do_nothing(index_elements=["key"])
    .returning(_event.c.id),
    "sqlite": sqlite.insert(_event).on_conflict_do_nothing(index_elements=["key"]).returning(_event.c.id),
}
MAX_MESSAGE = 16_384  # characters; longer messages are cut in the middle


class _Host(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


def line(
    *,
    kind: str,
    host: _Host | None = None,
    deployment_id: str | None = None,
    state: str | None = None,
    step: str | None = None,
    attempt: int = 0,
    duration_ms: int | None = None,
    actor: str = "",
    cause: str = "",
    message: str = "",
    data: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """One event as a row. State, step and deployment are the host's own where they are not given."""
    row = getattr(host, "row", host)
    return {
        "at": utcnow(),
        "host_id": host.id if host else None,
        "host_name": host.name if host else "",
        "deployment_id": getattr(row, "deployment_id", None) if deployment_id is None else deployment_id,
        "kind": kind,
        "state": getattr(row, "state", "") if state is None else state,
        "step": getattr(row, "step", "") if step is None else step,
        "attempt": attempt,
        "duration_ms": duration_ms,
        "actor": actor[:128],
        "cause": cause[:256],
        "message": _shorten(message),
        "data": dict(data or {}),
        "key": key,
    }


async def add(session: AsyncSession, *, kind: str, host: _Host | None = None, **fields: Any) -> int | None:
    """Write one event (``fields`` as of ``line``) and return its id; None when one with this ``key`` was there already.

    ``host`` is anything with id and name: a row of the host table or a ResolvedHost.
    """
    row = line(kind=kind, host=host, **fields)
    connection = await session.connection()
    statement = _ADD if row["key"] is None else _ADD_ONCE[connection.dialect.name]
    return (await connection.execute(statement, row)).scalar()


async def add_many(session: AsyncSession, lines: Sequence[dict[str, Any]]) -> None:
    """Write many events (made by ``line``, without keys) at once, in their order."""
    if lines:
        await (await session.connection()).execute(insert(_event), list(lines))


async def list_events(
    store: Store,
    host: str | None = None,
    after_id: int = 0,
    limit: int = 500,
    *,
    newest: bool = False,
    kind: str | None = None,
) -> list[EventView]:
    """Events with an id above ``after_id``, oldest first; of one host by its name or id (also a deleted one), of one ``kind``.

    ``newest`` gives the last ``limit`` of them instead of the first.
    """
    e = _event.c
    statement = select(_event).where(e.id > after_id).limit(max(1, min(limit, 10_000)))
    if kind is not None:
        statement = statement.where(e.kind == kind)
    async with store.connect() as connection:
        if host is not None:
            living = (await connection.execute(select(_host.c.id).where(_host.c.name == host))).scalar()
            statement = statement.where(
                e.host_id == living if living else or_(e.host_id == host, e.host_name == host)
            )
        rows = (await connection.execute(statement.order_by(e.id.desc() if newest else e.id))).all()
    views = [view(row) for row in rows]
    return views[::-1] if newest else views


def view(row: Any) -> EventView:
    """A row of the event table (or an Event) as it is shown."""
    return EventView(
        id=row.id,
        at=row.at,
        host=row.host_name,
        host_id=row.host_id,
        deployment_id=row.deployment_id,
        kind=row.kind,
        state=row.state,
        step=row.step,
        attempt=row.attempt,
        duration_ms=row.duration_ms,
        actor=row.actor,
        cause=row.cause,
        message=row.message,
        data=row.data,
    )


def _shorten(message: str) -> str:
    message = message.replace("\0", "")  # PostgreSQL takes none
    if len(message) <= MAX_MESSAGE:
        return message
    half = MAX_MESSAGE // 2
    return f"{message[:half]}\n... {len(message) - MAX_MESSAGE} characters left out ...\n{message[-half:]}"
