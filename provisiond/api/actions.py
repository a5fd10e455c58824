"""What can be asked of a host: the verbs of its life, power, lock and maintenance. Each call records the intent and returns."""

from __future__ import annotations

import asyncio
from datetime import datetime
from statistics import median
from typing import Literal

from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.errors import FieldError, Invalid
from provisiond.inventory import history
from provisiond.inventory.access import Principal
from provisiond.inventory.fields import Line
from provisiond.inventory.hosts import get_host
from provisiond.inventory.shapes import HostView, Request, View
from provisiond.lifecycle import intents, table
from provisiond.media.hardware_tests import choose_tests

_LOOK_BACK = 2000  # changes of state
_ONWARD = ("", table.DONE)  # the causes of a change that nobody asked for
VERBS = (*intents.Verb, "lock", "unlock", "maintenance")


class ActionBody(Request):
    """``cause`` goes into the history. ``reason`` is maintenance's: an empty one ends it.

    ``tests`` of inspect: names of hardware tests, or ["all"]. ``erase`` of release and cancel: auto, quick, full or none. ``keys`` of
    rescue: SSH public keys, beside those of the host's parameter ssh_authorized_keys. ``method`` of build and rebuild: image or
    installer.
    """

    cause: Line = ""
    reason: Line = ""
    tests: list[Line] | None = Field(None, max_length=100)
    erase: Line | None = None
    keys: list[str] | None = Field(None, max_length=1000)
    method: Line | None = None

    def asked(self) -> intents.Asked:
        """What was said beside the verb."""
        tests = tuple(self.tests) if self.tests is not None else None
        return intents.Asked(tests, self.erase, tuple(self.keys or ()), self.method)


class PowerBody(Request):
    action: Literal["on", "off", "cycle", "reset"]
    cause: Line = ""


class Transition(View):
    """``verb`` is what an operator asks, or ``done``: every step of ``state`` is complete."""

    state: str
    verb: str
    to: str


class LifecycleView(View):
    """The life of a host as data. ``limits``: minutes a host may be in a state."""

    states: dict[str, str]
    transitions: list[Transition]
    resting: list[str]
    limits: dict[str, float]


class DurationsView(View):
    """Seconds hosts lately spent in each state on their way on: the median of those that came through."""

    states: dict[str, float]


async def act_on_host(deps: ApiDeps, name: str, verb: str, body: ActionBody, who: Principal) -> HostView:
    """The intent is recorded when this is answered; follow the host's events to see it done."""
    if verb not in VERBS:
        raise Invalid([FieldError("verb", f"{verb!r} is no verb; there are: {', '.join(VERBS)}")])
    asked = body.asked()
    asked.check(verb)
    if asked.tests:
        await asyncio.to_thread(choose_tests, deps.settings, asked.tests)
    if verb in ("lock", "unlock"):
        await intents.set_lock(deps.store, name, verb == "lock", actor=who.actor)
    elif verb == "maintenance":
        await intents.set_maintenance(deps.store, name, body.reason, actor=who.actor)
    else:
        await intents.request(
            deps.store, name, intents.Verb(verb), actor=who.actor, cause=body.cause, asked=asked
        )
    return await get_host(deps.store, name)


async def power_host(deps: ApiDeps, name: str, body: PowerBody, who: Principal) -> HostView:
    """Asked, not yet done: ``power_wanted`` is empty again when the machine has been switched."""
    await intents.set_power(deps.store, name, body.action, actor=who.actor, cause=body.cause)
    return await get_host(deps.store, name)


async def show_lifecycle() -> LifecycleView:
    """The transition table the engine goes by."""
    return LifecycleView(
        states={str(state): text for state, text in table.MEANING.items()},
        transitions=[
            Transition(state=str(state), verb=str(verb), to=str(to))
            for (state, verb), to in (
                *table.TRANSITIONS.items(),
                *((leaving, table.TRANSITIONS[leaving[0], table.DONE]) for leaving in table.LEAVING),
            )
        ],
        resting=sorted(map(str, table.RESTING)),
        limits={str(state): limit.total_seconds() / 60 for state, limit in table.LIMITS.items()},
    )


async def show_durations(deps: ApiDeps) -> DurationsView:
    """For clients that show how much time is left. States nobody went through lately are missing."""
    events = await history.list_events(deps.store, None, 0, _LOOK_BACK, newest=True, kind="state.changed")
    entered: dict[str, tuple[str, datetime]] = {}
    spent: dict[str, list[float]] = {}
    for event in events:
        if event.host_id is None:
            continue
        before = entered.get(event.host_id)
        if before is not None and before[0] == event.data.get("from") and event.cause in _ONWARD:
            spent.setdefault(before[0], []).append((event.at - before[1]).total_seconds())
        entered[event.host_id] = (str(event.data.get("to", "")), event.at)
    return DurationsView(states={state: round(median(times), 3) for state, times in sorted(spent.items())})
