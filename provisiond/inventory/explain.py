"""Where a host's parameters and descriptions come from: every place that says something, the weakest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.parameters import GLOBAL
from provisiond.inventory.resolve import PARAMETERS, ResolvedHost, group_paths
from provisiond.inventory.tables import Setting, table

DESCRIPTIONS = ("storage", "network")
_setting = table(Setting)


@dataclass(frozen=True)
class Place:
    """A place such as ``group web``, and what it says: merged into what the places before it say, or in its stead."""

    name: str
    value: Any


async def places_of_parameter(session: AsyncSession, host: ResolvedHost, name: str) -> list[Place]:
    """The places that set the parameter; ``name`` may reach into tables with dots (``limits.building``)."""
    path = name.split(".")
    return [
        Place(place, value)
        for place, parameters in await _parameters(session, host)
        for there, value in [_reach(parameters, path)]
        if there
    ]


async def places_of_description(session: AsyncSession, host: ResolvedHost, name: str) -> list[Place]:
    """The places that describe ``storage`` or ``network``; the last one counts, nothing is merged."""
    groups = (await group_paths(session, [host.row.group_id])).get(host.row.group_id or "", ())
    said = [(f"group {group.name}", getattr(group, name)) for group in groups]
    said.append((f"host {host.name}", getattr(host.row, name)))
    return [Place(place, value) for place, value in said if value is not None]


def reach(parameters: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether there is a parameter of this (dotted) name, and its value."""
    return _reach(parameters, name.split("."))


async def _parameters(session: AsyncSession, host: ResolvedHost) -> list[tuple[str, Mapping[str, Any]]]:
    found = select(_setting.c.value).where(_setting.c.name == PARAMETERS)
    places: list[tuple[str, Mapping[str, Any]]] = [(GLOBAL, (await session.execute(found)).scalar() or {})]
    for noun, thing in (
        ("domain", host.domain),
        ("subnet", host.subnet),
        ("operating system", host.operating_system),
    ):
        if thing is not None:
            places.append((f"{noun} {thing.name}", thing.parameters))
    groups = (await group_paths(session, [host.row.group_id])).get(host.row.group_id or "", ())
    places += [(f"group {group.name}", group.parameters) for group in groups]
    return [*places, (f"host {host.name}", host.row.parameters)]


def _reach(value: Any, path: list[str]) -> tuple[bool, Any]:
    for at in range(len(path), 0, -1):  # a name may itself hold dots
        key = ".".join(path[:at])
        if isinstance(value, Mapping) and key in value:
            return (True, value[key]) if at == len(path) else _reach(value[key], path[at:])
    return False, None
