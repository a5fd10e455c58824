"""The path of a rollout as data: its states, what leads from one to the next, and which step comes after this one. Pure.

docs/templates/rollouts.md shows the same as a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum


class State(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    GOING_BACK = "going-back"
    DONE = "done"
    BACK = "back"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What moves a rollout: an operator's verb, or what the controller has found."""

    PAUSE = "pause"
    RESUME = "resume"
    APPROVE = "approve"
    BACK = "back"
    CANCEL = "cancel"
    UNDECIDED = "undecided"  # the window is over and some gate cannot be judged
    ASKING = "asking"  # every other gate has passed and an approval is wanted
    FAILED = "failed"  # a gate failed
    PASSED = "passed"  # every gate of the last step has passed
    SETTLED = "settled"  # everything that going back had to do is done
    GROUP_GONE = "group-gone"


VERBS = (Event.PAUSE, Event.RESUME, Event.APPROVE, Event.BACK, Event.CANCEL)
"""What an operator may ask."""

MEANING: Mapping[State, str] = {
    State.RUNNING: "the hosts of the step get the release; its gates are being watched",
    State.WAITING: "every other gate of the step has passed; somebody is to approve",
    State.PAUSED: "nothing moves until somebody says resume, approve, back or cancel",
    State.GOING_BACK: "the hosts have what was current before; the rebuilds that were asked for are under way",
    State.DONE: "every gate of the last step passed: the release is current",
    State.BACK: "it went back; its report says why",
    State.CANCELLED: "called off; the hosts have what was current before",
}

ACTIVE = (State.RUNNING, State.WAITING, State.PAUSED, State.GOING_BACK)
"""Not over: at most one of them at a place."""

_TAKING = (State.RUNNING, State.WAITING, State.PAUSED)

TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.WAITING, Event.PAUSE): State.PAUSED,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.WAITING, Event.APPROVE): State.RUNNING,
    (State.PAUSED, Event.APPROVE): State.RUNNING,
    (State.RUNNING, Event.UNDECIDED): State.PAUSED,
    (State.RUNNING, Event.ASKING): State.WAITING,
    (State.RUNNING, Event.PASSED): State.DONE,
    (State.RUNNING, Event.FAILED): State.GOING_BACK,
    (State.WAITING, Event.FAILED): State.GOING_BACK,
    **{(state, Event.BACK): State.GOING_BACK for state in _TAKING},
    (State.GOING_BACK, Event.SETTLED): State.BACK,
    **{(state, Event.CANCEL): State.CANCELLED for state in ACTIVE},
    **{(state, Event.GROUP_GONE): State.CANCELLED for state in ACTIVE},
}


def allowed(state: State) -> list[str]:
    """The verbs that make sense in ``state``."""
    return [str(verb) for verb in VERBS if (state, verb) in TRANSITIONS]


def is_last(step: int, steps: Sequence[str]) -> bool:
    """Whether ``step`` (an index, -1 before the first) is the last of them."""
    return step >= len(steps) - 1


def step_name(step: int, steps: Sequence[str]) -> str:
    """For people: ``5% (2 of 4)``."""
    return (
        f"{steps[step]} ({step + 1} of {len(steps)})" if 0 <= step < len(steps) else "before the first step"
    )
