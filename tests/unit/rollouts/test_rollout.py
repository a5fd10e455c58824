"""The path of a rollout as data, and the moves made of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from provisiond.rollouts import moves
from provisiond.rollouts.gates import Gate, Numbers, Reading, parse
from provisiond.rollouts.measure import Facts
from provisiond.rollouts.rollout import ACTIVE, MEANING, TRANSITIONS, VERBS, Event, State, allowed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GATES = [parse("success>=95%")]


def rollout(**columns: Any) -> Any:
    work = {
        "release": 2,
        "since": NOW.isoformat(),
        "before": "",
        "until": (NOW + timedelta(minutes=30)).isoformat(),
    }
    row = {
        "id": "r", "number": 7, "group_id": "g", "group_name": "web", "state": "running", "steps": ["1", "100%"], "step": 0,
        "seed": "s", "threshold": "5", "window_seconds": 1800, "rebuild": 0, "rebuild_back": False, "min_builds": 1, "why": "",
        "work": work, "release_id": "new", "due_at": None,
    }  # fmt: skip
    return SimpleNamespace(**{**row, **columns, "work": {**work, **columns.get("work", {})}})


def facts(**numbers: Any) -> Facts:
    return Facts(
        {f"h{n}": None for n in range(4)}, numbers=Numbers(**{"hosts": 1, "new": 1, "expected": 1, **numbers})
    )


def later(minutes: float = 31) -> datetime:
    return NOW + timedelta(minutes=minutes)


def run(
    row: Any, found: Facts, gates: list[Gate] = GATES, at: datetime | None = None, **readings: Reading
) -> Any:
    return moves.running(row, found, gates, readings or None, at or later())


def test_every_state_is_known_and_those_that_are_over_stay() -> None:
    """Nothing leads out of done, back and cancelled; every verb is somewhere allowed."""
    assert set(MEANING) == set(State)
    over = set(State) - set(ACTIVE)
    assert not any(state in over for state, _ in TRANSITIONS)
    assert {verb for state in State for verb in allowed(state)} == set(VERBS)
    assert set(TRANSITIONS.values()) == set(State)
    assert all((state, Event.CANCEL) in TRANSITIONS for state in ACTIVE)


def test_the_first_move_takes_the_first_hosts_in() -> None:
    """With its threshold, its window and an event that counts them."""
    move = run(rollout(step=-1, threshold=""), facts(), at=NOW)
    assert move.name == "step" and move.columns["step"] == 0 and move.columns["due_at"] == later(30)
    assert move.events[0]["data"]["hosts"] == 1 and move.release


def test_within_the_window_it_waits_however_well_it_goes() -> None:
    """But a gate that has failed for good goes back at once."""
    assert run(rollout(), facts(active=1), at=later(5)) is None
    back = run(rollout(), facts(failed=1), at=later(5))
    assert (
        back.name == "going-back"
        and back.columns["threshold"] == ""
        and back.columns["report"]["numbers"]["failed"] == 1
    )


def test_after_the_window_it_goes_on_or_says_why_not() -> None:
    """The next step; done at the last one; paused when nothing was built; patience for builds under way."""
    assert run(rollout(), facts(active=1)).columns["step"] == 1
    done = run(rollout(step=1), facts(active=1))
    assert done.name == "done" and done.points and done.columns["active_place"] is None
    paused = run(rollout(), facts())
    assert paused.columns["state"] == "paused" and "too few builds: 0 of 1" in paused.columns["why"]
    assert run(rollout(), facts(under_way=1)) is None
    assert run(rollout(min_builds=0), facts()).columns["step"] == 1


def test_rebuilds_are_asked_n_at_a_time_and_waited_for() -> None:
    """Also after the window; those under way count."""
    row = rollout(rebuild=2)
    found = Facts({}, numbers=Numbers(new=3, expected=3), askable=["a", "b", "c"], busy=0)
    assert list(run(row, found, at=later(1)).asks) == ["a", "b"]
    one_busy = Facts({}, numbers=Numbers(new=3, expected=3, under_way=1), askable=["c"], busy=1)
    assert list(run(row, one_busy).asks) == ["c"]
    full = Facts({}, numbers=Numbers(new=3, expected=3, under_way=2), askable=["c"], busy=2)
    assert run(row, full) is None
    last = Facts({}, numbers=Numbers(new=3, expected=3, active=2, under_way=1), busy=1)
    assert run(row, last) is None


def test_an_approval_stops_it_until_somebody_approves() -> None:
    """Every step anew; an approval also passes what is undecided, but nothing that failed."""
    gates = [*GATES, parse("approval")]
    assert run(rollout(), facts(active=1), gates).columns["state"] == "waiting"
    assert run(rollout(work={"approved": 0}), facts(active=1), gates).columns["step"] == 1
    assert run(rollout(step=1, work={"approved": 0}), facts(active=1), gates).columns["state"] == "waiting"
    assert run(rollout(work={"approved": 0}), facts(), gates).columns["step"] == 1
    assert run(rollout(work={"approved": 0}), facts(failed=1), gates).name == "going-back"


def test_metrics_are_asked_when_all_else_is_settled_and_three_times() -> None:
    """Then it pauses and says which server."""
    gates = [parse("metric:prometheus up >= 1")]
    broken = Reading(problem="it cannot be reached: ClientConnectorError")
    assert run(rollout(), facts(), gates) == "metrics"
    first = moves.running(rollout(), facts(active=1), gates, {gates[0].text: broken}, later())
    assert (
        isinstance(first, moves.Move) and first.name == "metric-retry" and first.columns["work"]["tries"] == 1
    )
    third = moves.running(
        rollout(work={"tries": 2}), facts(active=1), gates, {gates[0].text: broken}, later()
    )
    assert (
        isinstance(third, moves.Move)
        and third.columns["state"] == "paused"
        and "prometheus: it cannot" in third.columns["why"]
    )
    well = moves.running(rollout(), facts(active=1), gates, {gates[0].text: Reading((1.0,))}, later())
    assert isinstance(well, moves.Move) and well.name == "step"


def test_going_back_rebuilds_only_if_told_to() -> None:
    """N at a time, and is over when they are."""
    row = rollout(state="going-back")
    assert moves.going_back(row, Facts({}), NOW).columns["state"] == "back"  # type: ignore[union-attr]
    row = rollout(state="going-back", rebuild_back=True, rebuild=1)
    move = moves.going_back(row, Facts({}, askable=["a", "b"]), NOW)
    assert move is not None and list(move.asks) == ["a"] and move.purpose == "back"
    assert moves.going_back(row, Facts({}, askable=["b"], busy=1), NOW) is None


@pytest.mark.parametrize("state", [s for s in State if s not in ACTIVE])
def test_what_is_over_has_no_verbs(state: State) -> None:
    """Nothing can be asked of it."""
    assert allowed(state) == []
