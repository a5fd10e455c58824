"""What a claim and an outcome mean for the host's row and its history: pure, but for the dice of the back-off."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from provisiond.config import EngineSettings
from provisiond.inventory import history
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle.ledger import Settlement
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Outcome, Step
from provisiond.lifecycle.path import find_step, next_step
from provisiond.lifecycle.table import DONE, RESTING, TRANSITIONS, State, Verb, limit_of

Events = list[dict[str, Any]]


def begin(host: ResolvedHost, now: datetime) -> tuple[dict[str, Any], Events]:
    """At the claim: at which step the host stands, since when, until when; and the events of that."""
    row, state = host.row, State(host.row.state)
    step = find_step(host, state, row.step)
    events: Events = []
    if row.lease_owner is not None and row.step_since is not None:
        # without step_since a verb has put it here since, and told of it
        why = "the daemon that worked on it died or lost its lease"
        events.append(_event(host, "step.interrupted", message=why, cause=row.lease_owner))
    name = step.name if step else ""
    fresh = row.step_since is None or name != row.step
    if step is not None and (fresh or row.attempts or events):
        events.append(_event(host, "step.started", step=name, attempt=row.attempts + 1))
    deadline = row.deadline_at
    if deadline is None and step is not None and state not in RESTING:
        deadline = _deadline(host, state, now)
    return {"step": name, "step_since": now if fresh else row.step_since, "deadline_at": deadline}, events


def of(
    host: ResolvedHost,
    state: State,
    step: Step | None,
    outcome: Outcome,
    now: datetime,
    settings: EngineSettings,
) -> Settlement:
    """What is to be stored when ``step`` of ``state`` came to ``outcome`` at ``now``."""
    events = [_event(host, note.kind, message=note.message, data=dict(note.data)) for note in outcome.notes]
    columns: dict[str, Any] = dict(outcome.host)
    if isinstance(outcome, Failed):
        due, keep = _fail(host, state, outcome, columns, events, now, settings), False
    else:
        columns |= {"attempts": 0, "failure": None, "failure_kind": None}
        if isinstance(outcome, Complete):
            if step is not None:
                events.append(_ended(host, "step.ended", now, outcome.message))
            due, keep = _advance(host, state, columns, events, now)
        else:
            assert isinstance(outcome, Continue)
            later = now + timedelta(seconds=outcome.after) if outcome.after is not None else None
            due, keep = _earlier(later, host.row.deadline_at), False
    return Settlement(host, columns, due, keep, events, outcome.write)


def _advance(
    host: ResolvedHost, state: State, columns: dict[str, Any], events: Events, now: datetime
) -> tuple[datetime | None, bool]:
    """The step is complete: on to the next one, or, past the last, along the table to the next state."""
    at, here, after = host.with_row(**columns), state, host.row.step
    while True:
        following = next_step(at, here, after)
        if following is not None:
            columns |= {"step": following.name, "step_since": now}
            at = host.with_row(**columns)
            if here not in RESTING and at.row.deadline_at is None:
                columns["deadline_at"] = _deadline(host, here, now)
            events.append(_event(at, "step.started", step=following.name, attempt=1))
            return now, True
        verb = str(at.row.wanted) if here == State.READY and at.row.wanted else DONE
        target = TRANSITIONS.get((here, verb))
        if target is None or (here in RESTING and verb == DONE):
            columns |= {"step": "", "step_since": None, "deadline_at": None}
            return None, False
        events.append(_event(at, "state.changed", cause=verb, data={"from": str(here), "to": str(target)}))
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
    host: ResolvedHost,
    state: State,
    outcome: Failed,
    columns: dict[str, Any],
    events: Events,
    now: datetime,
    settings: EngineSettings,
) -> datetime | None:
    """When to try again; None where the failure stands."""
    attempts = host.row.attempts + 1
    final = not outcome.retryable or attempts >= settings.max_attempts
    columns |= {"attempts": attempts, "failure": outcome.message, "failure_kind": outcome.kind}
    if final and state in RESTING:
        columns |= {"power_wanted": None, "step": "", "step_since": None}
    due = (
        None
        if final
        else _earlier(now + timedelta(seconds=_back_off(attempts, settings)), host.row.deadline_at)
    )
    data = {"final": final, "kind": outcome.kind} | ({"retry_at": due.isoformat()} if due else {})
    events.append(_ended(host, "step.failed", now, outcome.message, data))
    return due


def _back_off(attempts: int, settings: EngineSettings) -> float:
    """Doubling pauses with jitter, so that hosts that failed together do not come back together."""
    pause = min(settings.backoff_max_seconds, settings.backoff_seconds * 2.0 ** min(attempts - 1, 60))
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret


def _deadline(host: ResolvedHost, state: State, now: datetime) -> datetime | None:
    limit = limit_of(state, host.parameters)
    return now + limit if limit else None


def _ended(
    host: ResolvedHost, kind: str, now: datetime, message: str, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    since = host.row.step_since
    took = max(0, int((now - since).total_seconds() * 1000)) if since else None
    return _event(
        host, kind, message=message, duration_ms=took, attempt=host.row.attempts + 1, data=dict(data or {})
    )


def _event(host: ResolvedHost, kind: str, **more: Any) -> dict[str, Any]:
    return history.line(host=host, kind=kind, **{"actor": "engine", **more})


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    known = [time for time in (one, other) if time is not None]
    return min(known) if known else None
