"""Tasks of hosts opened and ended by themselves, for tests of what happens between: each in a transaction of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.lifecycle import rows, tasks


async def open_task(
    store: Store, host: str, kind: str, options: Mapping[str, Any], *, actor: str, secret: str = ""
) -> str:
    """The id of the task that the host of this name or id is given."""

    async def work(session: AsyncSession) -> str:
        row = await rows.lock_host(session, host)
        return await tasks.open_in(session, row, kind, options, actor=actor, secret=secret)

    return await store.transact(work, HOSTS, EVENTS)


async def end_task(store: Store, host: str, why: str = "") -> None:
    """The host leaves the task it has."""

    async def work(session: AsyncSession) -> None:
        await tasks.end_in(session, await rows.lock_host(session, host), why)

    await store.transact(work, HOSTS, EVENTS)
