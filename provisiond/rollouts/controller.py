"""The controller: drives every rollout that is not over along its path, one daemon each, until there is nothing to do but wait.

    claim -> measure -> (ask the metrics) -> decide -> store, with its events, by compare-and-set -> again

The rollout's row is the only truth. A daemon that dies leaves a row with a lease that runs out; whoever claims it next looks
at the same numbers and goes on. A move is one transaction, and no transaction is open while a metric is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import structlog
from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.config import RolloutSettings
from provisiond.errors import Conflict, NotFound, StaleWrite
from provisiond.inventory import history
from provisiond.inventory.release_tables import EVERYWHERE, Rollout, RolloutHost
from provisiond.inventory.shapes import EventView
from provisiond.inventory.store import EVENTS, HOSTS, RELEASES, Store
from provisiond.inventory.tables import Deployment, table, utcnow
from provisiond.lifecycle import intents, rows
from provisiond.lifecycle.intents import Verb
from provisiond.lifecycle.table import State as HostState
from provisiond.rollouts import moves
from provisiond.rollouts.gates import Reading, parse
from provisiond.rollouts.measure import BUILDS, Facts, measure, to_go_back
from provisiond.rollouts.metrics_query import read_metric
from provisiond.rollouts.moves import Move
from provisiond.rollouts.rollout import ACTIVE, State
from provisiond.templating.pointers import lock_pointers, move_pointer

log = structlog.get_logger(__name__)
_rollout, _asked, _deployment = table(Rollout), table(RolloutHost), table(Deployment)
SWEEP_SECONDS = 5.0
LEAST_PAUSE = 0.1  # between two looks, however much happens
WAKING = (
    "rollout.",
    "state.changed",
    "step.failed",
    "callback.failed",
    "intent.",
    "host.",
    "group.",
    "boot.loop",
)

Boundary = Callable[[str, str], None]
"""Called at every boundary of a move, with ``decided`` (not yet stored) or ``stored``, and the move's name."""


