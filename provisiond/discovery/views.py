"""Hardware as it is shown: what hosts are made of, how that came to be, which machines wait, and which of them a rule would take."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery import changes, profiles
from provisiond.discovery.context import subnet_of, values_of
from provisiond.discovery.expressions import Expression, NamePattern
from provisiond.discovery.names import free_name
from provisiond.discovery.rules import first_that_holds, known_rules, known_subnets
from provisiond.errors import Conflict, NotFound
from provisiond.inventory.facts import Facts
from provisiond.inventory.hardware_tables import AgentSession, DiscoveryRule, Hardware, HardwareProfile
from provisiond.inventory.host_checks import nearest
from provisiond.inventory.resolve import group_paths
from provisiond.inventory.shapes import HardwareSummary, View
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, table

_host, _hardware, _session, _profile, _rule = (
    table(t) for t in (Host, Hardware, AgentSession, HardwareProfile, DiscoveryRule)
)
_BY_NAME = select(_host.c.id, _host.c.name, _host.c.group_id, _host.c.profile_id).where(
    (_host.c.name == bindparam("b_name")) | (_host.c.id == bindparam("b_name"))
)
_PROFILE = select(_profile.c.name, _profile.c.expected).where(_profile.c.id == bindparam("b_id"))
_latest = select(func.max(_hardware.c.id).label("id")).group_by(_hardware.c.host_id).subquery()
_WITH_FACTS = (
    select(_host, _hardware.c.facts, _hardware.c.at.label("hardware_at"), _hardware.c.seen_at)
    .select_from(_host.join(_hardware, _hardware.c.host_id == _host.c.id).join(_latest, _latest.c.id == _hardware.c.id))
    .order_by(_host.c.created_at, _host.c.name)
)  # fmt: skip
_BOOTED = (
    select(_session.c.host_id, _session.c.mac, _session.c.address, _session.c.seen_at, _session.c.ended_at)
    .where(_session.c.host_id.isnot(None))
    .order_by(_session.c.claimed_at)
)


class HardwareView(View):
    """All that a machine said of itself last. ``at`` is when it last changed, ``seen_at`` when it last said so."""

    host: str
    at: datetime
    seen_at: datetime
    profile: str | None
    differs: list[str]
    facts: dict[str, Any]


class SnapshotView(View):
    """What a machine was made of from ``at`` until ``seen_at`` at least; ``changes`` against the snapshot before."""

    at: datetime
    seen_at: datetime
    changes: list[dict[str, Any]]
    text: list[str]
    facts: dict[str, Any]


class WaitingMachine(View):
    """A machine that waits for approval. ``rule`` is the rule that would take it now."""

    name: str
    since: datetime
    seen_at: datetime | None
    vendor: str | None
    model: str | None
    serial: str | None
    cpu: str | None
    cores: int | None
    memory_mib: int | None
    disks: list[str]
    nics: int
    switch_port: str | None
    address: str | None
    subnet: str | None
    mac: str | None
    rule: str | None


class Taken(View):
    """What a rule says of one machine: whether it ``holds``, ``why`` not, the name it would get, and the rule that wins now."""

    host: str
    state: str
    holds: bool
    why: str
    name: str | None
    winner: str | None


@dataclass(frozen=True)
class Machine:
    """A host with facts: its row (with facts), what expressions see of it, and where it booted last (a session, or None)."""

    row: Any
    values: Mapping[str, Any]
    booted: Any
    subnet: Any


async def machines(session: AsyncSession, store: Store, *, waiting: bool) -> list[Machine]:
    """Every host that has told its facts, or only those that wait for approval, the oldest first."""
    statement = _WITH_FACTS.where(_host.c.state == "discovered") if waiting else _WITH_FACTS
    rows = (await session.execute(statement)).all()
    booted = {row.host_id: row for row in await session.execute(_BOOTED)}
    subnets = await known_subnets(session, store.known)
    found = []
    for row in rows:
        last = booted.get(row.id)
        subnet = subnet_of(last.address, subnets) if last else None
        values = values_of(
            Facts.model_validate(row.facts), mac=last.mac if last else "", address=last.address if last else "",
            subnet=subnet.name if subnet else None,
        )  # fmt: skip
        found.append(Machine(row, values, last, subnet))
    return found


async def list_waiting(store: Store) -> list[WaitingMachine]:
    """The machines that wait for approval, with what they are; those that have not told their facts yet last."""
    async with store.read() as session:
        rules = await known_rules(session, store.known)
        found = await machines(session, store, waiting=True)
        every = await session.execute(select(_host).where(_host.c.state == "discovered"))
        silent = {row.id: row for row in every} | {m.row.id: None for m in found}
    shown = [
        WaitingMachine(
            name=m.row.name,
            since=m.row.created_at,
            seen_at=m.booted.seen_at if m.booted else m.row.seen_at,
            address=m.values["address"],
            subnet=m.values["subnet"],
            mac=m.values["mac"],
            rule=winner.name if (winner := first_that_holds(rules, m.values)) else None,
            **{
                name: value
                for name, value in profiles.summary(m.row.facts).items()
                if name in WaitingMachine.model_fields
            },
        )
        for m in found
    ]
    empty = dict.fromkeys(WaitingMachine.model_fields) | {"disks": [], "nics": 0}
    return shown + [
        WaitingMachine(**{**empty, "name": row.name, "since": row.created_at})
        for row in silent.values()
        if row is not None
    ]


async def try_rule(
    store: Store, *, rule: str | None = None, expression: str = "", name_pattern: str = "", everywhere: bool = False
) -> list[Taken]:  # fmt: skip
    """Which machines an existing ``rule``, or an ``expression``, would take; nothing changes. Raises NotFound.

    ``everywhere`` asks of all hosts that ever told their facts, not only of those that wait.
    """
    async with store.read() as session:
        taken = 0
        if rule is not None:
            row = (await session.execute(select(_rule).where(_rule.c.name == rule))).first()
            if row is None:
                raise NotFound("discovery rule", rule)
            expression, name_pattern, taken = row.expression, row.name_pattern, row.taken
        asked, pattern = Expression(expression), NamePattern(name_pattern) if name_pattern else None
        found = await machines(session, store, waiting=not everywhere)
        rules = await known_rules(session, store.known)
        verdicts = await asyncio.to_thread(
            lambda: [(asked.holds(m.values), first_that_holds(rules, m.values)) for m in found]
        )
        shown: list[Taken] = []
        given: set[str] = set()
        for machine, ((holds, why), winner) in zip(found, verdicts, strict=True):
            name = None
            if holds and pattern is not None:
                name, problem = await free_name(
                    session, pattern, machine.values, taken=taken, own=machine.row.id, also=frozenset(given)
                )
                why = problem and f"its name stays: {problem}"
                given.add(name)
                taken += 1
            shown.append(
                Taken(
                    host=machine.row.name,
                    state=machine.row.state,
                    holds=holds,
                    why=why,
                    name=(name or machine.row.name) if holds else None,
                    winner=winner.name if winner else None,
                )
            )
        return shown


async def hardware_of(store: Store, name: str) -> HardwareView:
    """What a host is made of. Raises NotFound, and Conflict where its machine has never told."""
    async with store.read() as session:
        host = await _host_row(session, name)
        newest = (await session.execute(changes.NEWEST, {"b_host": host.id})).first()
        if newest is None:
            raise Conflict(
                f"host {host.name} has never told what it is made of: 'provisionctl host inspect {host.name}' has it looked at"
            )
        profile, differs = await _compared(session, host, newest.facts)
    return HardwareView(
        host=host.name,
        at=newest.at,
        seen_at=newest.seen_at,
        profile=profile,
        differs=differs,
        facts=newest.facts,
    )


async def summary_of(store: Store, name: str) -> HardwareSummary | None:
    """The same in a few words; None where its machine has never told."""
    try:
        shown = await hardware_of(store, name)
    except (NotFound, Conflict):
        return None
    return HardwareSummary(
        at=shown.at,
        seen_at=shown.seen_at,
        profile=shown.profile,
        differs=shown.differs,
        **profiles.summary(shown.facts),
    )


async def past_of(store: Store, name: str) -> list[SnapshotView]:
    """What a host was made of, the newest first."""
    async with store.read() as session:
        host = await _host_row(session, name)
        found = select(_hardware).where(_hardware.c.host_id == host.id).order_by(_hardware.c.id)
        rows = (await session.execute(found)).all()
    shown = []
    for place, row in enumerate(rows):
        different = changes.changes(rows[place - 1].facts, row.facts) if place else []
        shown.append(
            SnapshotView(
                at=row.at,
                seen_at=row.seen_at,
                facts=row.facts,
                changes=[change.data for change in different],
                text=[change.text for change in different],
            )
        )
    return shown[::-1]


# --- inner -----------------------------------------------------------------------------------------------


async def _host_row(session: AsyncSession, name: str) -> Any:
    rows = (await session.execute(_BY_NAME, {"b_name": name})).all()
    if not rows:
        raise NotFound("host", name)
    return next((row for row in rows if row.name == name), rows[0])


async def _compared(
    session: AsyncSession, host: Any, facts: Mapping[str, Any]
) -> tuple[str | None, list[str]]:
    profile_id = host.profile_id
    if profile_id is None and host.group_id is not None:
        path = (await group_paths(session, [host.group_id])).get(host.group_id, ())
        profile_id = nearest(path, "profile_id")
    if profile_id is None:
        return None, []
    profile = (await session.execute(_PROFILE, {"b_id": profile_id})).one()
    return profile.name, profiles.differences(profile.expected, facts)
