"""Idempotency-Key: a create that is sent again gets the first answer again, and makes nothing twice.

The answer is stored in the transaction that makes the thing, so neither a crash nor a second request at the same moment comes
between: who comes second finds the name taken, looks here, and is given what the first one got.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.api.problems import Refused
from provisiond.api.routing import Answer, Once
from provisiond.inventory.access import Principal
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Idempotency, table, utcnow

KEPT = timedelta(days=2)
_table = table(Idempotency)


class Remembered:
    """One request with an Idempotency-Key (or none: then nothing is remembered)."""

    def __init__(self, store: Store, who: Principal, once: Once | None) -> None:
        self._store = store
        self._once = once
        self._key = f"{who.id}:{once.key}" if once else ""

    async def recall(self) -> Answer[Any] | None:
        """The answer given before. Raises Refused when the key came with another request then."""
        if self._once is None:
            return None
        async with self._store.connect() as connection:
            row = (await connection.execute(select(_table).where(_table.c.key == self._key))).first()
        if row is None:
            return None
        if row.request_hash != self._once.request_hash:
            raise Refused(
                422, f"Idempotency-Key {self._once.key!r} was used for another request; take a new one"
            )
        return Answer(row.body, status=row.status, headers={"Idempotency-Replayed": "true"})

    async def keep(self, session: AsyncSession, body: BaseModel, status: int) -> None:
        """Store the answer, in the transaction that makes what it tells of."""
        if self._once is None:
            return
        row = {
            "key": self._key,
            "request_hash": self._once.request_hash,
            "status": status,
            "body": body.model_dump(mode="json"),
            "created_at": utcnow(),
        }
        await session.execute(insert(_table).values(row))


async def forget_old(store: Store) -> None:
    """Drop answers older than two days; to be called now and then."""

    async def work(session: AsyncSession) -> None:
        await session.execute(delete(_table).where(_table.c.created_at < utcnow() - KEPT))

    await store.transact(work)
