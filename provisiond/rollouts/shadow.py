"""Shadow runs: a release rendered for every host beside what is current, in processes of their own.

A run is a row. Whoever holds its lease renders chunk after chunk in the order of host ids, and stores each chunk's results,
counts and cursor in one transaction that checks the lease: a run that is taken up again, here after a restart or by another
daemon when the lease has run out, goes on after the cursor, so no host is counted twice or left out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import ProvisiondError
from provisiond.inventory import history
from provisiond.inventory.release_tables import ShadowDiff, ShadowResult, ShadowRun
from provisiond.inventory.store import EVENTS, is_transient
from provisiond.inventory.tables import Host, HostGroup, table
from provisiond.lifecycle.table import State
from provisiond.lifecycle.world import World
from provisiond.rollouts.shadow_boot import boot, sweep
from provisiond.rollouts.shadow_pool import Pool

log = structlog.get_logger(__name__)

CHUNK = 100  # hosts rendered and stored at once
LOOK_SECONDS = 5.0  # between looks for runs that another daemon has left
WATCH_SECONDS = 1.0  # how soon a cancelled run is noticed where no word of it comes
LEASE_SECONDS = 30.0
LEFT_OUT = (State.DISCOVERED, State.RETIRED)
"""Hosts in these states are built by nobody."""

_run, _diff, _result, _host, _group = (
    table(t) for t in (ShadowRun, ShadowDiff, ShadowResult, Host, HostGroup)
)


class Lost(Exception):
    """The run is no longer ours: cancelled, or taken by another daemon."""


class ShadowRuns:
    """Carries out the runs that are asked for, one at a time. ``owner`` is this daemon's id in leases."""

    def __init__(
        self, world: World, owner: str, *, workers: int = 0, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._world, self._store, self._owner = world, world.store, owner
        self._workers = workers or os.cpu_count() or 1
        self._lease = timedelta(seconds=lease_seconds)
        self._task: asyncio.Task[None] | None = None
        self._swept = 0.0

    async def start(self) -> None:
        if self._store.sqlite:  # the file is ours alone, so whoever held a lease is dead
            await self._store.transact(self._clear_leases)
        self._task = asyncio.create_task(self._keep(), name="shadow-runs")

    async def stop(self) -> None:
        """Let go of the run at hand; it goes on at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._store.transact(self._let_go)

    async def _keep(self) -> None:
        news = self._store.subscribe(EVENTS)
        try:
            while True:
                news.clear()
                try:
                    if time.monotonic() - self._swept > LOOK_SECONDS:
                        await sweep(self._world)
                        self._swept = time.monotonic()
                    run = await self._claim()
                    if run is not None:
                        await self._carry_out(run, news)
                        continue
                except Exception:
                    log.exception("shadow.broke")
                    await asyncio.sleep(1.0)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await news.wait()
                await asyncio.sleep(0.1)  # however much happens to hosts meanwhile
        finally:
            self._store.unsubscribe(EVENTS, news)

    # --- one run -------------------------------------------------------------------------------------------

    async def _claim(self) -> Any:
        """The oldest run that nobody holds, leased; None where there is none."""
        due = _run.c.state == "running"
        async with self._store.connect() as connection:
            if (await connection.execute(select(_run.c.id).where(due).limit(1))).first() is None:
                return None

        async def work(session: AsyncSession) -> Any:
            now = await self._store.now(session)
            free = or_(_run.c.lease_owner.is_(None), _run.c.lease_expires < now)
            found = select(_run).where(due, free).order_by(_run.c.number).limit(1)
            run = (await session.execute(found.with_for_update(skip_locked=True))).first()
            if run is None:
                return None
            total = run.done + await self._count(session, run)
            leased = {"lease_owner": self._owner, "lease_expires": now + self._lease, "total": total}
            await session.execute(update(_run).where(_run.c.id == run.id).values(leased))
            return run

        return await self._store.transact(work)

    async def _carry_out(self, run: Any, news: asyncio.Event) -> None:
        work = asyncio.create_task(self._work(run))
        watch = asyncio.create_task(self._watch(run, news))
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            ended = await asyncio.gather(work, watch, return_exceptions=True)
        for problem in ended:
            if isinstance(problem, Exception) and not isinstance(problem, Lost):
                said = (
                    str(problem)
                    if isinstance(problem, ProvisiondError)
                    else f"{type(problem).__name__}: see the log"
                )
                if not isinstance(problem, ProvisiondError):
                    log.error("shadow.failed", run=run.number, exc_info=problem)
                with suppress(Lost):
                    await self._end(run, "failed", said)
                return

    async def _watch(self, run: Any, news: asyncio.Event) -> None:
        """Ends, by Lost, when the run is no longer ours; keeps the lease meanwhile."""
        renewed = time.monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await news.wait()
            news.clear()
            found = select(_run.c.state, _run.c.lease_owner).where(_run.c.id == run.id)
            try:
                async with self._store.connect() as connection:
                    now = (await connection.execute(found)).first()
            except DBAPIError as error:
                if not is_transient(error):
                    raise
                await asyncio.sleep(WATCH_SECONDS)
                continue
            if now is None or now.state != "running" or now.lease_owner != self._owner:
                raise Lost
            if time.monotonic() - renewed > self._lease.total_seconds() / 4:
                await self._store.transact(lambda session: self._ours(session, run))
                renewed = time.monotonic()
            await asyncio.sleep(0.1)

    async def _work(self, run: Any) -> None:
        await self._render(run)
        if run.boot:
            await boot(self._world, run, lambda boots: self._keep_boots(run, boots))
        await self._end(run, "done")

    async def _render(self, run: Any) -> None:
        settings, world = self._world.settings, self._world
        task = {
            "url": self._store.url, "release_id": run.release_id, "seconds": settings.templates.render_seconds,
            "size": settings.templates.render_bytes, "boot_url": world.boot_url or "http://boot.invalid",
            "authorized_keys": list(world.renderings.authorized_keys), "validating": run.validate_results,
        }  # fmt: skip
        left = await self._left(run)
        if not left:
            return
        begun = time.monotonic()
        async with Pool(min(self._workers, -(-len(left) // CHUNK)), task) as pool:
            async for ids, answer in pool.answers(_chunks(left)):
                now = time.monotonic()
                await self._store_chunk(run, ids, answer, now - begun)
                begun = now

    async def _store_chunk(self, run: Any, ids: list[str], answer: dict[str, Any], seconds: float) -> None:
        """Results, counts and cursor of one chunk in one transaction. Raises Lost."""
        hosts = answer["hosts"]
        told = {
            outcome: sum(h["outcome"] == outcome for h in hosts)
            for outcome in ("unchanged", "changed", "failing")
        }
        counts: dict[str, int] = {}
        for host in hosts:
            for mark in host["diffs"]:
                counts[mark] = counts.get(mark, 0) + 1

        async def work(session: AsyncSession) -> None:
            await self._ours(session, run)
            row = (await session.execute(select(_run.c.report).where(_run.c.id == run.id))).one()
            report = dict(row.report)
            for name in ("validated", "checked"):
                report[name] = report.get(name, 0) + answer[name]
            skipped = dict(report.get("skipped", {}))
            for sentence, count in answer["skipped"].items():
                skipped[sentence] = skipped.get(sentence, 0) + count
            report["skipped"] = skipped
            report["gone"] = report.get("gone", 0) + len(ids) - len(hosts)
            values: dict[str, Any] = {name: _run.c[name] + count for name, count in told.items()}
            values |= {"done": _run.c.done + len(ids), "size": _run.c.size + sum(h["size"] for h in hosts)}
            values |= {"seconds": _run.c.seconds + seconds, "cursor": ids[-1], "report": report}
            await session.execute(update(_run).where(_run.c.id == run.id).values(values))
            if hosts:
                await session.execute(insert(_result), [h | {"run_id": run.id} for h in hosts])
            known = select(_diff.c.digest).where(_diff.c.run_id == run.id, _diff.c.digest.in_(list(counts)))
            there = set((await session.execute(known)).scalars())
            fresh = [
                {"run_id": run.id, "digest": mark, "hosts": count, **answer["findings"][mark]}
                for mark, count in counts.items()
                if mark not in there
            ]
            if fresh:
                await session.execute(insert(_diff), fresh)
            for mark in there:
                more = update(_diff).where(_diff.c.run_id == run.id, _diff.c.digest == mark)
                await session.execute(more.values(hosts=_diff.c.hosts + counts[mark]))

        await self._store.transact(work)

    async def _keep_boots(self, run: Any, boots: list[dict[str, Any]]) -> None:
        """Store what is known of the run's machines. Raises Lost."""

        async def work(session: AsyncSession) -> None:
            await self._ours(session, run)
            report = (await session.execute(select(_run.c.report).where(_run.c.id == run.id))).scalar_one()
            await session.execute(
                update(_run).where(_run.c.id == run.id).values(report={**report, "boots": boots})
            )

        await self._store.transact(work)

    async def _end(self, run: Any, state: str, failure: str = "") -> None:
        async def work(session: AsyncSession) -> None:
            await self._ours(session, run)
            now = await self._store.now(session)
            values = {
                "state": state,
                "failure": failure,
                "ended_at": now,
                "lease_owner": None,
                "lease_expires": None,
            }
            await session.execute(update(_run).where(_run.c.id == run.id).values(**values))
            row = (await session.execute(select(_run).where(_run.c.id == run.id))).one()
            data = {"run": run.number, **{n: getattr(row, n) for n in ("unchanged", "changed", "failing")}}
            said = f"shadow run {run.number}: " + (
                failure or ", ".join(f"{data[n]} {n}" for n in list(data)[1:])
            )
            await history.add(session, kind=f"shadow.{state}", actor="daemon", message=said, data=data)

        await self._store.transact(work, EVENTS)

    # --- inner ---------------------------------------------------------------------------------------------

    async def _ours(self, session: AsyncSession, run: Any) -> None:
        """Renew the lease within a transaction, or raise Lost."""
        now = await self._store.now(session)
        ours = update(_run).where(
            _run.c.id == run.id, _run.c.state == "running", _run.c.lease_owner == self._owner
        )
        done = await (await session.connection()).execute(
            ours.values(lease_expires=now + self._lease, updated_at=now)
        )
        if done.rowcount != 1:
            raise Lost

    async def _clear_leases(self, session: AsyncSession) -> None:
        await session.execute(
            update(_run).where(_run.c.lease_owner.isnot(None)).values(lease_owner=None, lease_expires=None)
        )

    async def _let_go(self, session: AsyncSession) -> None:
        ours = update(_run).where(_run.c.lease_owner == self._owner)
        await session.execute(ours.values(lease_owner=None, lease_expires=None))

    async def _count(self, session: AsyncSession, run: Any) -> int:
        return int((await session.execute(self._of(run, func.count()))).scalar_one())

    async def _left(self, run: Any) -> list[str]:
        async with self._store.connect() as connection:
            return list((await connection.execute(self._of(run, _host.c.id).order_by(_host.c.id))).scalars())

    def _of(self, run: Any, what: Any) -> Any:
        """Selects ``what`` of the hosts that the run still has to look at."""
        found = select(what).where(_host.c.id > run.cursor, _host.c.state.notin_(LEFT_OUT))
        if run.group_id is not None:
            below = select(_group.c.id).where(_group.c.id == run.group_id).cte("below", recursive=True)
            below = below.union(select(_group.c.id).join(below, _group.c.parent_id == below.c.id))
            found = found.where(_host.c.group_id.in_(select(below.c.id)))
        return found


async def _chunks(ids: list[str]) -> AsyncIterator[list[str]]:
    for at in range(0, len(ids), CHUNK):
        yield ids[at : at + CHUNK]
