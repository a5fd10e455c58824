"""What an outcome means for the host's row: columns, when to look again, and the events of it."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest

from provisiond.errors import (
    ConfigError,
    DriverRejected,
    DriverUnavailable,
    FieldError,
    Invalid,
    RenderError,
    Unsupported,
)
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle import settlement
from provisiond.lifecycle.ledger import Settlement
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Note, Outcome, Step
from provisiond.lifecycle.path import PATH
from provisiond.lifecycle.table import State
from provisiond.lifecycle.world import World
from tests.integration.engine.rig import Rig
from tests.unit.lifecycle.hosts import a_host


def settled(rig: Rig, host: ResolvedHost, outcome: Outcome) -> Settlement:
    state = State(host.row.state)
    step = next((step for step in PATH[state] if step.name == host.row.step), None)
    return settlement.of(host, state, step, outcome, utcnow(), rig.settings.engine)


def kinds(stored: Settlement) -> list[str]:
    return [event["kind"] for event in stored.events]


async def test_continue_parks(rig: Rig) -> None:
    """Waiting keeps no lease, forgets earlier failures, and writes nothing into the history but its notes."""
    host = a_host(state="building", step="install", attempts=2, failure="x", failure_kind="y")
    one = settled(rig, host, Continue(notes=(Note("seen", "this"),)))
    assert (one.keep, one.due_at, kinds(one)) == (False, None, ["seen"])
    assert (one.columns["attempts"], one.columns["failure"], one.columns["failure_kind"]) == (0, None, None)


async def test_continue_looks_again_in_time(rig: Rig) -> None:
    """After so many seconds, but no later than the state's deadline."""
    now = utcnow()
    host = a_host(state="building", step="install", deadline_at=now + timedelta(seconds=30))
    soon, late, never = (settled(rig, host, Continue(after=after)).due_at for after in (10.0, 100.0, None))
    assert soon is not None and timedelta(seconds=9) < soon - now < timedelta(seconds=12)
    assert late == never == host.row.deadline_at


async def test_complete_goes_on_to_the_next_step(rig: Rig) -> None:
    """The lease is kept and both the end and the beginning are told."""
    one = settled(rig, a_host(state="building", step="prepare", method="installer"), Complete("done"))
    assert one.keep and one.columns["step"] == "reserve" and "state" not in one.columns
    assert kinds(one) == ["step.ended", "step.started"]


async def test_complete_passes_over_states_without_work(rig: Rig) -> None:
    """Sensors have no use without a controller: from enrolled straight to rest at ready, the history naming each state."""
    one = settled(rig, a_host(state="enrolled", step="verify"), Complete())
    assert (one.columns["state"], one.columns["step"], one.due_at, one.keep) == ("ready", "", None, False)
    changes = [event["data"] for event in one.events if event["kind"] == "state.changed"]
    assert changes == [{"from": "enrolled", "to": "inspecting"}, {"from": "inspecting", "to": "ready"}]


async def test_what_was_wanted_follows(rig: Rig) -> None:
    """A build that was asked for too early begins as soon as the host is ready, and is asked for no more."""
    one = settled(rig, a_host(state="enrolled", step="verify", wanted="build"), Complete())
    assert (one.columns["state"], one.columns["step"], one.columns["wanted"]) == ("building", "prepare", None)
    assert one.keep and one.columns["deadline_at"] is not None


async def test_retired_stays(rig: Rig) -> None:
    """After the last step of the last state there is nothing: no deadline, not due."""
    one = settled(rig, a_host(state="retired", step="free", deadline_at=utcnow()), Complete())
    assert (one.keep, one.due_at, one.columns["deadline_at"]) == (False, None, None)


async def test_a_failure_is_tried_again_later_each_time(rig: Rig) -> None:
    """Pauses double, with jitter; the host shows what failed and how often."""
    pauses = []
    for attempts in (0, 1):
        now = utcnow()
        one = settled(
            rig,
            a_host(state="enrolled", step="verify", attempts=attempts),
            Failed("no answer", kind="unavailable"),
        )
        assert one.due_at is not None
        assert (one.columns["attempts"], one.columns["failure"]) == (attempts + 1, "no answer")
        assert one.events[-1]["kind"] == "step.failed" and one.events[-1]["data"]["final"] is False
        pauses.append((one.due_at - now).total_seconds())
    base = rig.settings.engine.backoff_seconds
    assert base * 0.5 <= pauses[0] <= base * 1.6 and base <= pauses[1] <= base * 3.1


