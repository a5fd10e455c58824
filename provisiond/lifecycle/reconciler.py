"""The reconciler: claims due hosts, runs their steps, and stores what came of it, until there is nothing more to do.

    claim -> step -> settle -> next step -> settle -> ... -> parked, at rest, or failed

The host's row is the only truth. A daemon that dies leaves rows with a lease that runs out; whoever claims them next runs the
same step again, and every step finds what is already there.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from provisiond.errors import (
    ConfigError,
    DriverRejected,
    DriverUnavailable,
    Invalid,
    RenderError,
    Unsupported,
)
from provisiond.inventory import history
from provisiond.inventory.resolve import ResolvedHost, resolve_host
from provisiond.inventory.store import HOSTS
from provisiond.lifecycle.ledger import Ledger, Settlement
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Outcome, Step
from provisiond.lifecycle.path import find_step, next_step
from provisiond.lifecycle.table import DONE, RESTING, TRANSITIONS, State, Verb, limit_of
from provisiond.lifecycle.world import World

log = structlog.get_logger(__name__)

Boundary = Callable[[str, ResolvedHost, str], None]
"""Called at every boundary of a step, with ``before``, ``after`` (run, not yet stored) or ``stored``, the host and the step."""


def daemon_id() -> str:
    """Names this process for good: machine, pid and a fresh random part."""
    return f"{socket.gethostname()[:30]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


@dataclass
class Counters:
    """Figures for /metrics: per (state, step) how many runs ended how, and the seconds they took."""

    ended: dict[tuple[str, str, str], int] = field(default_factory=dict)
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    stale: int = 0

    def count(self, state: str, step: str, result: str, seconds: float) -> None:
        key = (state, step, result)
        self.ended[key] = self.ended.get(key, 0) + 1
        total = self.seconds.setdefault((state, step), [0, 0.0])
        total[0] += 1
        total[1] += seconds


class Reconciler:
    """Moves every host towards what was asked of it."""

    def __init__(self, world: World, *, owner: str | None = None, boundary: Boundary | None = None) -> None:
        self.world = world
        self.settings = world.settings.engine
        self.owner = owner or daemon_id()
        limits = {"bmc": self.settings.per_bmc, "hv": self.settings.per_hypervisor}
        self.ledger = Ledger(
            world.store, self.owner, lease_seconds=self.settings.lease_seconds, limits=limits
        )
        self.counters = Counters()
        self.looked_at = time.monotonic()
        self._boundary = boundary or (lambda _when, _host, _step: None)
        self._working: dict[str, asyncio.Task[None]] = {}
        self._signal = world.store.subscribe(HOSTS)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._lease_good_until = 0.0

    async def start(self) -> None:
        """Begin to work. On SQLite the leases of a daemon that died are taken over at once."""
        if self.world.store.sqlite:
            taken = await self.ledger.clear_leases()
            if taken:
                log.info("engine.taken_over", hosts=taken)
        self._tasks = [
            asyncio.create_task(self.ledger.write_forever(), name="engine-write"),
            asyncio.create_task(self._heartbeat(), name="engine-heartbeat"),
            asyncio.create_task(self._claim_forever(), name="engine-claim"),
        ]

    async def stop(self, seconds: float) -> None:
        """Claim no more, let running steps end for ``seconds``, then break them off; their hosts are free for the next daemon."""
        self._stopping = True
        self._signal.set()
        working = list(self._working.values())
        if working:
            await asyncio.wait(working, timeout=seconds)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.world.store.unsubscribe(HOSTS, self._signal)

    @property
    def busy(self) -> int:
        """Hosts being worked on now."""
        return len(self._working)

    # --- the loop -----------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        while not self._stopping:
            self._signal.clear()
            self.looked_at = time.monotonic()
            claimed: list[ResolvedHost] = []
            free = self.settings.workers - len(self._working)
            try:
                if free > 0:
                    claimed = await self.ledger.claim(free, self._begin)
                pause = 0.0 if claimed else await self._pause()
            except Exception:
                log.exception("engine.claim_failed")
                pause = self.settings.sweep_seconds
            for host in claimed:
                task = asyncio.create_task(self._work(host), name=f"work-{host.name}")
                self._working[host.id] = task
                task.add_done_callback(partial(self._let_slot_go, host.id))
            if pause and not self._stopping:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._signal.wait(), pause)

    def _let_slot_go(self, host_id: str, _task: asyncio.Task[None]) -> None:
        self._working.pop(host_id, None)
        self._signal.set()

    async def _pause(self) -> float:
        """Seconds until the next look: when the next host is due, at the latest after the sweep."""
        due = await self.ledger.next_due()
        until = (due - self.ledger.now()).total_seconds() if due else self.settings.sweep_seconds
        return min(max(until, 0.005), self.settings.sweep_seconds)

    async def _heartbeat(self) -> None:
        """Renew the leases at a quarter of their length. While that fails no new step is begun (see ``_may_act``)."""
        lease = self.settings.lease_seconds
        self._lease_good_until = time.monotonic() + lease
        while True:
            await asyncio.sleep(lease / 4)
            try:
                asked = time.monotonic()
                await self.ledger.renew(list(self._working))
                self._lease_good_until = asked + lease
            except Exception:
                log.exception("engine.heartbeat_failed")

    def _may_act(self) -> bool:
        return time.monotonic() < self._lease_good_until

    # --- one host -------------------------------------------------------------------------------------------

    def _begin(self, host: ResolvedHost, now: datetime) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """At the claim: at which step the host stands, since when, until when; and the events of that."""
        row = host.row
        state = State(row.state)
        step = find_step(host, state, row.step)
        events = []
        if row.lease_owner is not None and row.step:
            events.append(
                self._event(
                    host,
                    "step.interrupted",
                    message="the daemon that worked on it died or lost its lease",
                    cause=row.lease_owner,
                )
            )
        name = step.name if step else ""
        fresh = row.step_since is None or name != row.step
        if step is not None and (fresh or row.attempts or events):
            events.append(self._event(host, "step.started", step=name, attempt=row.attempts + 1))
        deadline = row.deadline_at
        if deadline is None and state not in RESTING:
            limit = limit_of(state, host.parameters)
            deadline = now + limit if limit and step else None
        return {"step": name, "step_since": now if fresh else row.step_since, "deadline_at": deadline}, events

    async def _work(self, host: ResolvedHost) -> None:
        """Run the host's steps one after another, until it is parked, at rest, failed, or somebody else's."""
        try:
            going: ResolvedHost | None = host
            while going is not None and not self._stopping and self._may_act():
                going = await self._one_step(going)
            if going is not None:
                await self.ledger.let_go(host.id)
        except asyncio.CancelledError:
            await asyncio.shield(self.ledger.let_go(host.id))
            raise
        except Exception:
            # The write-back itself failed (after its retries): the lease runs out and the step is run again.
            log.exception("engine.work_failed", host=host.name, state=host.row.state, step=host.row.step)

    async def _one_step(self, host: ResolvedHost) -> ResolvedHost | None:
        """Run one step and store its outcome. The host, when there is more to do at once; else None."""
        state = State(host.row.state)
        step = find_step(host, state, host.row.step)
        if step is None:
            outcome: Outcome = Complete()
        else:
            self._boundary("before", host, step.name)
            begun = time.monotonic()
            outcome = await self._run(step, host, state)
            self.counters.count(state, step.name, type(outcome).__name__.lower(), time.monotonic() - begun)
            self._boundary("after", host, step.name)
        settlement = self._settlement(host, state, step, outcome)
        if not await self.ledger.settle(settlement):
            self.counters.stale += 1
            log.info("engine.stale", host=host.name, state=str(state), step=host.row.step)
            await self.ledger.let_go(host.id)
            return None
        self._boundary("stored", host, step.name if step else "")
        if not settlement.keep:
            return None
        if settlement.write is not None or "deployment_id" in settlement.columns:
            async with self.world.store.read() as session:
                fresh = await resolve_host(session, host.id, self.world.store.known)
            # A verb may have come in between: then this row is not the one we hold, and our next write would wrongly pass.
            if fresh is None or fresh.row.version != host.row.version + 1:
                await self.ledger.let_go(host.id)
                return None
            return fresh
        return host.with_row(version=host.row.version + 1, **settlement.columns)

    async def _run(self, step: Step, host: ResolvedHost, state: State) -> Outcome:
        """The step's own answer, or a Failed made of what it raised or of its time being up."""
        deadline = host.row.deadline_at
        if deadline is not None and self.ledger.now() >= deadline:
            return Failed(
                f"host {host.name} was {state} longer than its time limit and stood at {step.name}; see its history and console, "
                f"then 'provisionctl host retry {host.name}' or 'provisionctl host cancel {host.name}'",
                retryable=False, kind="timeout",
            )  # fmt: skip
        try:
            async with asyncio.timeout(step.timeout):
                return await step.run(host, self.world)
        except TimeoutError:
            return Failed(f"step {step.name} took longer than {step.timeout:.0f} s", kind="timeout")
        except DriverUnavailable as error:
            return Failed(str(error), kind="unavailable")
        except (DriverRejected, Unsupported) as error:
            return Failed(
                f"{error}; mend that, then 'provisionctl host retry {host.name}'",
                retryable=False,
                kind="rejected",
            )
        except (RenderError, Invalid, ConfigError) as error:
            return Failed(
                f"host {host.name}: {error}; mend that, then 'provisionctl host retry {host.name}'",
                retryable=False,
                kind="template",
            )
        except Exception as error:
            log.exception("engine.step_broke", host=host.name, state=str(state), step=step.name)
            return Failed(f"step {step.name} broke: {type(error).__name__}; see the daemon's log", kind="bug")

    # --- what an outcome means for the row --------------------------------------------------------------------

    def _settlement(
        self, host: ResolvedHost, state: State, step: Step | None, outcome: Outcome
    ) -> Settlement:
        now = self.ledger.now()
        events = [
            self._event(host, note.kind, message=note.message, data=dict(note.data)) for note in outcome.notes
        ]
        columns: dict[str, Any] = dict(outcome.host)
        if isinstance(outcome, Complete):
            columns |= {"attempts": 0, "failure": None, "failure_kind": None}
            if step is not None:
                events.append(self._ended(host, "step.ended", now, outcome.message))
            due, keep = self._advance(host, state, columns, events, now)
        elif isinstance(outcome, Failed):
            due, keep = self._fail(host, state, outcome, columns, events, now), False
        else:
            assert isinstance(outcome, Continue)
            columns |= {"attempts": 0, "failure": None, "failure_kind": None}
            later = now + timedelta(seconds=outcome.after) if outcome.after is not None else None
            due, keep = _earlier(later, host.row.deadline_at), False
        return Settlement(host, columns, due, keep, events, outcome.write)

    def _advance(
        self,
        host: ResolvedHost,
        state: State,
        columns: dict[str, Any],
        events: list[dict[str, Any]],
        now: datetime,
    ) -> tuple[datetime | None, bool]:
        """The step is complete: on to the next one, or, past the last, along the table to the next state."""
        at, here, after = host.with_row(**columns), state, host.row.step
        while True:
            following = next_step(at, here, after)
            if following is not None:
                columns |= {"step": following.name, "step_since": now}
                at = host.with_row(**columns)
                if here not in RESTING and at.row.deadline_at is None:
                    limit = limit_of(here, host.parameters)
                    columns["deadline_at"] = now + limit if limit else None
                events.append(self._event(at, "step.started", step=following.name, attempt=1))
                return now, True
            verb = str(at.row.wanted) if here == State.READY and at.row.wanted else DONE
            target = TRANSITIONS.get((here, verb))
            if target is None or (here in RESTING and verb == DONE):
                columns |= {"step": "", "step_since": None, "deadline_at": None}
                return None, False
            data = {"from": str(here), "to": str(target)}
            events.append(self._event(at, "state.changed", cause=verb, data=data))
            columns |= {
                "state": str(target),
                "step": "",
                "step_since": None,
                "state_since": now,
                "deadline_at": None,
            }
            if verb == Verb.BUILD:
                columns |= {"wanted": None, "deployment_id": None}
            at, here, after = host.with_row(**columns), target, ""

    def _fail(
        self,
        host: ResolvedHost,
        state: State,
        outcome: Failed,
        columns: dict[str, Any],
        events: list[dict[str, Any]],
        now: datetime,
    ) -> datetime | None:
        attempts = host.row.attempts + 1
        final = not outcome.retryable or attempts >= self.settings.max_attempts
        columns |= {"attempts": attempts, "failure": outcome.message, "failure_kind": outcome.kind}
        if final and state in RESTING:
            columns |= {"power_wanted": None, "step": "", "step_since": None}
        due = (
            None
            if final
            else _earlier(now + timedelta(seconds=self._back_off(attempts)), host.row.deadline_at)
        )
        data: Mapping[str, Any] = {"final": final, "kind": outcome.kind} | (
            {"retry_at": due.isoformat()} if due else {}
        )
        events.append(self._ended(host, "step.failed", now, outcome.message, data))
        return due

    def _back_off(self, attempts: int) -> float:
        """Doubling pauses with jitter, so that hosts that failed together do not come back together."""
        pause = min(self.settings.backoff_max_seconds, self.settings.backoff_seconds * 2.0 ** (attempts - 1))
        return pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret

    def _ended(
        self,
        host: ResolvedHost,
        kind: str,
        now: datetime,
        message: str,
        data: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        since = host.row.step_since
        took = max(0, int((now - since).total_seconds() * 1000)) if since else None
        return self._event(
            host,
            kind,
            message=message,
            duration_ms=took,
            attempt=host.row.attempts + 1,
            data=dict(data or {}),
        )

    @staticmethod
    def _event(host: ResolvedHost, kind: str, **more: Any) -> dict[str, Any]:
        return history.line(host=host, kind=kind, **{"actor": "engine", **more})


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    known = [time for time in (one, other) if time is not None]
    return min(known) if known else None
