"""The table of states: nothing unreachable, nothing without a way on, texts for people."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisiond.lifecycle.path import PATH
from provisiond.lifecycle.table import (
    DONE,
    LEAVING,
    LIMITS,
    MEANING,
    RESTING,
    TRANSITIONS,
    WANTED_LATER,
    State,
    Verb,
    allowed,
    limit_of,
)


def test_every_state_is_reachable() -> None:
    """From the two states that hosts are made in, every other can be reached."""
    reached = {State.DISCOVERED, State.ENROLLED}
    while more := {there for (here, _), there in TRANSITIONS.items() if here in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_every_verb_is_of_use_somewhere() -> None:
    """Retry belongs to any failed host; each other verb is in the table."""
    used = {verb for _, verb in (*TRANSITIONS, *LEAVING)} | {Verb.RETRY}
    assert used == set(Verb) | {DONE}


def test_nothing_leads_out_of_retired() -> None:
    """Retired is the end."""
    assert not [verb for here, verb in TRANSITIONS if here is State.RETIRED]
    assert allowed(State.RETIRED) == []


def test_retire_is_possible_everywhere_else() -> None:
    """Whatever a host is doing, it can be taken away."""
    assert all(TRANSITIONS[state, Verb.RETIRE] is State.RETIRED for state in set(State) - {State.RETIRED})


def test_a_state_at_work_ends_and_one_at_rest_does_not() -> None:
    """A state that works leads on by itself; one at rest waits for a verb. Retired works once and stays."""
    on = {here for here, verb in TRANSITIONS if verb == DONE}
    assert on == set(State) - RESTING - {State.RETIRED}


def test_every_state_at_work_has_a_limit_and_every_state_a_meaning() -> None:
    """A timeout always comes but in rescue, which its operator ends; and the page names every state."""
    assert set(LIMITS) == set(State) - RESTING - {State.RESCUE}
    assert set(MEANING) == set(PATH) == set(State)


def test_a_verb_that_ends_a_state_leads_to_its_last_steps() -> None:
    """To a step that the state has, which no transition of the same verb hides, and past it onwards."""
    for (state, verb), step in LEAVING.items():
        assert (state, verb) not in TRANSITIONS and (state, DONE) in TRANSITIONS
        assert step == PATH[state][-1].name


def test_what_is_wanted_later_can_be_done_later() -> None:
    """A remembered verb is one that ready knows, and not one the state knows itself."""
    for state, verbs in WANTED_LATER.items():
        assert all((State.READY, verb) in TRANSITIONS and (state, verb) not in TRANSITIONS for verb in verbs)


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        (State.DISCOVERED, ["approve", "retire"]),
        (State.ENROLLED, ["build", "retire"]),
        (State.READY, ["build", "inspect", "release", "retire"]),
        (State.INSPECTING, ["build", "cancel", "retire"]),
        (State.BUILDING, ["cancel", "rebuild", "retire"]),
        (State.RESCUE, ["rebuild", "release", "retire", "unrescue"]),
        (State.RELEASING, ["build", "release", "retire"]),
    ],
)
def test_what_is_allowed(state: State, verbs: list[str]) -> None:
    """As messages and `provisionctl host show` name it: in order, remembered verbs too, without the end of steps."""
    assert allowed(state) == verbs


def test_limits() -> None:
    """A host's own limit in minutes wins; what is no positive number is passed over; rest has none."""
    assert limit_of(State.BUILDING, {}) == timedelta(minutes=90)
    assert limit_of(State.BUILDING, {"limits": {"building": 2.5}}) == timedelta(minutes=2.5)
    assert limit_of(State.BUILDING, {"limits": {"releasing": 1}}) == timedelta(minutes=90)
    for wrong in ({"building": -1}, {"building": "long"}, {"building": 0}, "short", None, [1]):
        assert limit_of(State.BUILDING, {"limits": wrong}) == timedelta(minutes=90)
    assert limit_of(State.READY, {}) is None
