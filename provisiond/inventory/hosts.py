"""Hosts as the operators' door sees them: create many at once, look, list, change, delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, FieldError, Invalid, NotFound
from provisiond.inventory import history
from provisiond.inventory.cards import (
    Card,
    check_addresses,
    check_within,
    load_pools,
    settle_cards,
    update_cards,
)
from provisiond.inventory.host_checks import (
    NEEDED,
    PLAIN,
    REFERENCES,
    RESTING,
    Plan,
    check_bmc,
    check_macs,
    check_plans,
    check_taken,
    hypervisor_names,
    missing,
    references,
    refuse_at_work,
    way_out,
)
from provisiond.inventory.host_views import BY_IDS, BY_NAME, SUMMARY, summaries, views
from provisiond.inventory.references import find_names
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import BmcSpec, HostCreate, HostSummary, HostUpdate, HostView
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Bmc, Host, HostGroup, Interface, Subnet, new_row, table, utcnow

T = TypeVar("T")
Also = Callable[[AsyncSession, list[HostView]], Awaitable[None]]
MAX_AT_ONCE = 5_000  # hosts in one create
_host, _interface, _bmc, _group, _subnet = (table(t) for t in (Host, Interface, Bmc, HostGroup, Subnet))


async def create_hosts(
    store: Store,
    box: SecretBox,
    specs: Sequence[HostCreate],
    *,
    actor: str,
    many: bool = True,
    also: Also | None = None,
) -> list[HostView]:
    """Create all of ``specs`` or none. ``many`` False names wrong fields as ``mac`` instead of ``hosts.3.mac``.

    ``also`` is further work for the same transaction, which is given what was made. Raises Invalid (every wrong field of
    every host), PoolExhausted.
    """
    if len(specs) > MAX_AT_ONCE:
        raise Invalid([FieldError("hosts", f"{len(specs)} hosts in one request; at most {MAX_AT_ONCE}")])
    if not specs:
        return []

    async def work(session: AsyncSession) -> list[HostView]:
        plans = [
            Plan(
                spec,
                f"hosts.{i}." if many else "",
                new_row(Host, **{name: getattr(spec, name) for name in PLAIN}),
            )
            for i, spec in enumerate(specs)
        ]
        pools = await check_plans(session, plans)
        cards = [card for plan in plans for card in plan.cards]
        await session.execute(insert(_host), [plan.row for plan in plans])
        await settle_cards(session, cards, [], pools)
        controllers = [_bmc_row(box, plan.row["id"], plan.spec.bmc) for plan in plans if plan.spec.bmc]
        if controllers:
            await session.execute(insert(_bmc), controllers)
        await history.add_many(session, [line for plan in plans for line in _created(plan, actor)])
        made = await _read_back(session, [plan.row["id"] for plan in plans])
        if also is not None:
            await also(session, made)
        return made

    return await _write(store, work)


async def get_host(store: Store, name: str) -> HostView:
    """One host by name or id. Raises NotFound."""
    async with store.connect() as connection:
        found = views((await connection.execute(BY_NAME, {"name": name})).all())
    if not found:
        raise NotFound("host", name)
    return next((host for host in found if host.name == name), found[0])


async def list_hosts(
    store: Store,
    *,
    state: str | None = None,
    group: str | None = None,
    name: str | None = None,
    failed: bool = False,
    limit: int = 1000,
    cursor: str | None = None,
) -> list[HostSummary]:
    """Hosts in order of their names.

    ``state`` may be several, with commas; ``group`` takes in the groups below it; ``name`` is a glob (``web*``); ``failed``
    leaves only hosts with a failure; ``cursor`` is the last name of the page before. Raises NotFound for an unknown group.
    """
    statement = SUMMARY.limit(max(1, min(limit, 10_000)))
    if state is not None:
        statement = statement.where(_host.c.state.in_([s.strip() for s in state.split(",")]))
    if name is not None:
        statement = statement.where(_host.c.name.like(_like(name), escape="\\"))
    if cursor is not None:
        statement = statement.where(_host.c.name > cursor)
    if failed:
        statement = statement.where(_host.c.failure.isnot(None))
    async with store.connect() as connection:
        if group is not None:
            below = select(_group.c.id).where(_group.c.name == group).cte("below", recursive=True)
            below = below.union(select(_group.c.id).join(below, _group.c.parent_id == below.c.id))
            ids = list((await connection.execute(select(below.c.id))).scalars())
            if not ids:
                raise NotFound("group", group)
            statement = statement.where(_host.c.group_id.in_(ids))
        rows = (await connection.execute(statement)).all()
    return summaries(rows)


async def update_host(
    store: Store,
    box: SecretBox,
    name: str,
    change: HostUpdate,
    *,
    actor: str,
    guard: Callable[[HostView], None] | None = None,
) -> HostView:
    """Change the fields that are set in ``change``. Raises NotFound, Invalid, Conflict (it is at work), PoolExhausted.

    ``guard`` is shown the host as it is, under lock, and may raise to leave it so.
    What the engine works with now (network cards, group, image, ...) changes only while it does not work; comment, priority,
    parameters and the BMC may change at any time.
    """

    async def work(session: AsyncSession) -> HostView:
        host = await _lock(session, name)
        given = change.model_fields_set
        if guard is not None:
            guard((await _read_back(session, [host.id]))[0])
        refuse_at_work(host, given)
        errors = [
            FieldError(f, "cannot be empty") for f in sorted(given & NEEDED) if getattr(change, f) is None
        ]
        names = await find_names(session, references(change, given))
        errors += missing(names, change, "", given)
        values = {f: getattr(change, f) for f in PLAIN if f in given}
        for field_name, noun in REFERENCES.items():
            if field_name in given:
                wanted = getattr(change, field_name)
                values[f"{noun}_id"] = names.ids[noun].get(wanted) if wanted else None
        gone: list[Any] = []
        cards: list[Card] = []
        if given & {"mac", "subnet", "ip", "interfaces"}:
            rows = (await session.execute(select(_interface).where(_interface.c.host_id == host.id))).all()
            known = {row.id: row.name for row in await session.execute(select(_subnet.c.id, _subnet.c.name))}
            cards = update_cards(host.id, change, rows, known)
            kept = {card.row.id for card in cards if card.row is not None}
            gone = [row for row in rows if row.id not in kept]
            ids = {subnet: key for key, subnet in known.items()}
            for card in cards:
                card.subnet_id = ids.get(card.subnet) if card.subnet else None
            errors += check_macs(cards, virtual=bool(values.get("hypervisor_id", host.hypervisor_id)))
            errors += check_within(cards)
            errors += await check_addresses(session, cards, await load_pools(session, cards))
        errors += await check_taken(session, [(change, "", host.id)], cards)
        old = (await session.execute(select(_bmc).where(_bmc.c.host_id == host.id))).first()
        if "bmc" in given and change.bmc and old:
            errors += check_bmc(change.bmc, old)
        if errors:
            raise Invalid(errors)
        await settle_cards(session, cards, gone, await load_pools(session, cards))
        if "bmc" in given:
            await session.execute(delete(_bmc).where(_bmc.c.host_id == host.id))
            if change.bmc:
                fresh = _bmc_row(box, host.id, change.bmc)
                if change.bmc.password is None and old is not None:
                    fresh["secret"] = old.secret
                await session.execute(insert(_bmc).values(fresh))
        if given & {"bmc", "on"}:
            values["limit_key"] = await _limit_key(
                session, host.id, values.get("hypervisor_id", host.hypervisor_id)
            )
        if host.failure is not None:  # whatever was wrong may be mended now: the engine shall look again
            values.update(wake=host.wake + 1, due_at=utcnow())
        await session.execute(
            update(_host).where(_host.c.id == host.id).values(**values, updated_at=utcnow())
        )
        await history.add(
            session, host=host, kind="host.updated", actor=actor, data={"fields": sorted(given)}
        )
        return (await _read_back(session, [host.id]))[0]

    return await _write(store, work)


async def delete_host(store: Store, name: str, *, actor: str) -> None:
    """Forget a host that is enrolled, discovered, ready or retired, and free its addresses; its history stays.

    Raises NotFound, Conflict.
    """

    async def work(session: AsyncSession) -> None:
        host = await _lock(session, name)
        if host.locked:
            raise Conflict(
                f"host {host.name} is locked; unlock it first: provisionctl host unlock {host.name}"
            )
        if host.state not in RESTING:
            raise Conflict(f"host {host.name} is {host.state} and cannot be deleted; {way_out(host)}")
        await history.add(session, host=host, kind="host.deleted", actor=actor)
        await session.execute(
            delete(_host).where(_host.c.id == host.id)
        )  # cards, addresses, BMC and builds go with it

    await store.transact(work, HOSTS, EVENTS)


# --- inner -----------------------------------------------------------------------------------------------


async def _write(store: Store, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Run ``work``; where another writer was quicker with the same name or MAC, run it again, to find that and say so."""
    for _ in range(3):
        try:
            return await store.transact(work, HOSTS, EVENTS)
        except IntegrityError:
            continue
    return await store.transact(work, HOSTS, EVENTS)


