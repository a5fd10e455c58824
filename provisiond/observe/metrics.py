"""Figures for Prometheus, in a registry of our own: made when the daemon is composed, nothing at import.

Counters of what happened are fed from the history (so that they count what was committed, once); gauges of what is are read
from the database when somebody scrapes. Other rooms add figures by ``source``: a callable that gives numbers by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from sqlalchemy import select
from sqlmodel import col, func

from provisiond.inventory.release_tables import Rollout
from provisiond.inventory.shapes import EventView
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, utcnow

Source = Callable[[], Mapping[str, float]]
_STEP_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
_GATE = re.compile(r"[a-z.]+")  # what a gate is about: success, duration, handover.failed, metric
_API_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Metrics:
    """Every figure of one daemon."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self._sources: list[tuple[str, Source, dict[str, Gauge]]] = []
        self._hosts = Gauge("provisiond_hosts", "Hosts by state.", ["state"], registry=self.registry)
        self._failed = Gauge(
            "provisiond_hosts_failed",
            "Hosts whose failure stands, by state.",
            ["state"],
            registry=self.registry,
        )
        self._overdue = Gauge(
            "provisiond_hosts_overdue", "Hosts past the time their state allows.", registry=self.registry
        )
        self._due = Gauge("provisiond_hosts_due", "Hosts that wait for a worker now.", registry=self.registry)
        self._events = Counter(
            "provisiond_events", "Lines of the history, by kind.", ["kind"], registry=self.registry
        )
        self._rollouts = Gauge("provisiond_rollouts", "Rollouts by state.", ["state"], registry=self.registry)
        self._gates = Counter(
            "provisiond_rollout_gates",
            "Verdicts of rollouts' gates: passed, failed, undecided or waiting.",
            ["gate", "verdict"],
            registry=self.registry,
        )
        self._failures = Counter(
            "provisiond_step_failures",
            "Tries of a step that failed.",
            ["state", "step"],
            registry=self.registry,
        )
        self._steps = Histogram(
            "provisiond_step_seconds",
            "How long steps took.",
            ["state", "step"],
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self._requests = Histogram(
            "provisiond_api_seconds", "Time from a request's head to its answer.", ["method", "route", "status"],
            buckets=_API_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._request_children: dict[tuple[str, str, int], Histogram] = {}

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered API request; ``route`` is its template, never the path with names in it."""
        key = (method, route, status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(method, route, str(status))
        child.observe(seconds)

    def count_events(self, events: Sequence[EventView]) -> None:
        """Count new lines of the history (a listener of ``follow.History``)."""
        for event in events:
            self._events.labels(event.kind).inc()
            if event.kind == "rollout.gate":
                gate = _GATE.match(str(event.data.get("gate", "")))
                self._gates.labels(gate[0] if gate else "", str(event.data.get("state", ""))).inc()
            if event.kind == "step.failed":
                self._failures.labels(event.state, event.step).inc()
            if event.kind in ("step.ended", "step.failed") and event.duration_ms is not None:
                self._steps.labels(event.state, event.step).observe(event.duration_ms / 1000)

    def source(self, prefix: str, read: Source) -> None:
        """Show the numbers that ``read`` gives, at every scrape, as ``provisiond_PREFIX_NAME``."""
        self._sources.append((prefix, read, {}))

    async def render(self) -> bytes:
        """The text a scrape gets (Prometheus text format 0.0.4)."""
        await self._look()
        for prefix, read, gauges in self._sources:
            for name, value in read().items():
                if name not in gauges:
                    gauges[name] = Gauge(
                        f"provisiond_{prefix}_{name}", f"{name} of {prefix}.", registry=self.registry
                    )
                gauges[name].set(value)
        return generate_latest(self.registry)

    async def _look(self) -> None:
        async with self._store.read() as session:
            by_state = (
                await session.execute(select(col(Host.state), func.count()).group_by(col(Host.state)))
            ).all()
            failed = (
                await session.execute(
                    select(col(Host.state), func.count())
                    .where(col(Host.failure).isnot(None))
                    .group_by(col(Host.state))
                )
            ).all()
            rollouts = (
                await session.execute(select(col(Rollout.state), func.count()).group_by(col(Rollout.state)))
            ).all()
            now = utcnow()
            overdue = select(func.count()).select_from(Host).where(col(Host.deadline_at) < now)
            due = select(func.count()).select_from(Host).where(col(Host.due_at) <= now)
            self._overdue.set((await session.execute(overdue)).scalar_one())
            self._due.set((await session.execute(due)).scalar_one())
        self._hosts.clear()
        for state, count in by_state:
            self._hosts.labels(state).set(count)
        self._rollouts.clear()
        for state, count in rollouts:
            self._rollouts.labels(state).set(count)
        self._failed.clear()
        for state, count in failed:
            self._failed.labels(state).set(count)
