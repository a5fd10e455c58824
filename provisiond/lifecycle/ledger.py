"""The engine's writes: claiming due hosts, storing what their steps came to, keeping leases.

Every write is one short transaction. A claim raises the host's version, so that whoever held it before (frozen, cut off, slow)
loses its write. Outcomes of many hosts that are ready at once share a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, case, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import StaleWrite
from provisiond.inventory.resolve import ResolvedHost, resolve_hosts
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Event, Host, table, utcnow
from provisiond.lifecycle.outcome import Write

HOST = table(Host)
EVENT = table(Event)

SETTLED = (
    "state", "step", "state_since", "step_since", "deadline_at", "attempts", "failure", "failure_kind",
    "power_wanted", "wanted", "deployment_id", "task_id",
)  # fmt: skip
"""The columns a settlement writes, always all of them, so that many hosts' go in one statement (power apart, see _SEEN)."""

_CLAIM_LOCK = 0x70726F76  # an arbitrary number of ours for PostgreSQL's advisory locks

_SETTLE = (
    update(HOST)
    .where(HOST.c.id == bindparam("b_id"), HOST.c.version == bindparam("b_version"))
    .values(
        version=HOST.c.version + 1,
        due_at=case(
            (HOST.c.wake == bindparam("b_wake"), bindparam("b_due", type_=HOST.c.due_at.type)),
            else_=bindparam("b_now", type_=HOST.c.due_at.type),
        ),
        lease_owner=bindparam("b_owner", type_=HOST.c.lease_owner.type),
        lease_expires=bindparam("b_expires", type_=HOST.c.lease_expires.type),
        **{name: bindparam(f"b_{name}", type_=HOST.c[name].type) for name in SETTLED},
    )
)
_SEEN = (  # apart, as what somebody else saw meanwhile must not be overwritten with what was known before
    update(HOST)
    .where(HOST.c.id == bindparam("b_id"))
    .values(
        power=bindparam("b_power", type_=HOST.c.power.type),
        power_seen_at=bindparam("b_at", type_=HOST.c.power_seen_at.type),
    )
)
_CLAIM = (
    update(HOST)
    .where(HOST.c.id == bindparam("b_id"))
    .values(
        version=HOST.c.version + 1,
        lease_owner=bindparam("b_owner", type_=HOST.c.lease_owner.type),
        lease_expires=bindparam("b_expires", type_=HOST.c.lease_expires.type),
        step=bindparam("b_step", type_=HOST.c.step.type),
        step_since=bindparam("b_step_since", type_=HOST.c.step_since.type),
        deadline_at=bindparam("b_deadline_at", type_=HOST.c.deadline_at.type),
    )
)


@dataclass
class Settlement:
    """What is to be stored for one host: its changed columns, the events, and whether the lease is kept to go on at once."""

    host: ResolvedHost
    columns: Mapping[str, Any]
    due_at: datetime | None
    keep: bool
    events: list[dict[str, Any]]
    write: Write | None = None
    stored: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


Begin = Callable[[ResolvedHost, datetime], tuple[dict[str, Any], list[dict[str, Any]]]]
"""Tells for a host that is being claimed which step, step_since and deadline_at it gets, and the events of it."""


