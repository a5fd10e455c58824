"""The life of a host as data: which state follows which, on what, and how long each may take.

docs/lifecycle.md is generated from this module (``python -m provisiond.lifecycle.document``).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum


class State(StrEnum):
    DISCOVERED = "discovered"
    ENROLLED = "enrolled"
    INSPECTING = "inspecting"
    READY = "ready"
    BUILDING = "building"
    PROVISIONED = "provisioned"
    CONFIGURING = "configuring"
    ACTIVE = "active"
    RESCUE = "rescue"
    RELEASING = "releasing"
    RETIRED = "retired"


class Verb(StrEnum):
    """What an operator may ask of a host."""

    APPROVE = "approve"
    INSPECT = "inspect"
    BUILD = "build"
    REBUILD = "rebuild"
    CONFIGURE = "configure"
    RESCUE = "rescue"
    UNRESCUE = "unrescue"
    RELEASE = "release"
    RETIRE = "retire"
    CANCEL = "cancel"
    RETRY = "retry"


DONE = "done"
"""The event of a state whose steps are all complete."""

MEANING: Mapping[State, str] = {
    State.DISCOVERED: "an unknown machine that booted and waits for approval",
    State.ENROLLED: "known by name; its controller or hypervisor is being checked",
    State.INSPECTING: "its hardware is being looked at",
    State.READY: "checked and free to be built",
    State.BUILDING: "an operating system is being put on it",
    State.PROVISIONED: "built; its first boot is awaited",
    State.CONFIGURING: "in the hands of configuration management",
    State.ACTIVE: "in service",
    State.RESCUE: "started from the ramdisk, to be repaired by hand; its disks are left alone",
    State.RELEASING: "being taken out of service; what was made for it is removed, and its disks are erased",
    State.RETIRED: "gone for good; only its history stays",
}

_BUILDS = (State.BUILDING, State.PROVISIONED, State.CONFIGURING)

TRANSITIONS: Mapping[tuple[State, str], State] = {
    (State.DISCOVERED, Verb.APPROVE): State.ENROLLED,
    (State.ENROLLED, DONE): State.INSPECTING,
    (State.INSPECTING, DONE): State.READY,
    (State.READY, Verb.INSPECT): State.INSPECTING,
    (State.READY, Verb.BUILD): State.BUILDING,
    (State.BUILDING, DONE): State.PROVISIONED,
    (State.PROVISIONED, DONE): State.CONFIGURING,
    (State.CONFIGURING, DONE): State.ACTIVE,
    (State.ACTIVE, Verb.CONFIGURE): State.CONFIGURING,
    (State.ACTIVE, Verb.REBUILD): State.BUILDING,
    **{(state, Verb.REBUILD): State.BUILDING for state in _BUILDS},
    **{(state, Verb.CANCEL): State.RELEASING for state in _BUILDS},
    (State.ACTIVE, Verb.RESCUE): State.RESCUE,
    (State.RESCUE, DONE): State.ACTIVE,
    (State.RESCUE, Verb.REBUILD): State.BUILDING,
    (State.RESCUE, Verb.RELEASE): State.RELEASING,
    (State.ACTIVE, Verb.RELEASE): State.RELEASING,
    (State.READY, Verb.RELEASE): State.RELEASING,
    (State.RELEASING, Verb.RELEASE): State.RELEASING,
    (State.RELEASING, DONE): State.READY,
    **{(state, Verb.RETIRE): State.RETIRED for state in State if state is not State.RETIRED},
}

LEAVING: Mapping[tuple[State, Verb], str] = {
    (State.RESCUE, Verb.UNRESCUE): "leave",
    (State.INSPECTING, Verb.CANCEL): "back",
}
"""Verbs that end a state by a step of its own: at once to that step, and past it as after any last step."""

RESTING = frozenset({State.DISCOVERED, State.READY, State.ACTIVE})
"""States in which nothing is done until somebody asks. A retired host rests when its clean-up is done."""

WANTED_LATER: Mapping[State, frozenset[Verb]] = {
    State.ENROLLED: frozenset({Verb.BUILD}),
    State.INSPECTING: frozenset({Verb.BUILD}),
    State.RELEASING: frozenset({Verb.BUILD}),
}
"""Verbs that are remembered in Host.wanted and followed as soon as the host is ready."""

LIMITS: Mapping[State, timedelta] = {
    State.ENROLLED: timedelta(minutes=10),
    State.INSPECTING: timedelta(
        hours=24
    ),  # tests of memory and disks take their time; a silent ramdisk fails before
    State.BUILDING: timedelta(minutes=90),
    State.PROVISIONED: timedelta(minutes=30),
    State.CONFIGURING: timedelta(minutes=90),
    State.RELEASING: timedelta(hours=48),  # as long as every byte of a large rotating disk takes
    State.RETIRED: timedelta(minutes=20),
}
"""Time limit of each state; a host's parameter ``limits.<state>`` (minutes) overrides it. Past it the step fails for good.

Rescue has none: it is as long as its operator wants, and a machine that does not come up fails by itself."""


def allowed(state: State) -> list[str]:
    """The verbs that make sense in ``state``, in alphabetical order."""
    verbs = {verb for (here, verb) in TRANSITIONS if here == state and verb != DONE}
    verbs |= {verb for (here, verb) in LEAVING if here == state}
    return sorted(verbs | WANTED_LATER.get(state, frozenset()))


def limit_of(state: State, parameters: Mapping[str, object]) -> timedelta | None:
    """The time limit of ``state`` for a host with these merged parameters; None where a host may rest for ever."""
    own = parameters.get("limits")
    minutes = own.get(str(state)) if isinstance(own, Mapping) else None
    if isinstance(minutes, int | float) and minutes > 0:
        return timedelta(minutes=float(minutes))
    return LIMITS.get(state)