@pytest.mark.parametrize(("attempts", "retryable"), [(0, False), (2, True)])
async def test_a_failure_stands(rig: Rig, attempts: int, retryable: bool) -> None:
    """When it is final, or was tried often enough: not due until somebody acts."""
    host = a_host(state="enrolled", step="verify", attempts=attempts)
    one = settled(rig, host, Failed("no", retryable=retryable))
    assert (one.due_at, one.keep) == (None, False) and one.events[-1]["data"] == {
        "final": True,
        "kind": "error",
    }


async def test_a_wish_for_power_that_fails_is_dropped(rig: Rig) -> None:
    """A host at rest goes back to rest; its wish is not carried out days later."""
    host = a_host(state="active", step="power", power_wanted="off")
    one = settled(rig, host, Failed("no", retryable=False))
    assert (one.columns["power_wanted"], one.columns["step"], one.columns["failure"]) == (None, "", "no")


async def test_a_pause_never_outlasts_the_deadline(rig: Rig) -> None:
    """The host is looked at when its time is up, whatever the pause."""
    host = a_host(state="enrolled", step="verify", deadline_at=utcnow() + timedelta(seconds=0.01))
    assert settled(rig, host, Failed("no answer")).due_at == host.row.deadline_at


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (DriverUnavailable("bmc away"), "unavailable", True),
        (DriverRejected("wrong password"), "rejected", False),
        (Unsupported("cannot"), "rejected", False),
        (RenderError("a.j2", "no such key", line=3), "template", False),
        (Invalid([FieldError("a", "is wrong")]), "template", False),
        (ConfigError("no driver"), "template", False),
        (ZeroDivisionError("secret"), "bug", True),
    ],
)
async def test_what_a_step_raises(rig: Rig, error: Exception, kind: str, retryable: bool) -> None:
    """What may pass is tried again, what stays wrong stands with advice; a bug shows its kind and none of its text."""

    async def run(_host: ResolvedHost, _world: World) -> Outcome:
        raise error

    outcome = await rig.reconciler._run(Step("s", run), a_host(state="enrolled", step="s"), State.ENROLLED)
    assert isinstance(outcome, Failed) and (outcome.kind, outcome.retryable) == (kind, retryable)
    assert retryable or "provisionctl host retry web01" in outcome.message
    assert "secret" not in outcome.message


async def test_a_step_that_hangs_is_broken_off(rig: Rig) -> None:
    """After the step's own time, to be tried again."""

    async def run(_host: ResolvedHost, _world: World) -> Outcome:
        await asyncio.sleep(30)
        return Complete()

    began = time.monotonic()
    outcome = await rig.reconciler._run(
        Step("s", run, timeout=0.05), a_host(state="enrolled", step="s"), State.ENROLLED
    )
    assert isinstance(outcome, Failed) and (outcome.kind, outcome.retryable) == ("timeout", True)
    assert time.monotonic() - began < 15


async def test_past_its_deadline_nothing_is_run(rig: Rig) -> None:
    """The time limit of a state ends in a failure that stands and says what to do."""
    ran: list[Any] = []

    async def run(host: ResolvedHost, _world: World) -> Outcome:
        ran.append(host)
        return Complete()

    host = a_host(state="building", step="s", deadline_at=utcnow() - timedelta(seconds=1))
    outcome = await rig.reconciler._run(Step("s", run), host, State.BUILDING)
    assert isinstance(outcome, Failed) and (outcome.kind, outcome.retryable, ran) == ("timeout", False, [])
    assert "longer than its time limit" in outcome.message and "host cancel web01" in outcome.message


def test_a_claim_tells_of_a_step_that_was_interrupted() -> None:
    """One whose holder died is told of, and begun again; not one that a verb has put the host at since, which nobody had begun."""
    host = a_host(state="rescue", step="stay", lease_owner="dead", step_since=utcnow())
    begun, events = settlement.begin(host, utcnow())
    assert [(e["kind"], e["step"]) for e in events] == [
        ("step.interrupted", "stay"),
        ("step.started", "stay"),
    ]
    assert begun["step_since"] == host.row.step_since
    host = a_host(state="rescue", step="leave", lease_owner="dead")
    _, events = settlement.begin(host, utcnow())
    assert [(e["kind"], e["step"]) for e in events] == [("step.started", "leave")]