async def _lock(session: AsyncSession, name: str) -> Any:
    found = select(_host).where(or_(_host.c.name == name, _host.c.id == name)).with_for_update()
    host = (await session.execute(found)).first()
    if host is None:
        raise NotFound("host", name)
    return host


async def _read_back(session: AsyncSession, ids: Sequence[str]) -> list[HostView]:
    found = {host.id: host for host in views((await session.execute(BY_IDS, {"ids": list(ids)})).all())}
    return [found[host_id] for host_id in ids]


async def _limit_key(session: AsyncSession, host_id: str, hypervisor_id: str | None) -> str | None:
    bmc = (
        await session.execute(select(_bmc.c.address, _bmc.c.port).where(_bmc.c.host_id == host_id))
    ).first()
    if bmc is not None:
        return f"bmc:{bmc.address}:{bmc.port or ''}"
    if hypervisor_id is None:
        return None
    return f"hv:{(await hypervisor_names(session, {hypervisor_id}))[hypervisor_id]}"


def _bmc_row(box: SecretBox, host_id: str, bmc: BmcSpec) -> dict[str, Any]:
    password = bmc.password.get_secret_value() if bmc.password else ""
    return new_row(
        Bmc,
        host_id=host_id,
        driver=bmc.driver,
        address=bmc.address,
        port=bmc.port,
        username=bmc.username,
        secret=box.encrypt(password),
        system=bmc.system,
        options=dict(bmc.options),
    )


def _created(plan: Plan, actor: str) -> list[dict[str, Any]]:
    who = {"host_id": plan.row["id"], "host_name": plan.row["name"], "state": plan.row["state"]}
    addresses = {"mac": [card.mac for card in plan.cards], "ip": [card.ip for card in plan.cards]}
    lines = [history.line(kind="host.created", actor=actor, data=addresses) | who]
    if plan.spec.build:
        lines.append(history.line(kind="intent.build", actor=actor, message="will follow when ready") | who)
    return lines


def _like(glob: str) -> str:
    """A glob with * and ? as a pattern for LIKE."""
    escaped = glob.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")
