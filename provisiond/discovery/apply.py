"""What a rule does to the machine it takes: its settings, its name, its address, its controller's user, and the verbs that follow."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery.names import free_name
from provisiond.discovery.rules import pattern_of
from provisiond.errors import Conflict, PoolExhausted
from provisiond.inventory import history
from provisiond.inventory.cards import Card, load_pools, settle_cards
from provisiond.inventory.facts import Facts
from provisiond.inventory.hardware_tables import DiscoveryRule
from provisiond.inventory.host_checks import nearest, usual_method
from provisiond.inventory.resolve import group_paths
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Bmc, Event, Interface, table
from provisiond.lifecycle import intents, rows, tasks
from provisiond.lifecycle.table import Verb

PASSWORD_BYTES = 12  # 16 characters in base64: IPMI 2.0 takes 20 bytes, some controllers only 16
_rule, _interface, _bmc, _event = (table(t) for t in (DiscoveryRule, Interface, Bmc, Event))
_LOCK_RULE = select(_rule.c.taken).where(_rule.c.id == bindparam("b_id")).with_for_update()
_TAKEN = update(_rule).where(_rule.c.id == bindparam("b_id")).values(taken=_rule.c.taken + 1)
_PRIMARY = select(_interface).where(
    _interface.c.host_id == bindparam("b_host"), _interface.c.primary.is_(True)
)
_LAST_RULED = (
    select(_event.c.data)
    .where(_event.c.host_id == bindparam("b_host"), _event.c.kind == "discovery.ruled")
    .order_by(_event.c.id.desc())
    .limit(1)
)
_HAS_BMC = select(_bmc.c.id).where(_bmc.c.host_id == bindparam("b_host"))


class DiscoveryWorld(Protocol):
    """What this room needs of lifecycle.world.World."""

    store: Store
    box: SecretBox


@dataclass
class Ruled:
    """What a rule makes of a machine: ``columns`` of its host, and sentences about what could not be done."""

    rule: Any
    columns: dict[str, Any]
    notes: list[str] = field(default_factory=list)


async def ruled_already(db: AsyncSession, host_id: str, rule: Any) -> bool:
    """Whether this very rule, as it stands, was applied last: what an operator changed since is not undone."""
    last = (await (await db.connection()).execute(_LAST_RULED, {"b_host": host_id})).scalar()
    return (
        last is not None
        and last.get("rule") == rule.id
        and last.get("changed") == rule.updated_at.isoformat()
    )


async def settings_of(
    session: AsyncSession, rule: Any, values: Mapping[str, Any], *, host_id: str, parameters: Mapping[str, Any]
) -> Ruled:  # fmt: skip
    """The columns of the host; its name is one that nobody has at this moment. Counts the machine as taken."""
    ruled = Ruled(rule, {})
    connection = await session.connection()
    pattern = pattern_of(rule)
    taken = rule.taken
    if pattern is not None and pattern.counts:  # one machine at a time counts on
        taken = (await connection.execute(_LOCK_RULE, {"b_id": rule.id})).scalar() or 0
    if pattern is not None:
        name, why = await free_name(session, pattern, values, taken=taken, own=host_id)
        if name:
            ruled.columns["name"] = name
        else:
            ruled.notes.append(f"its name stays, as the pattern {rule.name_pattern!r} makes none: {why}")
    await connection.execute(_TAKEN, {"b_id": rule.id})
    if rule.group_id is not None:
        ruled.columns["group_id"] = rule.group_id
        path = (await group_paths(session, [rule.group_id])).get(rule.group_id, ())
        ruled.columns["method"] = usual_method(None, None, path)
    for column in ("storage", "network", "profile_id"):
        if getattr(rule, column) is not None:
            ruled.columns[column] = getattr(rule, column)
    if rule.parameters:
        ruled.columns["parameters"] = {**parameters, **rule.parameters}
    return ruled


async def follow(
    session: AsyncSession, world: DiscoveryWorld, host_id: str, ruled: Ruled, facts: Facts, *, seen_subnet: str | None
) -> None:  # fmt: skip
    """What comes after the columns are written: the event, and with ``approve`` an address, the controller's user and the verbs.

    ``seen_subnet`` is the id of the subnet the machine asked from, which counts where its group has none.
    """
    rule = ruled.rule
    host = await rows.lock_host(session, host_id)
    actor = f"rule {rule.name}"[:128]
    approves = rule.approve
    if approves and (why := await _take_address(session, host, seen_subnet)):
        ruled.notes.append(f"it waits on: {why}")
        approves = False
    await history.add(
        session,
        host=host,
        kind="discovery.ruled",
        actor=actor,
        cause=rule.expression[:256],
        message="; ".join([f"rule {rule.name} takes it: {_done(rule, approves)}", *ruled.notes]),
        data={
            "rule": rule.id,
            "name": rule.name,
            "changed": rule.updated_at.isoformat(),
            "notes": ruled.notes,
        },
    )
    if rule.bmc_username:
        await _ask_for_controller(session, world, host, rule, facts, actor)
    if not approves:
        return
    try:
        await intents.ask(session, host_id, Verb.APPROVE, actor=actor, cause=f"rule {rule.name}")
        if rule.build:
            await intents.ask(session, host_id, Verb.BUILD, actor=actor, cause=f"rule {rule.name}")
    except Conflict as refused:  # it is in maintenance, or locked: an operator was there first
        await history.add(session, host=host, kind="discovery.waits", actor=actor, message=str(refused))


def _done(rule: Any, approves: bool) -> str:
    if not approves:
        return "it waits for approval"
    return "approved, and built when it is ready" if rule.build else "approved"


async def _take_address(session: AsyncSession, host: Any, seen_subnet: str | None) -> str:
    """Give the card it boots from an address of its group's subnet, else of the one it was seen in; '' or why that failed."""
    row = (await (await session.connection()).execute(_PRIMARY, {"b_host": host.id})).first()
    if row is None or row.ip is not None:
        return ""
    path = (await group_paths(session, [host.group_id])).get(host.group_id or "", ())
    subnet_id = row.subnet_id or nearest(path, "subnet_id") or seen_subnet
    if subnet_id is None:
        return ""
    card = Card("", host.id, row.mac, row.name, primary=True, row=row, subnet_id=subnet_id)
    if row.subnet_id == subnet_id:
        card.row = row._replace(subnet_id=None) if hasattr(row, "_replace") else row
    try:
        await settle_cards(session, [card], [], await load_pools(session, [card]))
    except PoolExhausted as full:
        return str(full)
    return ""


async def _ask_for_controller(
    session: AsyncSession, world: DiscoveryWorld, host: Any, rule: Any, facts: Facts, actor: str
) -> None:
    """Have the ramdisk make a user on the controller. The password is kept, encrypted, before anybody is told it."""
    if facts.bmc is None:
        message = "no user is made on its controller: the ramdisk found none"
        await history.add(session, host=host, kind="discovery.no_bmc", actor=actor, message=message)
        return
    if (await (await session.connection()).execute(_HAS_BMC, {"b_host": host.id})).first() is not None:
        return
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    secret = json.dumps({"bmc": {"username": rule.bmc_username, "password": password}})
    await tasks.open_in(
        session, host, "inspect", {"bmc": rule.bmc_username}, actor=actor, secret=world.box.encrypt(secret),
        cause=f"rule {rule.name}",
    )  # fmt: skip
