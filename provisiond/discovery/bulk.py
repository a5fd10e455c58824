"""Many reports in one transaction: the plain ones by a handful of statements for all of them, the others one after another.

Plain is a machine that nobody knows and no rule takes, and one that is known and says what it said before. Those are nearly all, when
a rack is powered on and when it is powered on again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery import changes, identity
from provisiond.discovery.report import Report
from provisiond.discovery.rules import first_that_holds, known_rules, known_subnets
from provisiond.inventory import history
from provisiond.inventory.hardware_tables import AgentSession, Hardware
from provisiond.inventory.tables import Host, Interface, table, utcnow

_host, _interface, _hardware, _session = (table(t) for t in (Host, Interface, Hardware, AgentSession))
_ADD_HOST, _ADD_CARD, _ADD_HARDWARE = insert(_host), insert(_interface), insert(_hardware)
_LOCK = (
    select(_host.c.id, _host.c.name, _host.c.state, _host.c.serial, _host.c.machine_uuid)
    .where(_host.c.id.in_(bindparam("b_ids", expanding=True)))
    .order_by(_host.c.id)
    .with_for_update()
)
_latest = (
    select(func.max(_hardware.c.id))
    .where(_hardware.c.host_id.in_(bindparam("b_ids", expanding=True)))
    .group_by(_hardware.c.host_id)
)
_NEWEST = select(_hardware).where(_hardware.c.id.in_(_latest.scalar_subquery()))
_SEEN = update(_hardware).where(_hardware.c.id == bindparam("b_id"))
_SET_SESSION = update(_session).where(_session.c.id == bindparam("b_id"))

Answer = tuple[str, str]  # the host's name, or why it was refused


async def work(db: AsyncSession, reports: Sequence[Report]) -> list[Answer]:
    """Take all of them in; the answers are in their order."""
    rules = await known_rules(db, reports[0].world.store.known)
    await known_subnets(db, reports[0].world.store.known)
    found = await identity.find_all(db, [(r.machine, r.session.host_id) for r in reports])
    answers: dict[int, Answer] = {}
    fresh, same = [], []
    for place, (report, who) in enumerate(zip(reports, found, strict=True)):
        if who.others or not _only_one(place, reports):
            continue
        if who.host is None and report.cards and first_that_holds(rules, await report.values(db)) is None:
            fresh.append(place)
        elif (
            who.host is not None
            and who.own_macs.issuperset(report.machine.macs)
            and who.how in ("ticket", "mac")
        ):
            same.append(place)
    answers |= await _same(db, {place: (reports[place], found[place].host.id) for place in same}, rules)
    if fresh and await reports[0].room(db) >= len(fresh):
        answers |= await _fresh(db, {place: reports[place] for place in fresh})
    for place, report in enumerate(reports):
        if place not in answers:
            answers[place] = await report.work(db)
    return [answers[place] for place in range(len(reports))]


def _only_one(place: int, reports: Sequence[Report]) -> bool:
    """Whether no other report of these is of the same machine, or says that it were."""
    me = reports[place].machine
    return not any(
        other is not me
        and (
            not set(me.macs).isdisjoint(other.macs)
            or (me.serial is not None and me.serial == other.serial)
            or (me.uuid is not None and me.uuid == other.uuid)
        )
        for other in (report.machine for report in reports)
    )


async def _fresh(db: AsyncSession, reports: dict[int, Report]) -> dict[int, Answer]:
    """Machines that nobody knows, and no rule takes."""
    connection = await db.connection()
    hosts = {place: report.new_host() for place, report in reports.items()}
    await connection.execute(_ADD_HOST, list(hosts.values()))
    cards = [card for place, report in reports.items() for card in report.new_cards(hosts[place]["id"])]
    await connection.execute(_ADD_CARD, cards)
    now = utcnow()
    snapshots = [changes.row_of(hosts[place]["id"], now, report.shown) for place, report in reports.items()]
    await connection.execute(_ADD_HARDWARE, snapshots)
    await _belong(db, [(report.session.id, hosts[place]["id"]) for place, report in reports.items()])
    await history.add_many(db, [report.discovered(hosts[place]) for place, report in reports.items()])
    return {place: (str(row["name"]), "") for place, row in hosts.items()}


async def _same(
    db: AsyncSession, reports: dict[int, tuple[Report, str]], rules: Sequence[Any]
) -> dict[int, Answer]:
    """Machines that are known, of which nothing has changed."""
    if not reports:
        return {}
    connection = await db.connection()
    ids = {"b_ids": sorted(host_id for _, host_id in reports.values())}
    hosts = {row.id: row for row in await connection.execute(_LOCK, ids)}
    newest = {row.host_id: row for row in await connection.execute(_NEWEST, ids)}
    answers: dict[int, Answer] = {}
    seen: list[dict[str, Any]] = []
    now = utcnow()
    for place, (report, host_id) in reports.items():
        host, before = hosts.get(host_id), newest.get(host_id)
        if host is None or before is None:
            continue
        facts = changes.not_forgotten(report.shown, before.facts)
        known = (report.machine.serial in (None, host.serial)) and report.machine.uuid in (
            None,
            host.machine_uuid,
        )
        if not known or changes.digest_of(facts) != before.digest:
            continue
        if host.state == "discovered" and first_that_holds(rules, await report.values(db)) is not None:
            continue
        seen.append({"b_id": before.id, "seen_at": now, "facts": facts})
        answers[place] = (str(host.name), "")
    if seen:
        await connection.execute(_SEEN, seen)
        await _belong(
            db, [(report.session.id, host_id) for p, (report, host_id) in reports.items() if p in answers]
        )
    return answers


async def _belong(db: AsyncSession, pairs: Sequence[tuple[str, str]]) -> None:
    now = utcnow()
    values = [{"b_id": s, "host_id": host_id, "facts_at": now, "seen_at": now} for s, host_id in pairs]
    await (await db.connection()).execute(_SET_SESSION, values)
