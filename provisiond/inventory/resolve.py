"""All that a build step or a boot request needs to know of a host, in few statements whatever the number of hosts.

What is not set on the host is inherited from its group, then from the group's parents. The hypervisor and the subnets of its
network cards are the host's own, settled when it was created: moving a group must not move the machines that stand already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from sqlalchemy import Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import NotFound
from provisiond.inventory import flags as feature_flags
from provisiond.inventory.hardware_tables import Task
from provisiond.inventory.known import Known
from provisiond.inventory.parameters import GLOBAL, Merged, merge
from provisiond.inventory.release_tables import Flag
from provisiond.inventory.tables import (
    Bmc,
    Deployment,
    Domain,
    Flavor,
    Host,
    HostGroup,
    Hypervisor,
    Image,
    Interface,
    Medium,
    OperatingSystem,
    Setting,
    Subnet,
    table,
    utcnow,
)

PARAMETERS = "parameters"  # the Setting that holds the global ones
_host, _bmc, _deployment, _interface, _group = (
    table(t) for t in (Host, Bmc, Deployment, Interface, HostGroup)
)
_setting, _flag, _task = table(Setting), table(Flag), table(Task)

_ids: Any = bindparam("ids", expanding=True)
_WIDE = (
    select(*(c.label(f"{c.table.name}__{c.name}") for c in [*_host.c, *_bmc.c, *_deployment.c]))
    .select_from(
        _host.outerjoin(_bmc, _bmc.c.host_id == _host.c.id).outerjoin(
            _deployment, _deployment.c.id == _host.c.deployment_id
        )
    )
    .where(_host.c.id.in_(_ids))
)
_TASKS = select(_task).where(_task.c.id.in_(_ids))
_CARDS = select(_interface).where(_interface.c.host_id.in_(_ids))
_FLAGS = select(*(_flag.c[name] for name in ("name", "percent", "groups", "hosts", "off_hosts")))
_GLOBAL = select(_setting.c.value).where(_setting.c.name == PARAMETERS)
_BY_ID = {
    model: select(table(model)).where(table(model).c.id.in_(_ids))
    for model in (Subnet, Image, Medium, Flavor, Hypervisor, OperatingSystem, Domain)
}
_wanted = select(_group.c.id, _group.c.parent_id).where(_group.c.id.in_(_ids))
_above = _wanted.cte("above", recursive=True)
_above = _above.union(select(_group.c.id, _group.c.parent_id).join(_above, _group.c.id == _above.c.parent_id))
_WITH_ANCESTORS = select(_group).where(_group.c.id.in_(select(_above.c.id)))


@dataclass(frozen=True)
class ResolvedInterface:
    """A network card with its subnet's row."""

    id: str
    name: str
    mac: str
    ip: str | None
    primary: bool
    subnet: Subnet | None


@dataclass(frozen=True)
class ResolvedHost:
    """A host and everything it refers to, as it was at one moment.

    The rows are plain copies with the attributes of their tables, bound to no session. ``groups`` is the path of its groups'
    names from the root and ``group_ids`` their ids; ``interfaces`` begin with the primary one; ``merged`` are its parameters and
    where they came from; ``storage`` and ``network`` the nearest descriptions (storage.py, network.py) or None;
    ``flags`` are the feature flags of now, which a build that begins now would keep;
    ``deployment`` is the newest one or None; ``task`` what it is to do in the ramdisk now, or None;
    ``handover`` a driver's name, "none", or None where nothing says.
    """

    row: Host
    interfaces: tuple[ResolvedInterface, ...]
    bmc: Bmc | None
    hypervisor: Hypervisor | None
    flavor: Flavor | None
    image: Image | None
    medium: Medium | None
    operating_system: OperatingSystem | None
    domain: Domain | None
    groups: tuple[str, ...]
    merged: Merged
    handover: str | None
    deployment: Deployment | None
    group_ids: tuple[str, ...] = ()
    storage: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    profile_id: str | None = None
    task: Task | None = None

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def fqdn(self) -> str:
        return f"{self.row.name}.{self.domain.name}" if self.domain else self.row.name

    @property
    def parameters(self) -> dict[str, Any]:
        return self.merged.values

    @property
    def mac(self) -> str | None:
        """Of the primary network card."""
        return self.interfaces[0].mac if self.interfaces else None

    @property
    def ip(self) -> str | None:
        """Of the primary network card."""
        return self.interfaces[0].ip if self.interfaces else None

    @property
    def subnet(self) -> Subnet | None:
        """Of the primary network card."""
        return self.interfaces[0].subnet if self.interfaces else None

    @property
    def release_id(self) -> str | None:
        """The template release its deployment is pinned to."""
        return self.deployment.release_id if self.deployment else None

    @property
    def family_version(self) -> tuple[str, str]:
        """Family and version of its operating system, by which templates are found; empty texts where it has none."""
        system = self.operating_system
        return (system.family, system.version) if system else ("", "")

    def with_parameters(self, values: dict[str, Any]) -> ResolvedHost:
        """The same with other parameters, such as masked ones."""
        return replace(self, merged=replace(self.merged, values=values))

    def with_row(self, **columns: Any) -> ResolvedHost:
        """The same with other values in the host's row."""
        return replace(self, row=cast(Host, SimpleNamespace(**{**vars(self.row), **columns})))


