"""What a rollout does next, given what was found: a Move, or None while there is nothing to do but wait. Pure.

begin a step -> ask hosts, N at a time -> (window) -> judge -> the next step ... -> done
                                                   \\-> wait for an approval, pause, or go back
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from provisiond.rollouts.gates import Gate, Reading, Verdict, fails_already, judge
from provisiond.rollouts.measure import Facts
from provisiond.rollouts.report import in_words, report_of
from provisiond.rollouts.rollout import TRANSITIONS as TABLE
from provisiond.rollouts.rollout import Event, State, is_last, step_name
from provisiond.rollouts.subset import NOBODY, threshold_of
from provisiond.templating.current import host_hash

METRIC_TRIES = 3
METRIC_PAUSE = timedelta(seconds=10)
BY = "rollout"
"""The actor of what a rollout does by itself."""


@dataclass(frozen=True)
class Move:
    """One transaction: the columns that change, its events, hosts to be asked for a rebuild, and whether the pointer moves."""

    name: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    asks: Sequence[str] = ()
    purpose: str = "forth"
    points: bool = False
    release: bool = False  # whether another release is current for some host afterwards


def event(rollout: Any, kind: str, message: str, actor: str = BY, **data: Any) -> dict[str, Any]:
    """A line of the history about the rollout; ``cause`` is how its lines are found again."""
    told = {
        "rollout": rollout.number,
        "group": rollout.group_name,
        "step": step_name(rollout.step, rollout.steps),
    } | data
    return {
        "kind": f"rollout.{kind}", "actor": actor, "cause": cause_of(rollout), "data": told,
        "message": f"rollout {rollout.number}: {message}",
    }  # fmt: skip


def cause_of(rollout: Any) -> str:
    return f"rollout {rollout.number}"


def running(
    rollout: Any, facts: Facts, gates: Sequence[Gate], readings: Mapping[str, Reading] | None, now: datetime
) -> Move | str | None:
    """The next move of one that is running. The word ``metrics``: call again with their ``readings``."""
    if rollout.step < 0:
        return begin_step(rollout, facts, now)
    numbers, work = facts.numbers, rollout.work
    approved = work.get("approved") == rollout.step
    if failed := [verdict for gate in gates if (verdict := fails_already(gate, numbers))]:
        return go_back(rollout, facts, failed, now)
    room = rollout.rebuild - facts.busy
    if facts.askable and room > 0:
        return Move("ask", asks=facts.askable[:room])
    if now < datetime.fromisoformat(work["until"]):
        return None
    least = min(rollout.min_builds, numbers.new)
    unfinished = (
        facts.askable or (rollout.rebuild and facts.busy) or (numbers.ended < least and numbers.under_way)
    )
    if unfinished and not approved:
        return None
    if readings is None and any(gate.kind == "metric" for gate in gates):
        return "metrics"
    readings = readings or {}
    tries = int(work.get("tries", 0)) + 1
    if any(reading.problem for reading in readings.values()) and tries < METRIC_TRIES and not approved:
        return Move("metric-retry", {"work": {**work, "tries": tries}, "due_at": now + METRIC_PAUSE})
    verdicts = [judge(gate, numbers, readings, least=least, approved=approved) for gate in gates]
    if any(verdict.state == "failed" for verdict in verdicts):
        return go_back(rollout, facts, verdicts, now)
    columns: dict[str, Any]
    undecided = [verdict for verdict in verdicts if verdict.state == "undecided"]
    judged = [_judged(rollout, verdict, facts) for verdict in verdicts]
    if undecided and not approved:
        why = "; ".join(f"{verdict.gate}: {verdict.why}" for verdict in undecided)
        said = f"paused at step {step_name(rollout.step, rollout.steps)}, as it is undecided: {why}; resume, approve, or back"
        columns = {
            "state": _to(rollout, Event.UNDECIDED),
            "why": why,
            "due_at": None,
            "work": _kept(work, verdicts),
        }
        return Move("pause", columns, [*judged, event(rollout, "paused", said, numbers=numbers.plain())])
    if any(verdict.state == "waiting" for verdict in verdicts):
        said = f"waits for approval at step {step_name(rollout.step, rollout.steps)}"
        columns = {
            "state": _to(rollout, Event.ASKING),
            "why": said,
            "due_at": None,
            "work": _kept(work, verdicts),
        }
        return Move("wait", columns, [*judged, event(rollout, "waiting", said, numbers=numbers.plain())])
    if not is_last(rollout.step, rollout.steps):
        begun = begin_step(rollout, facts, now)
        return Move(begun.name, begun.columns, [*judged, *begun.events], release=True)
    said = f"done: release #{work['release']} is current {_where(rollout)}"
    columns = {
        "state": _to(rollout, Event.PASSED), "active_place": None, "ended_at": now, "due_at": None, "why": "every gate passed",
        "work": _kept(work, verdicts),
    }  # fmt: skip
    return Move(
        "done",
        columns,
        [*judged, event(rollout, "done", said, numbers=numbers.plain())],
        points=True,
        release=True,
    )


def waiting(rollout: Any, facts: Facts, gates: Sequence[Gate], now: datetime) -> Move | None:
    """One that waits for an approval goes back all the same when a gate fails meanwhile."""
    failed = [verdict for gate in gates if (verdict := fails_already(gate, facts.numbers))]
    return go_back(rollout, facts, failed, now) if failed else None


def going_back(rollout: Any, facts: Facts, now: datetime) -> Move | None:
    """Rebuild what was asked for, N at a time; then it is over."""
    room = max(1, rollout.rebuild) - facts.busy
    if rollout.rebuild_back and facts.askable and room > 0:
        return Move("ask-back", asks=facts.askable[:room], purpose="back")
    if rollout.rebuild_back and (facts.askable or facts.busy):
        return None
    columns = {"state": _to(rollout, Event.SETTLED), "active_place": None, "ended_at": now, "due_at": None}
    return Move("back", columns, [event(rollout, "gone-back", f"is back: {rollout.why}")], release=True)


def begin_step(rollout: Any, facts: Facts, now: datetime) -> Move:
    """Take in the hosts of the next step."""
    step = rollout.step + 1
    threshold = threshold_of(rollout.steps[step], facts.hosts, rollout.seed, rollout.threshold)
    until = now + timedelta(seconds=rollout.window_seconds)
    work = {
        "release": rollout.work["release"],
        "since": rollout.work.get("since") or now.isoformat(),
        "before": rollout.threshold,
        "until": until.isoformat(),
    }
    taken = _count(facts, rollout.seed, threshold)
    said = f"step {step_name(step, rollout.steps)}: release #{work['release']} for {taken} of {len(facts.hosts)} hosts"
    told = event(rollout, "step", said, step=step_name(step, rollout.steps), hosts=taken, of=len(facts.hosts))
    columns = {
        "step": step,
        "step_since": now,
        "threshold": threshold,
        "due_at": until,
        "work": work,
        "why": "",
    }
    return Move("step", columns, [told], release=True)


def go_back(
    rollout: Any, facts: Facts, verdicts: Sequence[Verdict], now: datetime, *, why: str = "", actor: str = BY
) -> Move:
    """Every host has what was current before at once, and the report is opened, in one transaction."""
    failed = [verdict for verdict in verdicts if verdict.state == "failed"]
    why = why or "; ".join(f"{verdict.gate} failed: {verdict.why}" for verdict in failed)
    report = report_of(rollout, facts, verdicts, why, actor, now)
    columns = {
        "state": _to(rollout, Event.FAILED if failed else Event.BACK), "threshold": NOBODY, "due_at": None, "why": why,
        "report": report, "work": {**_kept(rollout.work, verdicts), "reached": rollout.threshold},
    }  # fmt: skip
    judged = [_judged(rollout, verdict, facts) for verdict in verdicts]
    going = event(
        rollout,
        "going-back",
        f"goes back from step {report['step']}: {why}",
        actor,
        numbers=facts.numbers.plain(),
    )
    opened = event(
        rollout, "report", in_words(report), actor, hosts=[one["host"] for one in report["hosts"]], why=why
    )
    return Move(
        "going-back",
        columns,
        [*judged, going, opened | {"key": f"rollout:{rollout.id}:report"}],
        release=True,
    )


def cancelled(
    rollout: Any, why: str, now: datetime, *, event_: Event = Event.GROUP_GONE, actor: str = BY
) -> Move:
    """Called off: nobody has the release because of it any more."""
    columns = {
        "state": _to(rollout, event_), "active_place": None, "threshold": NOBODY, "ended_at": now, "due_at": None, "why": why,
    }  # fmt: skip
    return Move("cancel", columns, [event(rollout, "cancelled", f"cancelled: {why}", actor)], release=True)


def _to(rollout: Any, by: Event) -> str:
    return str(TABLE[State(rollout.state), by])


def _judged(rollout: Any, verdict: Verdict, facts: Facts) -> dict[str, Any]:
    said = f"gate {verdict.gate} {verdict.state}: {verdict.why}"
    return event(rollout, "gate", said, gate=verdict.gate, state=verdict.state, numbers=facts.numbers.plain())


def _kept(work: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {**work, "verdicts": [verdict.plain() for verdict in verdicts]}


def _count(facts: Facts, seed: str, threshold: str) -> int:
    return sum(1 for host_id in facts.hosts if threshold and host_hash(seed, host_id) <= threshold)


def _where(rollout: Any) -> str:
    return f"in group {rollout.group_name}" if rollout.group_id else "everywhere"
