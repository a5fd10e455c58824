"""Hosts as the operators' door sees them: create many at once, look, list, change, delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import delete, insert, literal, or_, select, union_all, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, FieldError, Invalid, NotFound
from provisiond.inventory import history
from provisiond.inventory.cards import (
    Card,
    check_addresses,
    check_within,
    load_pools,
    random_mac,
    settle_cards,
    update_cards,
    wanted_cards,
)
from provisiond.inventory.host_views import BY_IDS, BY_NAME, SUMMARY, summary, views
from provisiond.inventory.references import Names, find_names
from provisiond.inventory.resolve import group_paths
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import BmcSpec, HostCreate, HostSummary, HostUpdate, HostView
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Bmc, Host, HostGroup, Interface, Subnet, new_row, table, utcnow

T = TypeVar("T")
Also = Callable[[AsyncSession, list[HostView]], Awaitable[None]]
MAX_AT_ONCE = 5_000  # hosts in one create
RESTING = frozenset({"discovered", "enrolled", "ready", "retired"})  # nothing of it runs, nothing depends on it
_SETTLED = RESTING | {"active", "rescue"}
_ANY_TIME = frozenset({"comment", "priority", "parameters", "bmc", "serial", "handover"})  # may change while the engine works
_ONLY_RESTING = frozenset({"name", "on"})
_REFERENCES = {
    "group": "group",
    "domain": "domain",
    "operating_system": "operating_system",
    "medium": "medium",
    "image": "image",
    "flavor": "flavor",
    "on": "hypervisor",
}
_PLAIN = ("name", "comment", "architecture", "firmware", "method", "parameters", "priority", "handover", "serial")
_NEEDED = frozenset({"name", "architecture", "firmware", "method", "priority", "parameters", "comment"})
_host, _interface, _bmc, _group, _subnet = (table(t) for t in (Host, Interface, Bmc, HostGroup, Subnet))


@dataclass
class _Plan:
    """One host of a create request on its way into the tables."""

    spec: HostCreate
    path: str
    row: dict[str, Any]
    cards: list[Card] = field(default_factory=list)


async def create_hosts(
    store: Store, box: SecretBox, specs: Sequence[HostCreate], *, actor: str, many: bool = True, also: Also | None = None
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
            _Plan(spec, f"hosts.{i}." if many else "", new_row(Host, **{name: getattr(spec, name) for name in _PLAIN}))
            for i, spec in enumerate(specs)
        ]
        await _check_all(session, plans)
        cards = [card for plan in plans for card in plan.cards]
        await session.execute(insert(_host), [plan.row for plan in plans])
        await settle_cards(session, cards, [], await load_pools(session, cards))
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
    now = utcnow()
    return [summary(row, now) for row in rows]


async def update_host(
    store: Store, box: SecretBox, name: str, change: HostUpdate, *, actor: str, guard: Callable[[HostView], None] | None = None
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
        _refuse_at_work(host, given)
        errors = [FieldError(f, "cannot be empty") for f in sorted(given & _NEEDED) if getattr(change, f) is None]
        names = await find_names(session, _references(change, given))
        errors += _missing(names, change, "", given)
        values = {f: getattr(change, f) for f in _PLAIN if f in given}
        for field_name, noun in _REFERENCES.items():
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
            errors += _check_macs(cards, virtual=bool(values.get("hypervisor_id", host.hypervisor_id)))
            errors += check_within(cards)
            errors += await check_addresses(session, cards, await load_pools(session, cards))
        errors += await _check_taken(session, [(change, "", host.id)], cards)
        old = (await session.execute(select(_bmc).where(_bmc.c.host_id == host.id))).first()
        if "bmc" in given and change.bmc and old:
            errors += _check_bmc(change.bmc, old)
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
            values["limit_key"] = await _limit_key(session, host.id, values.get("hypervisor_id", host.hypervisor_id))
        if host.failure is not None:  # whatever was wrong may be mended now: the engine shall look again
            values.update(wake=host.wake + 1, due_at=utcnow())
        await session.execute(update(_host).where(_host.c.id == host.id).values(**values, updated_at=utcnow()))
        await history.add(session, host=host, kind="host.updated", actor=actor, data={"fields": sorted(given)})
        return (await _read_back(session, [host.id]))[0]

    return await _write(store, work)


async def delete_host(store: Store, name: str, *, actor: str) -> None:
    """Forget a host that is enrolled, discovered, ready or retired, and free its addresses; its history stays.

    Raises NotFound, Conflict.
    """

    async def work(session: AsyncSession) -> None:
        host = await _lock(session, name)
        if host.locked:
            raise Conflict(f"host {host.name} is locked; unlock it first: provisionctl host unlock {host.name}")
        if host.state not in RESTING:
            raise Conflict(f"host {host.name} is {host.state} and cannot be deleted; {_way_out(host)}")
        await history.add(session, host=host, kind="host.deleted", actor=actor)
        await session.execute(delete(_host).where(_host.c.id == host.id))  # cards, addresses, BMC and builds go with it

    await store.transact(work, HOSTS, EVENTS)


# --- checks ----------------------------------------------------------------------------------------------


async def _check_all(session: AsyncSession, plans: Sequence[_Plan]) -> None:
    """Check every host of a create against itself, the others and the database; fill in rows and cards. Raises Invalid."""
    errors: list[FieldError] = []
    names = await find_names(session, [ref for plan in plans for ref in _references(plan.spec, None)])
    group_ids = names.ids.get("group", {})
    paths = await group_paths(session, group_ids.values())
    hypervisors = {key: name for name, key in names.ids.get("hypervisor", {}).items()}
    if inherited := {g.hypervisor_id for path in paths.values() for g in path if g.hypervisor_id} - hypervisors.keys():
        hypervisors |= await _hypervisor_names(session, inherited)
    for plan in plans:
        spec, row = plan.spec, plan.row
        errors += _missing(names, spec, plan.path, None)
        for field_name, noun in _REFERENCES.items():
            if wanted := getattr(spec, field_name):
                row[f"{noun}_id"] = names.ids[noun].get(wanted)
        path = paths.get(row["group_id"], ())
        plan.cards = wanted_cards(plan.path, row["id"], spec)
        if not spec.on and not spec.bmc and not any(card.mac for card in plan.cards):
            row["hypervisor_id"] = _inherited(path, "hypervisor_id")
        virtual = bool(spec.on or row["hypervisor_id"])
        if virtual and spec.bmc:
            errors.append(
                FieldError(f"{plan.path}bmc", "a virtual machine is switched by its hypervisor; leave out either bmc or on")
            )
        if virtual and not spec.flavor and not _inherited(path, "flavor_id"):
            errors.append(FieldError(f"{plan.path}flavor", "a virtual machine needs a flavor, its own or its group's"))
        errors += _check_macs(plan.cards, virtual=virtual)
        for card in plan.cards:
            card.subnet_id = (
                names.ids["subnet"].get(card.subnet) if card.subnet else _inherited(path, "subnet_id") if card.primary else None
            )
        if spec.bmc:
            row["limit_key"] = f"bmc:{spec.bmc.endpoint}"
        elif row["hypervisor_id"]:
            row["limit_key"] = f"hv:{hypervisors[row['hypervisor_id']]}"
        row["due_at"] = row["created_at"]
        row["wanted"] = "build" if spec.build else None
    cards = [card for plan in plans for card in plan.cards]
    errors += _repeated(plans) + check_within(cards)
    errors += await _check_taken(session, [(plan.spec, plan.path, None) for plan in plans], cards)
    errors += await check_addresses(session, cards, await load_pools(session, cards))
    if errors:
        raise Invalid(errors)


def _references(spec: HostCreate | HostUpdate, given: set[str] | None) -> list[tuple[str, str]]:
    found = [
        (noun, wanted)
        for field_name, noun in _REFERENCES.items()
        if (given is None or field_name in given) and (wanted := getattr(spec, field_name))
    ]
    found += [("subnet", name) for name in [spec.subnet, *(c.subnet for c in spec.interfaces or ())] if name]
    return found


def _missing(names: Names, spec: HostCreate | HostUpdate, path: str, given: set[str] | None) -> list[FieldError]:
    wanted = [(f, noun, getattr(spec, f)) for f, noun in _REFERENCES.items() if given is None or f in given]
    wanted += [("subnet", "subnet", spec.subnet)]
    wanted += [(f"interfaces.{i}.subnet", "subnet", c.subnet) for i, c in enumerate(spec.interfaces or ())]
    return [FieldError(path + f, why) for f, noun, name in wanted if name and (why := names.missing(noun, name))]


def _check_macs(cards: Sequence[Card], *, virtual: bool) -> list[FieldError]:
    """A physical card needs its MAC; a virtual one is given one."""
    errors = []
    for card in cards:
        if card.mac is None and virtual:
            card.mac = random_mac()
        elif card.mac is None:
            errors.append(
                FieldError(f"{card.path}mac", "a physical host needs the MAC of the card it boots from; for a virtual one give 'on' a hypervisor")
            )
    return errors


def _repeated(plans: Sequence[_Plan]) -> list[FieldError]:
    errors = []
    for name in ("name", "serial"):
        first: dict[str, str] = {}
        for plan in plans:
            value = getattr(plan.spec, name)
            if value is not None and (other := first.setdefault(value, plan.path)) != plan.path:
                errors.append(FieldError(f"{plan.path}{name}", f"{value!r} comes twice in this request: also in {other}{name}"))
    return errors


async def _check_taken(
    session: AsyncSession, specs: Sequence[tuple[HostCreate | HostUpdate, str, str | None]], cards: Sequence[Card]
) -> list[FieldError]:
    """Names, serial numbers and MACs that another host has. The third of a spec is the id of the host it is about, if there is one."""
    macs = {card.mac for card in cards if card.mac}
    wanted = [
        (_host, _host.c.name, {spec.name for spec, _, _ in specs if spec.name}),
        (_host, _host.c.serial, {spec.serial for spec, _, _ in specs if spec.serial}),
        (_interface.join(_host, _host.c.id == _interface.c.host_id), _interface.c.mac, macs),
    ]
    selects = [
        select(literal(column.name).label("what"), column.label("value"), _host.c.name.label("host"), _host.c.id)
        .select_from(source)
        .where(column.in_(sorted(values)))
        for source, column, values in wanted
        if values
    ]
    taken = {(row.what, row.value): row for row in (await session.execute(union_all(*selects))).all()} if selects else {}
    errors = []
    for spec, path, own in specs:
        if spec.name and (row := taken.get(("name", spec.name))) and row.id != own:
            errors.append(FieldError(f"{path}name", f"there is a host {spec.name} already"))
        if spec.serial and (row := taken.get(("serial", spec.serial))) and row.id != own:
            errors.append(FieldError(f"{path}serial", f"host {row.host} has the serial number {spec.serial!r} already"))
    for card in cards:
        if card.mac and (row := taken.get(("mac", card.mac))) and row.id != card.host_id:
            errors.append(FieldError(f"{card.path}mac", f"host {row.host} has a network card with MAC {card.mac} already"))
    return errors


def _check_bmc(new: BmcSpec, old: Any) -> list[FieldError]:
    """A stored password goes only to where it was meant for, or whoever may change an address could read it there."""
    moved = (new.driver, new.address, new.port) != (old.driver, old.address, old.port)
    if moved and old.secret and new.password is None:
        return [FieldError("bmc.password", "the controller's address changes: give its password again (empty text if it has none)")]
    return []


def _refuse_at_work(host: Any, given: set[str]) -> None:
    touched = given - _ANY_TIME
    if host.state not in _SETTLED and touched:
        fields = ", ".join(sorted(touched))
        raise Conflict(f"host {host.name} is {host.state}; {fields} can change when that is over; {_way_out(host)}")
    if host.state not in RESTING and touched & _ONLY_RESTING:
        fields = ", ".join(sorted(touched & _ONLY_RESTING))
        raise Conflict(f"host {host.name} is {host.state}; {fields} cannot change in service; {_way_out(host)}")


def _way_out(host: Any) -> str:
    if host.state in {"active", "rescue"}:
        return f"release or retire it first: provisionctl host release {host.name}"
    return f"wait until that is over, or stop it: provisionctl host cancel {host.name}"


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


def _inherited(path: Sequence[Any], setting: str) -> str | None:
    return next((value for group in reversed(path) if (value := getattr(group, setting)) is not None), None)


async def _hypervisor_names(session: AsyncSession, ids: set[str]) -> dict[str, str]:
    from provisiond.inventory.references import NOUNS

    rows = NOUNS["hypervisor"]
    return {row.id: row.name for row in await session.execute(select(rows.c.id, rows.c.name).where(rows.c.id.in_(sorted(ids))))}


async def _limit_key(session: AsyncSession, host_id: str, hypervisor_id: str | None) -> str | None:
    bmc = (await session.execute(select(_bmc.c.address, _bmc.c.port).where(_bmc.c.host_id == host_id))).first()
    if bmc is not None:
        return f"bmc:{bmc.address}:{bmc.port or ''}"
    if hypervisor_id is None:
        return None
    return f"hv:{(await _hypervisor_names(session, {hypervisor_id}))[hypervisor_id]}"


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


def _created(plan: _Plan, actor: str) -> list[dict[str, Any]]:
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