class Ledger:
    """``owner`` is this daemon's id, new at each process start; ``limits`` gives the concurrency of a limit key's kind (bmc, hv)."""

    def __init__(self, store: Store, owner: str, *, lease_seconds: float, limits: Mapping[str, int]) -> None:
        self.store = store
        self.owner = owner
        self.lease = timedelta(seconds=lease_seconds)
        self.limits = limits
        self._skew = timedelta(0)
        self._queue: list[Settlement] = []
        self._filled = asyncio.Event()

    def now(self) -> datetime:
        """The database's time as last compared with this machine's clock."""
        return utcnow() + self._skew

    async def claim(self, limit: int, begin: Begin, besides: Collection[str] = ()) -> list[ResolvedHost]:
        """Lease up to ``limit`` due hosts and begin their steps, in one transaction.

        ``besides`` are hosts still in work here: were their leases to run out, they would not be taken a second time.
        """
        ids = await self._due(limit)
        if not ids:
            return []

        async def work(session: AsyncSession) -> list[ResolvedHost]:
            now = await self._read_clock(session)
            chosen = await self._choose(session, limit, now, besides)
            if not chosen:
                return []
            hosts = await resolve_hosts(session, chosen, self.store.known)
            rows, events = [], []
            for host in hosts:
                columns, told = begin(host, now)
                rows.append(
                    {
                        "b_id": host.id,
                        "b_owner": self.owner,
                        "b_expires": now + self.lease,
                        **{f"b_{k}": v for k, v in columns.items()},
                    }
                )
                events += told
            await (await session.connection()).execute(_CLAIM, rows)
            if events:
                await (await session.connection()).execute(insert(EVENT), events)
            return [
                host.with_row(version=host.row.version + 1, lease_owner=self.owner, **_plain(row))
                for host, row in zip(hosts, rows, strict=True)
            ]

        return await self.store.transact(work, EVENTS)

    async def _due(self, limit: int) -> list[str]:
        """A look without a lock, so that an idle daemon never takes the writer."""
        async with self.store.connect() as connection:
            found = await connection.execute(select(HOST.c.id).where(self._is_due(self.now())).limit(limit))
            return [row.id for row in found]

    @staticmethod
    def _is_due(now: datetime) -> Any:
        free = or_(HOST.c.lease_owner.is_(None), HOST.c.lease_expires < now)
        return and_(HOST.c.due_at <= now, free, HOST.c.maintenance == "")

    async def _choose(
        self, session: AsyncSession, limit: int, now: datetime, besides: Collection[str]
    ) -> list[str]:
        """Due hosts by priority and age, no more per limit key than its limit."""
        if not self.store.sqlite:
            await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})
        connection = await session.connection()
        held = await connection.execute(
            select(HOST.c.limit_key, func.count())
            .where(HOST.c.lease_owner.isnot(None), HOST.c.lease_expires >= now, HOST.c.limit_key.isnot(None))
            .group_by(HOST.c.limit_key)
        )
        busy: dict[str, int] = {row[0]: row[1] for row in held}
        full = [key for key, count in busy.items() if count >= self._limit(key)]
        found = select(HOST.c.id, HOST.c.limit_key).where(self._is_due(now))
        if full:
            found = found.where(or_(HOST.c.limit_key.is_(None), HOST.c.limit_key.not_in(full)))
        found = found.order_by(HOST.c.priority.desc(), HOST.c.due_at).limit(limit)
        if not self.store.sqlite:
            found = found.with_for_update(skip_locked=True)
        chosen = []
        for host_id, key in await connection.execute(found):
            if host_id in besides:
                continue
            if key is not None:
                if busy.get(key, 0) >= self._limit(key):
                    continue
                busy[key] = busy.get(key, 0) + 1
            chosen.append(host_id)
        return chosen

    def _limit(self, key: str) -> int:
        """``hv:NAME`` is counted per hypervisor, anything else is a controller's endpoint."""
        return self.limits["hv" if key.startswith("hv:") else "bmc"]

    # --- settling ----------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        """Store it, with whatever else is ready. False: somebody else changed the host since, and nothing was written."""
        self._queue.append(settlement)
        self._filled.set()
        return await settlement.stored

    async def write_forever(self) -> None:
        """The one that stores: takes all that is queued, in one transaction."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch, self._queue = self._queue, []
            if not batch:
                continue
            try:
                await self._store(batch)
            except StaleWrite:
                for one in batch:
                    await self._store_alone(one)
            except Exception as error:
                for one in batch:
                    if not one.stored.done():
                        one.stored.set_exception(error)

    async def _store_alone(self, settlement: Settlement) -> None:
        try:
            await self._store([settlement])
        except StaleWrite:
            _answer(settlement, False)
        except Exception as error:
            if not settlement.stored.done():
                settlement.stored.set_exception(error)

    async def _store(self, batch: Sequence[Settlement]) -> None:
        now = self.now()
        rows = sorted((self._row(one, now) for one in batch), key=lambda row: row["b_id"])
        seen = [
            {"b_id": one.host.id, "b_power": one.columns["power"], "b_at": one.columns["power_seen_at"]}
            for one in batch
            if "power" in one.columns
        ]
        events = [event for one in batch for event in one.events]

        async def work(session: AsyncSession) -> None:
            connection = await session.connection()
            result = await connection.execute(
                _SETTLE, rows
            )  # hosts' rows first, as everywhere: no deadlock with a callback
            if result.rowcount != len(rows):
                raise StaleWrite("a host moved on while its step ran")
            if seen:
                await connection.execute(_SEEN, seen)
            for one in batch:
                if one.write is not None:
                    await one.write(session)
            if events:
                await connection.execute(insert(EVENT), events)

        soon = any(not one.keep and one.due_at is not None and one.due_at <= now for one in batch)
        await self.store.transact(work, *((HOSTS,) if soon else ()), *((EVENTS,) if events else ()))
        for one in batch:
            _answer(one, True)

    def _row(self, one: Settlement, now: datetime) -> dict[str, Any]:
        row = one.host.row
        values = {name: one.columns[name] if name in one.columns else getattr(row, name) for name in SETTLED}
        return {
            "b_id": row.id, "b_version": row.version, "b_wake": row.wake, "b_due": one.due_at, "b_now": now,
            "b_owner": self.owner if one.keep else None, "b_expires": now + self.lease if one.keep else None,
            **{f"b_{name}": value for name, value in values.items()},
        }  # fmt: skip

    # --- leases -------------------------------------------------------------------------------------------

    async def renew(self, host_ids: Sequence[str]) -> None:
        """Lengthen the leases of these hosts, as far as they are still ours."""
        if not host_ids:
            return

        async def work(session: AsyncSession) -> None:
            now = await self._read_clock(session)
            ours: Sequence[str] = host_ids
            if not self.store.sqlite:
                # in the order of _store, or each would hold rows that the other waits for
                found = select(HOST.c.id).where(HOST.c.id.in_(host_ids), HOST.c.lease_owner == self.owner)
                in_order = found.order_by(HOST.c.id.collate("C")).with_for_update()
                ours = (await session.execute(in_order)).scalars().all()
            renewed = update(HOST).where(HOST.c.id.in_(ours), HOST.c.lease_owner == self.owner)
            await session.execute(renewed.values(lease_expires=now + self.lease))

        await self.store.transact(work)

    async def let_go(self, host_id: str) -> None:
        """Give the lease back without an outcome, for somebody (or us) to look again at once."""

        async def work(session: AsyncSession) -> None:
            ours = update(HOST).where(HOST.c.id == host_id, HOST.c.lease_owner == self.owner)
            await session.execute(
                ours.values(
                    lease_owner=None, lease_expires=None, due_at=self.now(), version=HOST.c.version + 1
                )
            )

        await self.store.transact(work, HOSTS)

    async def clear_leases(self) -> int:
        """At start on SQLite, whose file is ours alone: leases of a daemon that died are void at once. Returns how many."""

        async def work(session: AsyncSession) -> int:
            held = update(HOST).where(HOST.c.lease_owner.isnot(None))
            result = await (await session.connection()).execute(
                held.values(lease_expires=utcnow() - timedelta(seconds=1), due_at=utcnow())
            )
            return int(result.rowcount)

        return await self.store.transact(work)

    async def next_due(self) -> datetime | None:
        """When the next host that is not due yet will be."""
        async with self.store.connect() as connection:
            found = select(func.min(HOST.c.due_at)).where(
                HOST.c.due_at > self.now(), HOST.c.maintenance == ""
            )
            due: datetime | None = (await connection.execute(found)).scalar_one_or_none()
            return due

    async def _read_clock(self, session: AsyncSession) -> datetime:
        now = await self.store.now(session)
        self._skew = timedelta(0) if self.store.sqlite else now - utcnow()
        return now


def _answer(settlement: Settlement, stored: bool) -> None:
    if not settlement.stored.done():  # whoever waited may have been cancelled by a stop
        settlement.stored.set_result(stored)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "lease_expires": row["b_expires"],
        **{name: row[f"b_{name}"] for name in ("step", "step_since", "deadline_at")},
    }
