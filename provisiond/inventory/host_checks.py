"""What a host must be like to be written: everything wrong with a request, in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, FieldError, Invalid
from provisiond.inventory.addresses import Pools
from provisiond.inventory.cards import (
    Card,
    check_addresses,
    check_within,
    load_pools,
    random_mac,
    wanted_cards,
)
from provisiond.inventory.references import NOUNS, Names, find_names
from provisiond.inventory.resolve import group_paths
from provisiond.inventory.shapes import BmcSpec, HostCreate, HostUpdate
from provisiond.inventory.tables import Host, Interface, table

RESTING = frozenset(
    {"discovered", "enrolled", "ready", "retired"}
)  # nothing of it runs, nothing depends on it
_SETTLED = RESTING | {"active", "rescue"}
_ANY_TIME = frozenset(
    {"comment", "priority", "parameters", "storage", "network", "bmc", "serial", "handover", "profile"}
)  # may change while the engine works
_ONLY_RESTING = frozenset({"name", "on"})
REFERENCES = {
    "group": "group",
    "domain": "domain",
    "operating_system": "operating_system",
    "medium": "medium",
    "image": "image",
    "flavor": "flavor",
    "on": "hypervisor",
    "profile": "profile",
}
PLAIN = (
    "name",
    "comment",
    "architecture",
    "firmware",
    "method",
    "parameters",
    "storage",
    "network",
    "priority",
    "handover",
    "serial",
)
NEEDED = frozenset({"name", "architecture", "firmware", "method", "priority", "parameters", "comment"})
_host, _interface = table(Host), table(Interface)
_TAKEN = union_all(
    *(
        select(
            literal(column.name).label("what"), column.label("value"), _host.c.name.label("host"), _host.c.id
        )
        .select_from(source)
        .where(column.in_(bindparam(column.name, expanding=True)))
        for source, column in (
            (_host, _host.c.name),
            (_host, _host.c.serial),
            (_interface.join(_host, _host.c.id == _interface.c.host_id), _interface.c.mac),
        )
    )
)


@dataclass
class Plan:
    """One host of a create request on its way into the tables."""

    spec: HostCreate
    path: str
    row: dict[str, Any]
    cards: list[Card] = field(default_factory=list)


async def check_plans(session: AsyncSession, plans: Sequence[Plan]) -> dict[str, Pools]:
    """Check every host of a create against itself, the others and the database; fill in rows and cards.

    Returns the subnets its cards are in, by id. Raises Invalid.
    """
    errors: list[FieldError] = []
    names = await find_names(session, [ref for plan in plans for ref in references(plan.spec, None)])
    group_ids = names.ids.get("group", {})
    paths = await group_paths(session, group_ids.values())
    hypervisors = {key: name for name, key in names.ids.get("hypervisor", {}).items()}
    if (
        inherited := {g.hypervisor_id for path in paths.values() for g in path if g.hypervisor_id}
        - hypervisors.keys()
    ):
        hypervisors |= await hypervisor_names(session, inherited)
    for plan in plans:
        spec, row = plan.spec, plan.row
        errors += missing(names, spec, plan.path, None)
        for field_name, noun in REFERENCES.items():
            if wanted := getattr(spec, field_name):
                row[f"{noun}_id"] = names.ids[noun].get(wanted)
        path = paths.get(row["group_id"], ())
        plan.cards = wanted_cards(plan.path, row["id"], spec)
        if spec.method is None:
            row["method"] = usual_method(spec.image, spec.medium, path)
        if not spec.on and not spec.bmc and not any(card.mac for card in plan.cards):
            row["hypervisor_id"] = nearest(path, "hypervisor_id")
        virtual = bool(spec.on or row["hypervisor_id"])
        if virtual and spec.bmc:
            errors.append(
                FieldError(
                    f"{plan.path}bmc",
                    "a virtual machine is switched by its hypervisor; leave out either bmc or on",
                )
            )
        if virtual and not spec.flavor and not nearest(path, "flavor_id"):
            errors.append(
                FieldError(f"{plan.path}flavor", "a virtual machine needs a flavor, its own or its group's")
            )
        errors += check_macs(plan.cards, virtual=virtual)
        for card in plan.cards:
            card.subnet_id = (
                names.ids["subnet"].get(card.subnet)
                if card.subnet
                else nearest(path, "subnet_id")
                if card.primary
                else None
            )
        if spec.bmc:
            row["limit_key"] = f"bmc:{spec.bmc.endpoint}"
        elif row["hypervisor_id"]:
            row["limit_key"] = f"hv:{hypervisors[row['hypervisor_id']]}"
        row["due_at"] = row["created_at"]
        row["wanted"] = "build" if spec.build else None
    cards = [card for plan in plans for card in plan.cards]
    errors += _repeated(plans) + check_within(cards)
    errors += await check_taken(session, [(plan.spec, plan.path, None) for plan in plans], cards)
    pools = await load_pools(session, cards)
    errors += await check_addresses(session, cards, pools)
    if errors:
        raise Invalid(errors)
    return pools


def usual_method(image: str | None, medium: str | None, path: Sequence[Any]) -> str:
    """How a host is built that does not say it: by what it was given itself, else by what its groups give it."""
    if image or medium:
        return "image" if image else "installer"
    only_medium = nearest(path, "medium_id") and not nearest(path, "image_id")
    return "installer" if only_medium else "image"


def references(spec: HostCreate | HostUpdate, given: set[str] | None) -> list[tuple[str, str]]:
    found = [
        (noun, wanted)
        for field_name, noun in REFERENCES.items()
        if (given is None or field_name in given) and (wanted := getattr(spec, field_name))
    ]
    found += [("subnet", name) for name in [spec.subnet, *(c.subnet for c in spec.interfaces or ())] if name]
    return found


def missing(
    names: Names, spec: HostCreate | HostUpdate, path: str, given: set[str] | None
) -> list[FieldError]:
    wanted = [(f, noun, getattr(spec, f)) for f, noun in REFERENCES.items() if given is None or f in given]
    wanted += [("subnet", "subnet", spec.subnet)]
    wanted += [(f"interfaces.{i}.subnet", "subnet", c.subnet) for i, c in enumerate(spec.interfaces or ())]
    return [
        FieldError(path + f, why) for f, noun, name in wanted if name and (why := names.missing(noun, name))
    ]


def check_macs(cards: Sequence[Card], *, virtual: bool) -> list[FieldError]:
    """A physical card needs its MAC; a virtual one is given one."""
    errors = []
    for card in cards:
        if card.mac is None and virtual:
            card.mac = random_mac()
        elif card.mac is None:
            errors.append(
                FieldError(
                    f"{card.path}mac",
                    "a physical host needs the MAC of the card it boots from; for a virtual one give 'on' a hypervisor",
                )
            )
    return errors


def _repeated(plans: Sequence[Plan]) -> list[FieldError]:
    errors = []
    for name in ("name", "serial"):
        first: dict[str, str] = {}
        for plan in plans:
            value = getattr(plan.spec, name)
            if value is not None and (other := first.setdefault(value, plan.path)) != plan.path:
                errors.append(
                    FieldError(
                        f"{plan.path}{name}", f"{value!r} comes twice in this request: also in {other}{name}"
                    )
                )
    return errors


async def check_taken(
    session: AsyncSession,
    specs: Sequence[tuple[HostCreate | HostUpdate, str, str | None]],
    cards: Sequence[Card],
) -> list[FieldError]:
    """Names, serial numbers and MACs that another host has. The third of a spec is the id of the host it is about, if there is one."""
    wanted = {
        "name": sorted({spec.name for spec, _, _ in specs if spec.name}),
        "serial": sorted({spec.serial for spec, _, _ in specs if spec.serial}),
        "mac": sorted({card.mac for card in cards if card.mac}),
    }
    taken = {(row.what, row.value): row for row in (await session.execute(_TAKEN, wanted)).all()}
    errors = []
    for spec, path, own in specs:
        if spec.name and (row := taken.get(("name", spec.name))) and row.id != own:
            errors.append(FieldError(f"{path}name", f"there is a host {spec.name} already"))
        if spec.serial and (row := taken.get(("serial", spec.serial))) and row.id != own:
            errors.append(
                FieldError(f"{path}serial", f"host {row.host} has the serial number {spec.serial!r} already")
            )
    for card in cards:
        if card.mac and (row := taken.get(("mac", card.mac))) and row.id != card.host_id:
            errors.append(
                FieldError(
                    f"{card.path}mac", f"host {row.host} has a network card with MAC {card.mac} already"
                )
            )
    return errors


def check_bmc(new: BmcSpec, old: Any) -> list[FieldError]:
    """A stored password goes only to where it was meant for, or whoever may change an address could read it there."""
    moved = (new.driver, new.address, new.port) != (old.driver, old.address, old.port)
    if moved and old.secret and new.password is None:
        return [
            FieldError(
                "bmc.password",
                "the controller's address changes: give its password again (empty text if it has none)",
            )
        ]
    return []


def refuse_at_work(host: Any, given: set[str]) -> None:
    touched = given - _ANY_TIME
    if host.state not in _SETTLED and touched:
        fields = ", ".join(sorted(touched))
        raise Conflict(
            f"host {host.name} is {host.state}; {fields} can change when that is over; {way_out(host)}"
        )
    if host.state not in RESTING and touched & _ONLY_RESTING:
        fields = ", ".join(sorted(touched & _ONLY_RESTING))
        raise Conflict(
            f"host {host.name} is {host.state}; {fields} cannot change in service; {way_out(host)}"
        )


def way_out(host: Any) -> str:
    if host.state in {"active", "rescue"}:
        return f"release or retire it first: provisionctl host release {host.name}"
    return f"wait until that is over, or stop it: provisionctl host cancel {host.name}"


async def hypervisor_names(session: AsyncSession, ids: set[str]) -> dict[str, str]:
    rows = NOUNS["hypervisor"]
    return {
        row.id: row.name
        for row in await session.execute(select(rows.c.id, rows.c.name).where(rows.c.id.in_(sorted(ids))))
    }


def nearest(path: Sequence[Any], setting: str) -> str | None:
    return next((value for group in reversed(path) if (value := getattr(group, setting)) is not None), None)
