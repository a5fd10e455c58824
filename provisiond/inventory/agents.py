"""Which machines run the ramdisk now: its sessions, as everybody else asks for them. boot/sessions.py begins and proves them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, select

from provisiond.inventory.hardware_tables import AgentSession
from provisiond.inventory.store import Store
from provisiond.inventory.tables import table, utcnow

ALIVE_SECONDS = 40.0
"""A ramdisk that waits asks every 5 s, and after a broken connection at the latest every 10 s; that it asked is written every 10 s."""

_session = table(AgentSession)
_ALIVE = (
    select(_session.c.id)
    .where(
        _session.c.host_id == bindparam("b_host"),
        _session.c.ended_at.is_(None),
        _session.c.seen_at > bindparam("b_since"),
    )
    .limit(1)
)
_NEWEST = (
    select(_session)
    .where(_session.c.host_id == bindparam("b_host"))
    .order_by(_session.c.claimed_at.desc())
    .limit(1)
)


async def alive(store: Store, host_id: str) -> bool:
    """Whether the host's ramdisk is running and asks for work: it can be given some without a restart."""
    since = utcnow() - timedelta(seconds=ALIVE_SECONDS)
    async with store.connect() as connection:
        found = await connection.execute(_ALIVE, {"b_host": host_id, "b_since": since})
        return found.first() is not None


async def newest(store: Store, host_id: str) -> Any:
    """The row of the host's latest session, also one that is over; None where it never ran the ramdisk."""
    async with store.connect() as connection:
        return (await connection.execute(_NEWEST, {"b_host": host_id})).first()