class TokenOwner(NamedTuple):
    """Whom a boot token belongs to."""

    host_id: str
    deployment_id: str


async def resolve_host(session: AsyncSession, host_id: str, known: Known | None = None) -> ResolvedHost:
    """One host by its id; ``known`` as in resolve_hosts. Raises NotFound."""
    found = await resolve_hosts(session, [host_id], known)
    if not found:
        raise NotFound("host", host_id)
    return found[0]


async def resolve_hosts(
    session: AsyncSession, host_ids: Sequence[str], known: Known | None = None
) -> list[ResolvedHost]:
    """Many hosts, in the order of ``host_ids``; those that are gone are left out.

    At most 12 statements; with ``known`` (Store.known) two, once the catalogue has been read.
    """
    if not host_ids:
        return []
    known = known or Known()
    ids = {"ids": list(host_ids)}
    split = (_split(values, _host, _bmc, _deployment) for values in await session.execute(_WIDE, ids))
    rows = {row[0].id: row for row in split}
    cards: dict[str, list[Any]] = {}
    for card in _plain(_interface, await session.execute(_CARDS, ids)):
        cards.setdefault(card.host_id, []).append(card)
    paths = await _known_paths(session, known, {row[0].group_id for row in rows.values()})

    def inherited(host: Any, setting: str) -> Any:
        own = getattr(host, setting)
        if own is not None:
            return own
        return next(
            (v for g in reversed(paths.get(host.group_id, ())) if (v := getattr(g, setting)) is not None),
            None,
        )

    chosen = {
        host.id: {
            s: inherited(host, s)
            for s in (
                "operating_system_id",
                "medium_id",
                "image_id",
                "domain_id",
                "flavor_id",
                "handover",
                "storage",
                "network",
                "profile_id",
            )
        }
        for host, _, _ in rows.values()
    }
    tasks: dict[str, Any] = {}
    if asked := [host.task_id for host, _, _ in rows.values() if host.task_id is not None]:
        tasks = {t.id: t for t in _plain(_task, await session.execute(_TASKS, {"ids": asked}))}
    subnets = await _by_id(session, known, Subnet, (c.subnet_id for group in cards.values() for c in group))
    images = await _by_id(session, known, Image, (c["image_id"] for c in chosen.values()))
    media = await _by_id(session, known, Medium, (c["medium_id"] for c in chosen.values()))
    flavors = await _by_id(session, known, Flavor, (c["flavor_id"] for c in chosen.values()))
    hypervisors = await _by_id(session, known, Hypervisor, (row[0].hypervisor_id for row in rows.values()))
    for host, _, _ in rows.values():
        mine = chosen[host.id]
        if mine["operating_system_id"] is None:
            source = images.get(mine["image_id"]) if host.method == "image" else media.get(mine["medium_id"])
            mine["operating_system_id"] = source.operating_system_id if source else None
        ordered = sorted(cards.get(host.id, ()), key=lambda c: (not c.primary, c.name, c.mac))
        cards[host.id] = ordered
        if mine["domain_id"] is None and ordered and ordered[0].subnet_id in subnets:
            mine["domain_id"] = subnets[ordered[0].subnet_id].domain_id
    systems = await _by_id(
        session, known, OperatingSystem, (c["operating_system_id"] for c in chosen.values())
    )
    domains = await _by_id(session, known, Domain, (c["domain_id"] for c in chosen.values()))
    if known.parameters is None:
        known.parameters = (await session.execute(_GLOBAL)).scalar() or {}
    everywhere = known.parameters
    if known.flags is None:
        known.flags = [SimpleNamespace(**row._mapping) for row in await session.execute(_FLAGS)]

    result = []
    for host_id in host_ids:
        if host_id not in rows:
            continue
        host, bmc, deployment = rows[host_id]
        mine, path = chosen[host_id], paths.get(host.group_id, ())
        system, domain = systems.get(mine["operating_system_id"]), domains.get(mine["domain_id"])
        interfaces = tuple(
            ResolvedInterface(c.id, c.name, c.mac, c.ip, c.primary, subnets.get(c.subnet_id))
            for c in cards[host_id]
        )
        subnet = interfaces[0].subnet if interfaces else None
        places: list[tuple[str, Any]] = [(GLOBAL, everywhere)]
        places += [
            (f"{noun} {thing.name}", thing.parameters)
            for noun, thing in (("domain", domain), ("subnet", subnet), ("operating system", system))
            if thing is not None
        ]
        places += [(f"group {group.name}", group.parameters) for group in path]
        result.append(
            ResolvedHost(
                row=host,
                interfaces=interfaces,
                bmc=bmc,
                hypervisor=hypervisors.get(host.hypervisor_id),
                flavor=flavors.get(mine["flavor_id"]),
                image=images.get(mine["image_id"]),
                medium=media.get(mine["medium_id"]),
                operating_system=system,
                domain=domain,
                groups=tuple(group.name for group in path),
                group_ids=tuple(group.id for group in path),
                merged=merge([*places, (f"host {host.name}", host.parameters)]),
                storage=mine["storage"],
                network=mine["network"],
                handover=mine["handover"],
                profile_id=mine["profile_id"],
                deployment=deployment,
                task=tasks.get(host.task_id),
                flags=feature_flags.evaluate(known.flags, host.id, [group.id for group in path]),
            )
        )
    return result


