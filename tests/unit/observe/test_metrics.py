"""Figures: counted from the history, gathered at a scrape, in a registry of one's own."""

from __future__ import annotations

from provisiond.inventory import history
from provisiond.inventory.release_tables import Release, Rollout
from provisiond.inventory.shapes import EventView
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, utcnow
from provisiond.observe.health import run_checks
from provisiond.observe.metrics import Metrics


def event(kind: str, **fields: object) -> EventView:
    """An event as the follower hands it out."""
    line = history.line(kind=kind, state="building", step="install") | {
        "id": 1,
        "host": "",
        "at": utcnow(),
        **fields,
    }
    return EventView(**{name: line[name] for name in EventView.model_fields})


async def test_steps_failures_and_sources(store: Store) -> None:
    """Steps are timed, failures counted, other rooms' numbers shown; two registries do not meet."""
    async with store.write() as session:
        session.add(Host(name="a", state="ready"))
        release = Release(number=1, digest="d")
        session.add(release)
        await session.flush()
        session.add(Rollout(number=1, release_id=release.id, state="back"))
        session.add(Host(name="b", state="building", failure="x", deadline_at=utcnow(), due_at=utcnow()))
    metrics = Metrics(store)
    Metrics(store)
    metrics.count_events([event("step.ended", duration_ms=2500), event("step.failed", duration_ms=100)])
    metrics.count_events([event("rollout.gate", data={"gate": "success>=95%", "state": "failed"})])
    metrics.source("tftp", lambda: {"transfers": 7.0})
    for _ in range(2):
        text = (await metrics.render()).decode()
    for line in (
        'provisiond_hosts{state="ready"} 1.0',
        'provisiond_hosts_failed{state="building"} 1.0',
        "provisiond_hosts_overdue 1.0",
        "provisiond_hosts_due 1.0",
        'provisiond_step_seconds_sum{state="building",step="install"} 2.6',
        'provisiond_step_failures_total{state="building",step="install"} 1.0',
        "provisiond_tftp_transfers 7.0",
        'provisiond_rollouts{state="back"} 1.0',
        'provisiond_rollout_gates_total{gate="success",verdict="failed"} 1.0',
    ):
        assert line in text


async def test_a_check_that_hangs_or_breaks_is_an_answer() -> None:
    """A check that raises tells by what, and nothing more (it may hold a secret)."""

    async def broken() -> str:
        raise RuntimeError("password=x")

    async def well() -> str:
        return ""

    assert await run_checks({"a": broken, "b": well}) == {"a": "RuntimeError", "b": "ok"}
