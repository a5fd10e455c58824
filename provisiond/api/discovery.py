"""Machines that wait, rules about them, hardware profiles, and what hosts are made of."""

from __future__ import annotations

from typing import Any

from provisiond.api.catalogue import noun_routes
from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.routing import Route
from provisiond.discovery import again, profiles, views
from provisiond.discovery.again import Applied
from provisiond.discovery.profiles import PROFILES
from provisiond.discovery.rules import RULES, ExpressionText, NamePatternText
from provisiond.discovery.views import HardwareView, SnapshotView, Taken, WaitingMachine
from provisiond.errors import FieldError, Invalid
from provisiond.inventory.fields import Name
from provisiond.inventory.shapes import Request, View


class RuleTest(Request):
    """Which machines a ``rule`` by its name, or an ``expression``, would take. ``everywhere``: of all hosts, not only of those that wait."""

    rule: Name | None = None
    expression: ExpressionText | None = None
    name_pattern: NamePatternText = ""
    everywhere: bool = False


class ExpectedView(View):
    """The ``expected`` of a profile for machines like the host's."""

    expected: dict[str, Any]


async def list_waiting(deps: ApiDeps) -> Page[WaitingMachine]:
    """The oldest first."""
    return Page(items=await views.list_waiting(deps.store))


async def test_rule(deps: ApiDeps, body: RuleTest) -> Page[Taken]:
    """Nothing changes: it is a dry run."""
    if (body.rule is None) == (body.expression is None):
        raise Invalid([FieldError("expression", "give either a rule's name or an expression")])
    found = await views.try_rule(
        deps.store,
        rule=body.rule,
        expression=body.expression or "",
        name_pattern=body.name_pattern,
        everywhere=body.everywhere,
    )
    return Page(items=found)


async def apply_rules(deps: ApiDeps) -> Page[Applied]:
    """About every machine that waits; those that were taken are in the answer."""
    return Page(items=await again.apply_rules(deps))


async def show_hardware(deps: ApiDeps, name: str) -> HardwareView:
    """As its machine said last, and where it differs from its profile."""
    return await views.hardware_of(deps.store, name)


async def list_hardware_history(deps: ApiDeps, name: str) -> Page[SnapshotView]:
    """A snapshot for each change, the newest first."""
    return Page(items=await views.past_of(deps.store, name))


async def show_expected(deps: ApiDeps, name: str) -> ExpectedView:
    """For a profile of machines like this one: what this one is made of."""
    shown = await views.hardware_of(deps.store, name)
    return ExpectedView(expected=profiles.of_machine(shown.facts))


ROUTES: list[Route] = [
    Route("GET", "/discovery", list_waiting, "viewer", "List the machines that wait for approval"),
    Route("POST", "/discovery/test", test_rule, "viewer", "Try a discovery rule"),
    Route("POST", "/discovery/apply", apply_rules, "operator", "Ask the rules about the machines that wait"),
    *noun_routes(RULES),
    *noun_routes(PROFILES),
    Route("GET", "/hosts/{name}/hardware", show_hardware, "viewer", "What a host is made of"),
    Route(
        "GET",
        "/hosts/{name}/hardware/history",
        list_hardware_history,
        "viewer",
        "What a host was made of",
    ),
    Route(
        "GET",
        "/hosts/{name}/hardware/expected",
        show_expected,
        "viewer",
        "A host's hardware as a profile expects it",
    ),
]