async def group_paths(session: AsyncSession, group_ids: Iterable[str | None]) -> dict[str, tuple[Any, ...]]:
    """For each group the rows on its path from the root down to itself, in one statement for all."""
    wanted = sorted({group_id for group_id in group_ids if group_id is not None})
    if not wanted:
        return {}
    found = _plain(_group, await session.execute(_WITH_ANCESTORS, {"ids": wanted}))
    groups = {row.id: row for row in found}
    paths = {}
    for group_id in wanted:
        path: list[Any] = []
        at: str | None = group_id
        while at is not None and at in groups and len(path) <= len(groups):
            path.append(groups[at])
            at = groups[at].parent_id
        paths[group_id] = tuple(reversed(path))
    return paths


async def host_by_mac(session: AsyncSession, mac: str) -> str | None:
    """The id of the host that has this network card (MAC in lower case with colons)."""
    found = await session.execute(select(_interface.c.host_id).where(_interface.c.mac == mac))
    return found.scalar()


async def host_by_token(session: AsyncSession, token: str) -> TokenOwner | None:
    """Host and deployment of a boot token; None when there is no such token or it has expired."""
    hashed = hashlib.sha256(token.encode()).hexdigest()
    d = _deployment.c
    row = (
        await session.execute(select(d.host_id, d.id, d.token_expires).where(d.token_hash == hashed))
    ).first()
    if row is None or (row.token_expires is not None and row.token_expires <= utcnow()):
        return None
    return TokenOwner(row.host_id, row.id)


# --- inner -----------------------------------------------------------------------------------------------


def _split(values: Any, *tables: Table) -> list[Any]:
    """The columns of several joined tables as one plain object each, None where the join found nothing."""
    parts: list[Any] = []
    start = 0
    for each in tables:
        names = each.c.keys()
        part = dict(zip(names, values[start : start + len(names)], strict=True))
        parts.append(None if part["id"] is None else SimpleNamespace(**part))
        start += len(names)
    return parts


def _plain(source: Table, rows: Iterable[Any]) -> list[Any]:
    names = source.c.keys()
    return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in rows]


async def _by_id(
    session: AsyncSession, known: Known, model: Any, ids: Iterable[str | None]
) -> dict[str | None, Any]:
    wanted = {i for i in ids if i is not None}
    missing = sorted(i for i in wanted if (model.__tablename__, i) not in known.rows)
    if missing:
        for row in _plain(table(model), await session.execute(_BY_ID[model], {"ids": missing})):
            known.rows[model.__tablename__, row.id] = row
    return {i: known.rows[model.__tablename__, i] for i in wanted if (model.__tablename__, i) in known.rows}


async def _known_paths(
    session: AsyncSession, known: Known, group_ids: Iterable[str | None]
) -> dict[str, tuple[Any, ...]]:
    wanted = {i for i in group_ids if i is not None}
    if missing := wanted - known.paths.keys():
        known.paths.update(await group_paths(session, missing))
    return {i: known.paths[i] for i in wanted}
