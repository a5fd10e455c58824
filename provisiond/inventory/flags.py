"""Feature flags: what templates ask for by ``flag('name')``. Kept by names for people, evaluated for one host without I/O.

The rules, the first that applies: off for the hosts that are named so, on for the hosts that are named, on for hosts of a named
group or below it, else on for ``percent`` of all hosts, by a hash of flag and host: raising it takes hosts in and none out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, FieldError, Invalid, NotFound
from provisiond.inventory import history
from provisiond.inventory.fields import Line
from provisiond.inventory.release_tables import Flag
from provisiond.inventory.shapes import Request, View
from provisiond.inventory.store import CATALOGUE_CHANGED, EVENTS, RELEASES, Store
from provisiond.inventory.tables import Host, HostGroup, new_id, new_row, table, utcnow

FlagName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Names = Annotated[list[Line], Field(max_length=1000)]
_flag, _group, _host = table(Flag), table(HostGroup), table(Host)
_SETTINGS = ("about", "percent", "groups", "hosts", "off_hosts")
_LISTS = {"groups": (_group, "group"), "hosts": (_host, "host"), "off_hosts": (_host, "host")}


class FlagCreate(Request):
    """``percent`` of all hosts; ``groups``, ``hosts`` and ``off_hosts`` by name."""

    name: FlagName
    about: Line = ""
    percent: float = Field(default=0.0, ge=0, le=100)
    groups: Names = Field(default_factory=list)
    hosts: Names = Field(default_factory=list)
    off_hosts: Names = Field(default_factory=list)


class FlagUpdate(Request):
    """What is left out stays; a list is replaced as a whole."""

    about: Line | None = None
    percent: float | None = Field(default=None, ge=0, le=100)
    groups: Names | None = None
    hosts: Names | None = None
    off_hosts: Names | None = None


class FlagView(View):
    name: str
    about: str
    percent: float
    groups: list[str]
    hosts: list[str]
    off_hosts: list[str]
    created_at: datetime
    updated_at: datetime


Also = Callable[[AsyncSession, FlagView], Awaitable[None]]


def is_on(flag: Any, host_id: str, group_ids: Sequence[str]) -> bool:
    """Whether ``flag`` (its row) is on for the host; ``group_ids`` are all groups it is in, at any depth."""
    if host_id in flag.off_hosts:
        return False
    if host_id in flag.hosts or not set(flag.groups).isdisjoint(group_ids):
        return True
    place = int.from_bytes(hashlib.sha256(f"{flag.name}:{host_id}".encode()).digest()[:8], "big") / 2**64
    return bool(place * 100 < flag.percent)


def evaluate(flags: Iterable[Any], host_id: str, group_ids: Sequence[str]) -> dict[str, bool]:
    """Every flag (a row of its table) by name, as it is for this host."""
    return {flag.name: is_on(flag, host_id, group_ids) for flag in flags}


async def create(store: Store, spec: FlagCreate, *, actor: str, also: Also | None = None) -> FlagView:
    """Make one; it wakes no host. ``also`` is further work for the same transaction.

    Raises Invalid (every wrong field), Conflict when there is one of that name.
    """

    async def work(session: AsyncSession) -> FlagView:
        columns = await _ids(session, spec.model_dump(include=set(_SETTINGS)))
        await session.execute(insert(_flag), new_row(Flag, id=new_id(), name=spec.name, **columns))
        view = await _view(session, spec.name)
        after = view.model_dump(mode="json", include=set(_SETTINGS))
        await history.add(session, kind="flag.created", actor=actor, message=spec.name, data={"after": after})
        if also is not None:
            await also(session, view)
        return view

    try:
        return await store.transact(work, EVENTS, CATALOGUE_CHANGED, RELEASES)
    except IntegrityError:
        raise Conflict(
            f"there is a flag {spec.name} already; change it with 'provisionctl flag set {spec.name}'"
        ) from None


async def change(store: Store, name: str, spec: FlagUpdate, *, actor: str) -> FlagView:
    """Change what is given. Builds that began keep what they began with. Raises NotFound, Invalid."""

    async def work(session: AsyncSession) -> FlagView:
        before = await _view(session, name, lock=True)
        columns = await _ids(session, spec.model_dump(exclude_none=True))
        await session.execute(
            update(_flag).where(_flag.c.name == name).values(**columns, updated_at=utcnow())
        )
        view = await _view(session, name)
        told = {
            "before": before.model_dump(mode="json", include=set(columns)),
            "after": view.model_dump(mode="json", include=set(columns)),
        }
        await history.add(session, kind="flag.changed", actor=actor, message=name, data=told)
        return view

    return await store.transact(work, EVENTS, CATALOGUE_CHANGED, RELEASES)


async def remove(store: Store, name: str, *, actor: str) -> None:
    """Forget it: for templates it is off. Raises NotFound."""

    async def work(session: AsyncSession) -> None:
        before = (await _view(session, name, lock=True)).model_dump(mode="json", include=set(_SETTINGS))
        await session.execute(delete(_flag).where(_flag.c.name == name))
        await history.add(session, kind="flag.deleted", actor=actor, message=name, data={"before": before})

    await store.transact(work, EVENTS, CATALOGUE_CHANGED, RELEASES)


async def get(store: Store, name: str) -> FlagView:
    """One by name. Raises NotFound."""
    async with store.read() as session:
        return await _view(session, name)


async def list_all(store: Store) -> list[FlagView]:
    """All of them, by name."""
    async with store.read() as session:
        names = (await session.execute(select(_flag.c.name).order_by(_flag.c.name))).scalars().all()
        return [await _view(session, name) for name in names]


async def _view(session: AsyncSession, name: str, *, lock: bool = False) -> FlagView:
    found = select(_flag).where(_flag.c.name == name)
    row = (await session.execute(found.with_for_update() if lock else found)).first()
    if row is None:
        raise NotFound("flag", name)
    names: dict[str, list[str]] = {}
    for setting, (source, _noun) in _LISTS.items():  # those that are gone meanwhile are not shown
        wanted = select(source.c.name).where(source.c.id.in_(getattr(row, setting))).order_by(source.c.name)
        names[setting] = list((await session.execute(wanted)).scalars())
    return FlagView(
        name=row.name,
        about=row.about,
        percent=row.percent,
        created_at=row.created_at,
        updated_at=row.updated_at,
        **names,
    )


async def _ids(session: AsyncSession, given: dict[str, Any]) -> dict[str, Any]:
    """With ids in place of names. Raises Invalid that names every unknown one."""
    wrong: list[FieldError] = []
    for setting, (source, noun) in _LISTS.items():
        if not given.get(setting):
            continue
        rows = await session.execute(
            select(source.c.id, source.c.name).where(source.c.name.in_(given[setting]))
        )
        ids = {row.name: row.id for row in rows}
        wrong += [
            FieldError(f"{setting}.{place}", f"there is no {noun} {name!r}")
            for place, name in enumerate(given[setting])
            if name not in ids
        ]
        given[setting] = list(dict.fromkeys(ids[name] for name in given[setting] if name in ids))
    if wrong:
        raise Invalid(wrong)
    return given
