"""Which steps each state takes, in their order. Follow a host through the tree from here."""

from __future__ import annotations

from collections.abc import Mapping

from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle.outcome import Step
from provisiond.lifecycle.states import (
    building,
    configuring,
    enrolled,
    inspecting,
    provisioned,
    releasing,
    rescue,
    resting,
)
from provisiond.lifecycle.table import State

PATH: Mapping[State, tuple[Step, ...]] = {
    State.DISCOVERED: (),
    State.ENROLLED: enrolled.STEPS,
    State.INSPECTING: inspecting.STEPS,
    State.READY: resting.STEPS,
    State.BUILDING: building.STEPS,
    State.PROVISIONED: provisioned.STEPS,
    State.CONFIGURING: configuring.STEPS,
    State.ACTIVE: resting.STEPS,
    State.RESCUE: rescue.STEPS,
    State.RELEASING: releasing.STEPS,
    State.RETIRED: releasing.RETIRE_STEPS,
}


def steps_of(host: ResolvedHost, state: State) -> list[Step]:
    """The steps of ``state`` that this host takes."""
    return [step for step in PATH[state] if step.applies(host)]


def next_step(host: ResolvedHost, state: State, after: str) -> Step | None:
    """The step that follows ``after`` ('' for the first); None when the state is through."""
    every = PATH[state]
    names = [step.name for step in every]
    begin = names.index(after) + 1 if after in names else 0
    return next((step for step in every[begin:] if step.applies(host)), None)


def find_step(host: ResolvedHost, state: State, name: str) -> Step | None:
    """The step the host stands at; an unknown or empty name (a renamed step, a fresh state) means the first."""
    for step in PATH[state]:
        if step.name == name:
            return step
    return next_step(host, state, "")


def retry_step(state: State, name: str) -> str:
    """The step that an operator's retry begins at."""
    for step in PATH[state]:
        if step.name == name:
            return step.retry_from or name
    return name