class Rollouts:
    """Drives them. ``heard`` is a listener of the history: what happens to hosts is looked at at once."""

    def __init__(
        self,
        store: Store,
        settings: RolloutSettings,
        owner: str,
        *,
        lease_seconds: float = 40.0,
        sweep_seconds: float = SWEEP_SECONDS,
        boundary: Boundary | None = None,
    ) -> None:
        self.store, self.settings, self.owner = store, settings, owner
        self._lease = timedelta(seconds=lease_seconds)
        self._sweep = sweep_seconds
        self._boundary = boundary or (lambda _when, _move: None)
        self._signal = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._due: datetime | None = None

    async def start(self) -> None:
        """Begin. On SQLite, whose file is ours alone, the leases of a daemon that died are void at once."""
        if self.store.sqlite:

            async def clear(session: AsyncSession) -> None:
                await session.execute(update(_rollout).values(lease_owner=None, lease_expires=None))

            await self.store.transact(clear)
        self._task = asyncio.create_task(self._drive_for_ever(), name="rollouts")

    async def stop(self) -> None:
        """End after the move under way, and give the leases back."""
        self._stopping = True
        self._signal.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self.settings.metric_seconds + 5)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

        async def let_go(session: AsyncSession) -> None:
            mine = update(_rollout).where(_rollout.c.lease_owner == self.owner)
            await session.execute(mine.values(lease_owner=None, lease_expires=None))

        await self.store.transact(let_go)

    def heard(self, events: Sequence[EventView]) -> None:
        """Something may have happened to a host of a rollout, or to a rollout."""
        if any(event.kind.startswith(WAKING) for event in events):
            self._signal.set()

    async def _drive_for_ever(self) -> None:
        while not self._stopping:
            self._signal.clear()
            begun = time.monotonic()
            try:
                await self._round()
            except Exception:
                log.exception("rollouts.round_failed")
            took = time.monotonic() - begun
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._signal.wait()
            if not self._stopping:  # looking is work that goes with the hosts: it is not to fill the day
                await asyncio.sleep(max(LEAST_PAUSE, 4 * took))

    def _pause(self) -> float:
        until = (self._due - utcnow()).total_seconds() if self._due else self._sweep
        return min(max(until, 0.01), self._sweep)

    async def _round(self) -> None:
        self._due = None
        for rollout in await self._claim():
            try:
                while not self._stopping and await self._one_move(rollout):
                    rollout = await self._read(rollout.id)
            except Exception:
                log.exception("rollouts.failed", rollout=rollout.number)
            fresh = await self._read(rollout.id)
            if (
                fresh.due_at is not None
                and fresh.due_at > utcnow()
                and (self._due is None or fresh.due_at < self._due)
            ):
                self._due = fresh.due_at

    # --- claiming -----------------------------------------------------------------------------------------

    async def _claim(self) -> list[Any]:
        """Rollouts that are ours to drive. A lease is written when it is taken, and again when half of it is over."""
        async with self.store.connect() as connection:
            found = await connection.execute(
                select(_rollout).where(_rollout.c.state.in_(ACTIVE)).order_by(_rollout.c.number)
            )
            active = found.all()
        if not active:
            return []
        now = await self._now()
        mine = []
        for row in active:
            ours = row.lease_owner == self.owner
            if ours and row.lease_expires is not None and row.lease_expires > now + self._lease / 2:
                mine.append(_plain(row))
                continue
            free = ours or row.lease_owner is None or row.lease_expires is None or row.lease_expires < now
            if free and (taken := await self._take(row.id)) is not None:
                mine.append(taken)
        return mine

    async def _take(self, rollout_id: str) -> Any:
        async def work(session: AsyncSession) -> Any:
            now = await self.store.now(session)
            free = or_(
                _rollout.c.lease_owner.is_(None),
                _rollout.c.lease_owner == self.owner,
                _rollout.c.lease_expires < now,
            )
            took = await session.execute(
                update(_rollout)
                .where(_rollout.c.id == rollout_id, _rollout.c.state.in_(ACTIVE), free)
                .values(lease_owner=self.owner, lease_expires=now + self._lease)
                .returning(*_rollout.c)
            )
            row = took.first()
            return None if row is None else _plain(row)

        return await self.store.transact(work)

    async def _read(self, rollout_id: str) -> Any:
        async with self.store.connect() as connection:
            return _plain(
                (await connection.execute(select(_rollout).where(_rollout.c.id == rollout_id))).one()
            )

    async def _now(self) -> datetime:
        async with self.store.read() as session:
            return await self.store.now(session)

    # --- one rollout --------------------------------------------------------------------------------------

    async def _one_move(self, rollout: Any) -> bool:
        """Decide and store one move. False: there is nothing to do, or somebody else has changed the rollout."""
        move = await self._decide(rollout)
        if move is None:
            return False
        self._boundary("decided", move.name)
        stored = await self._store_move(rollout, move)
        if not stored:
            self._signal.set()  # an operator, or another daemon: look again
            return False
        self._boundary("stored", move.name)
        log.info("rollouts.moved", rollout=rollout.number, move=move.name, hosts=len(move.asks))
        return True

    async def _decide(self, rollout: Any) -> Move | None:
        state = State(rollout.state)
        if state not in ACTIVE:
            return None
        async with self.store.read() as session:
            now = await self.store.now(session)
            look = to_go_back if state is State.GOING_BACK else measure
            facts: Facts = await look(session, rollout)
        if facts.group_gone:
            return moves.cancelled(rollout, f"the group {rollout.group_name} was deleted", now)
        if state is State.PAUSED:
            return None
        if state is State.GOING_BACK:
            return moves.going_back(rollout, facts, now)
        gates = [parse(text) for text in rollout.gates]
        if state is State.WAITING:
            return moves.waiting(rollout, facts, gates, now)
        if rollout.work.get("tries") and rollout.due_at is not None and now < rollout.due_at:
            return None  # a metric is asked again a little later
        move = moves.running(rollout, facts, gates, None, now)
        if move == "metrics":
            metric = [gate for gate in gates if gate.kind == "metric"]
            read = await asyncio.gather(*(read_metric(gate, self.settings) for gate in metric))
            readings: dict[str, Reading] = {
                gate.text: reading for gate, reading in zip(metric, read, strict=True)
            }
            move = moves.running(rollout, facts, gates, readings, now)
        return move if isinstance(move, Move) else None

    async def _store_move(self, rollout: Any, move: Move) -> bool:
        async def work(session: AsyncSession) -> None:
            if move.points:
                await lock_pointers(session)
            connection = await session.connection()
            changed = await connection.execute(
                update(_rollout)
                .where(
                    _rollout.c.id == rollout.id,
                    _rollout.c.version == rollout.version,
                    _rollout.c.lease_owner == self.owner,
                )
                .values(version=rollout.version + 1, updated_at=utcnow(), **move.columns)
            )
            if changed.rowcount != 1:
                raise StaleWrite(f"rollout {rollout.number} was changed by somebody else")
            for host_id in sorted(move.asks):
                await self._ask(session, rollout, host_id, move.purpose)
            for line in move.events:
                await history.add(session, **line)
            if move.points:
                await move_pointer(
                    session, rollout.group_id or EVERYWHERE, rollout.release_id, actor=rollout.actor,
                    reason=moves.cause_of(rollout), rollout_id=rollout.id,
                )  # fmt: skip

        topics = [EVENTS]
        topics += [HOSTS] if move.asks else []
        topics += [RELEASES] if move.release else []
        try:
            await self.store.transact(work, *topics)
        except StaleWrite:
            return False
        return True

    async def _ask(self, session: AsyncSession, rollout: Any, host_id: str, purpose: str) -> None:
        """Ask for the host's rebuild, once for ever; one that was locked, or that somebody else builds, since we looked is left alone."""
        host = await rows.lock_host(session, host_id)
        states: Iterable[HostState] = (
            (HostState.ACTIVE,) if purpose == "forth" else (HostState.ACTIVE, *BUILDS)
        )
        if host is None or host.locked or host.maintenance or host.state not in states:
            return
        built = select(func.max(_deployment.c.number)).where(_deployment.c.host_id == host_id)
        number = (await session.execute(built)).scalar() or 0
        new: Any = sqlite.insert(_asked) if self.store.sqlite else postgresql.insert(_asked)
        first = await session.execute(
            new.values(
                rollout_id=rollout.id,
                host_id=host_id,
                purpose=purpose,
                step=rollout.step,
                number=number,
                at=utcnow(),
            )
            .on_conflict_do_nothing()
            .returning(_asked.c.host_id)
        )
        if first.first() is None:
            return
        with suppress(Conflict, NotFound):
            await intents.ask(session, host_id, Verb.REBUILD, actor=moves.BY, cause=moves.cause_of(rollout))


def _plain(row: Any) -> Any:
    return SimpleNamespace(**row._mapping)
