"""The reconciler: claims due hosts, runs their steps, and stores what came of it, until there is nothing more to do.

    claim -> step -> settle -> next step -> settle -> ... -> parked, at rest, or failed

The host's row is the only truth. A daemon that dies leaves rows with a lease that runs out; whoever claims them next runs the
same step again, and every step finds what is already there.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import structlog

from provisiond.errors import (
    ConfigError,
    DriverRejected,
    DriverUnavailable,
    Invalid,
    RenderError,
    Unsupported,
)
from provisiond.inventory.resolve import ResolvedHost, resolve_host
from provisiond.inventory.store import HOSTS
from provisiond.lifecycle import settlement
from provisiond.lifecycle.ledger import Ledger
from provisiond.lifecycle.outcome import Complete, Failed, Outcome, Step
from provisiond.lifecycle.path import find_step
from provisiond.lifecycle.table import State
from provisiond.lifecycle.world import World

log = structlog.get_logger(__name__)

Boundary = Callable[[str, ResolvedHost, str, Outcome | None], Awaitable[None]]
"""Awaited at every boundary of a step, with ``before``, ``after`` (run, not yet stored) or ``stored``, the host, the step, and what it
came to (None before it). While it does not return, the host stands still there."""


def daemon_id() -> str:
    """Names this process for good: machine, pid and a fresh random part."""
    return f"{socket.gethostname()[:30]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


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
        self.stale = 0  # writes refused because somebody else had changed the host
        self.looked_at = time.monotonic()
        self._boundary = boundary or _go_on
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
        if self._tasks:  # a claim that is under way ends first, and gives back what it took
            await asyncio.wait(self._tasks[-1:], timeout=seconds)
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
                    claimed = await self.ledger.claim(free, settlement.begin, besides=self._working)
                pause = 0.0 if claimed else await self._pause()
            except Exception:
                log.exception("engine.claim_failed")
                pause = self.settings.sweep_seconds
            if self._stopping:
                for host in claimed:
                    await self.ledger.let_go(host.id)
                return
            for host in claimed:
                task = asyncio.create_task(self._work(host), name=f"work-{host.name}")
                self._working[host.id] = task
                task.add_done_callback(partial(self._let_slot_go, host.id))
            if pause and not self._stopping:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._signal.wait()

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
            await self._boundary("before", host, step.name, None)
            outcome = await self._run(step, host, state)
            await self._boundary("after", host, step.name, outcome)
        told = settlement.of(host, state, step, outcome, self.ledger.now(), self.settings)
        if not await self.ledger.settle(told):
            self.stale += 1
            log.info("engine.stale", host=host.name, state=str(state), step=host.row.step)
            await self.ledger.let_go(host.id)
            return None
        await self._boundary("stored", host, step.name if step else "", outcome)
        if not told.keep:
            return None
        if told.write is not None or "deployment_id" in told.columns:
            async with self.world.store.read() as session:
                fresh = await resolve_host(session, host.id, self.world.store.known)
            # A verb may have come in between: then this row is not the one we hold, and our next write would wrongly pass.
            if fresh is None or fresh.row.version != host.row.version + 1:
                await self.ledger.let_go(host.id)
                return None
            return fresh
        return host.with_row(version=host.row.version + 1, **told.columns)

    async def _run(self, step: Step, host: ResolvedHost, state: State) -> Outcome:
        """The step's own answer, or a Failed made of what it raised or of its time being up."""
        deadline = host.row.deadline_at
        if deadline is not None and self.ledger.now() >= deadline:
            last = f" (its last trouble: {host.row.failure})" if host.row.failure else ""
            return Failed(
                f"host {host.name} was {state} longer than its time limit and stood at {step.name}{last}; see its history and console, "
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


async def _go_on(_when: str, _host: ResolvedHost, _step: str, _outcome: Outcome | None) -> None:
    """The boundary where nobody asked for one."""
