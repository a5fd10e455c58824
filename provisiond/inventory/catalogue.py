"""The catalogue: groups, subnets, domains, operating systems, media, images, hypervisors and flavors, by one mechanism.

What differs between the nouns is data (``CATALOGUE``) and, for two of them, a check of their own. References are by name;
deleting a thing that others refer to is refused and names them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from provisiond.errors import Conflict, FieldError, Invalid, NotFound
from provisiond.inventory import history, tables
from provisiond.inventory import shapes_catalogue as shapes
from provisiond.inventory.fields import check_parameters
from provisiond.inventory.references import NOUNS, find_names
from provisiond.inventory.release_tables import PointerMove, ReleasePointer
from provisiond.inventory.resolve import PARAMETERS, group_paths
from provisiond.inventory.shapes import Request
from provisiond.inventory.store import CATALOGUE_CHANGED, EVENTS, RELEASES, Store
from provisiond.inventory.subnet_rules import check_subnet_in_use
from provisiond.inventory.tables import new_row, table, utcnow

Check = Callable[[AsyncSession, str | None, Any], Awaitable[list[FieldError]]]
Also = Callable[[AsyncSession, Any], Awaitable[None]]
_host = table(tables.Host)
_setting = table(tables.Setting)
_pointer, _move = table(ReleasePointer), table(PointerMove)


@dataclass(frozen=True)
class Noun:
    """One kind of thing. ``references`` maps a field to the noun it names; its column is the field with ``_id``."""

    name: str
    plural: str
    model: type[SQLModel]
    create: type[Request]
    update: type[Request]
    view: type[shapes.Identified]
    references: Mapping[str, str] = field(default_factory=dict)
    check: Check | None = None

    @property
    def command(self) -> str:
        """As provisionctl calls it."""
        called = {"operating_system": "os", "medium": "media", "discovery_rule": "discovery rule"}
        return called.get(self.name, self.name)

    @property
    def table(self) -> Table:
        return table(self.model)


async def _check_group(session: AsyncSession, row_id: str | None, spec: shapes.Group) -> list[FieldError]:
    """A group is not its own ancestor, and the tree is not deeper than 32."""
    if spec.parent is None:
        return []
    groups = NOUNS["group"]
    parent_id = (await session.execute(select(groups.c.id).where(groups.c.name == spec.parent))).scalar()
    path = (await group_paths(session, [parent_id])).get(parent_id or "", ())
    if row_id is not None and any(group.id == row_id for group in path):
        return [FieldError("parent", f"{spec.parent} is below {spec.name} itself; a tree has no circles")]
    if len(path) >= 32:
        return [FieldError("parent", f"{spec.parent} is 32 groups deep already")]
    return []


def _noun(
    name: str,
    plural: str,
    model: type[SQLModel],
    shape: type[Request],
    view: Any,
    check: Check | None = None,
    **refs: str,
) -> Noun:
    return Noun(name, plural, model, shape, shapes.partial(shape), view, refs, check)


_SETTINGS = {
    n: n
    for n in ("operating_system", "medium", "image", "subnet", "domain", "hypervisor", "flavor", "profile")
}
CATALOGUE: dict[str, Noun] = {
    noun.name: noun
    for noun in (
        _noun(
            "group",
            "groups",
            tables.HostGroup,
            shapes.Group,
            shapes.GroupView,
            _check_group,
            parent="group",
            **_SETTINGS,
        ),
        _noun(
            "subnet",
            "subnets",
            tables.Subnet,
            shapes.Subnet,
            shapes.SubnetView,
            check_subnet_in_use,
            domain="domain",
        ),
        _noun("domain", "domains", tables.Domain, shapes.Domain, shapes.DomainView),
        _noun(
            "operating_system",
            "operating-systems",
            tables.OperatingSystem,
            shapes.OperatingSystem,
            shapes.OperatingSystemView,
        ),
        _noun(
            "medium",
            "media",
            tables.Medium,
            shapes.Medium,
            shapes.MediumView,
            operating_system="operating_system",
        ),
        _noun(
            "image",
            "images",
            tables.Image,
            shapes.Image,
            shapes.ImageView,
            operating_system="operating_system",
        ),
        _noun("hypervisor", "hypervisors", tables.Hypervisor, shapes.Hypervisor, shapes.HypervisorView),
        _noun("flavor", "flavors", tables.Flavor, shapes.Flavor, shapes.FlavorView),
    )
}


async def create(
    store: Store, noun: Noun, spec: Request, *, actor: str, also: Also | None = None
) -> shapes.Identified:
    """Make one from its ``noun.create`` shape. Raises Invalid (every wrong field).

    ``also`` is further work for the same transaction, which is given what was made.
    """

    async def work(session: AsyncSession) -> shapes.Identified:
        columns = await _checked(session, noun, None, spec)
        row = new_row(noun.model, **columns)
        await session.execute(insert(noun.table).values(row))
        await history.add(session, kind=f"{noun.name}.created", actor=actor, message=row["name"])
        made = await _read(session, noun, row["id"])
        if also is not None:
            await also(session, made)
        return made

    return await _write(store, work)


async def get(store: Store, noun: Noun, name: str) -> shapes.Identified:
    """One by name. Raises NotFound."""
    async with store.connect() as connection:
        row = (await connection.execute(_select(noun).where(noun.table.c.name == name))).first()
    if row is None:
        raise NotFound(noun.command, name)
    return _view(noun, row)


async def list_all(store: Store, noun: Noun) -> list[shapes.Identified]:
    """All of them, by name."""
    async with store.connect() as connection:
        return [
            _view(noun, row) for row in await connection.execute(_select(noun).order_by(noun.table.c.name))
        ]


async def change(
    store: Store, noun: Noun, name: str, update_spec: Request, *, actor: str
) -> shapes.Identified:
    """Lay the fields given in ``update_spec`` over what is there and check the whole. Raises NotFound, Invalid."""

    async def work(session: AsyncSession) -> shapes.Identified:
        row = await _lock(session, noun, name)
        before = await _read(session, noun, row.id)
        given = {field_name: getattr(update_spec, field_name) for field_name in update_spec.model_fields_set}
        whole = {field_name: getattr(before, field_name) for field_name in noun.create.model_fields} | given
        try:
            spec = noun.create.model_validate(whole)
        except ValidationError as error:
            raise Invalid(
                [
                    FieldError(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, "))
                    for e in error.errors()
                ]
            ) from None
        columns = await _checked(session, noun, row.id, spec)
        await session.execute(
            update(noun.table).where(noun.table.c.id == row.id).values(**columns, updated_at=utcnow())
        )
        await history.add(
            session,
            kind=f"{noun.name}.updated",
            actor=actor,
            message=row.name,
            data={"fields": sorted(given)},
        )
        return await _read(session, noun, row.id)

    return await _write(store, work)


async def remove(store: Store, noun: Noun, name: str, *, actor: str) -> None:
    """Delete one that nothing refers to. Raises NotFound, Conflict naming who does."""

    async def work(session: AsyncSession) -> None:
        row = await _lock(session, noun, name)
        users = await _users(session, noun.table, row.id)
        if users:
            raise Conflict(
                f"{noun.command} {name} is used by {', '.join(users)}; change or delete those first"
            )
        await session.execute(delete(noun.table).where(noun.table.c.id == row.id))
        await _drop_pointer(session, row.id, actor)
        await history.add(session, kind=f"{noun.name}.deleted", actor=actor, message=row.name)

    try:
        await store.transact(work, EVENTS, CATALOGUE_CHANGED, RELEASES)
    except IntegrityError:
        raise Conflict(
            f"{noun.command} {name} has just come into use; look who uses it and try again"
        ) from None


async def get_parameters(store: Store) -> dict[str, Any]:
    """The global parameters."""
    async with store.connect() as connection:
        found = (
            await connection.execute(select(_setting.c.value).where(_setting.c.name == PARAMETERS))
        ).scalar()
    return dict(found or {})


async def set_parameters(store: Store, parameters: Mapping[str, Any], *, actor: str) -> dict[str, Any]:
    """Replace the global parameters. Raises Invalid."""
    try:
        value = check_parameters(dict(parameters))
    except ValueError as error:
        raise Invalid([FieldError("parameters", str(error))]) from None

    async def work(session: AsyncSession) -> None:
        new: Any = sqlite.insert(_setting) if store.sqlite else postgresql.insert(_setting)
        statement = new.values(name=PARAMETERS, value=value)
        await session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
        await history.add(session, kind="parameters.updated", actor=actor, data={"keys": sorted(value)})

    await store.transact(work, EVENTS, CATALOGUE_CHANGED)
    return value


# --- inner -----------------------------------------------------------------------------------------------


async def _checked(session: AsyncSession, noun: Noun, row_id: str | None, spec: Request) -> dict[str, Any]:
    """The columns of ``spec`` with references as ids. Raises Invalid."""
    columns = {name: getattr(spec, name) for name in noun.create.model_fields if name not in noun.references}
    wanted = {name: value for name in noun.references if (value := getattr(spec, name)) is not None}
    names = await find_names(session, [(noun.references[name], value) for name, value in wanted.items()])
    errors = [
        FieldError(f, why) for f, value in wanted.items() if (why := names.missing(noun.references[f], value))
    ]
    same = select(noun.table.c.id).where(
        noun.table.c.name == columns["name"], noun.table.c.id != (row_id or "")
    )
    if (await session.execute(same)).first():
        errors.append(
            FieldError("name", f"there is a {noun.name.replace('_', ' ')} {columns['name']} already")
        )
    if noun.check is not None:
        errors += await noun.check(session, row_id, spec)
    if errors:
        raise Invalid(errors)
    for field_name, target in noun.references.items():
        value = wanted.get(field_name)
        columns[f"{field_name}_id"] = None if value is None else names.ids[target][value]
    return columns


def _select(noun: Noun) -> Any:
    """All columns of the noun, and the names of what it refers to."""
    source: Any = noun.table
    extra = []
    for field_name, target in noun.references.items():
        other = NOUNS[target].alias(f"r_{field_name}")
        source = source.outerjoin(other, other.c.id == noun.table.c[f"{field_name}_id"])
        extra.append(other.c.name.label(f"r_{field_name}"))
    return select(*noun.table.c, *extra).select_from(source)


def _view(noun: Noun, row: Any) -> shapes.Identified:
    values = row._mapping
    return noun.view.model_construct(
        **{name: values[f"r_{name}" if name in noun.references else name] for name in noun.view.model_fields}
    )


async def _read(session: AsyncSession, noun: Noun, row_id: str) -> shapes.Identified:
    return _view(noun, (await session.execute(_select(noun).where(noun.table.c.id == row_id))).one())


async def _lock(session: AsyncSession, noun: Noun, name: str) -> Any:
    row = (
        await session.execute(select(noun.table).where(noun.table.c.name == name).with_for_update())
    ).first()
    if row is None:
        raise NotFound(noun.command, name)
    return row


async def _drop_pointer(session: AsyncSession, place: str, actor: str) -> None:
    """A group that goes takes its pointer to a release along; the move stays written."""
    found = select(_pointer.c.release_id).where(_pointer.c.place == place)
    if (before := (await session.execute(found)).scalar()) is not None:
        await session.execute(delete(_pointer).where(_pointer.c.place == place))
        move = {
            "place": place,
            "release_id": None,
            "before_id": before,
            "actor": actor,
            "reason": "the group was deleted",
        }
        await session.execute(_move.insert(), {**move, "at": utcnow(), "back": False, "rollout_id": None})


async def _users(session: AsyncSession, target: Table, row_id: str) -> list[str]:
    """Who refers to a row, as "host web01"; found by the foreign keys of all tables. At most five of a kind are named."""
    found: list[str] = []
    for source in SQLModel.metadata.sorted_tables:
        for column in source.c:
            if not any(key.column is target.c.id for key in column.foreign_keys):
                continue
            if "host_id" in source.c:  # a network card or an address: its host is who matters
                statement = select(_host.c.name).join(source, source.c.host_id == _host.c.id).distinct()
                called = "host"
            else:
                statement, called = select(source.c.name), source.name.removeprefix("host_").replace("_", "-")
            names = list((await session.execute(statement.where(column == row_id).limit(6))).scalars())
            found += [f"{called} {name}" for name in sorted(names)[:5]] + (
                ["more of that kind"] if len(names) > 5 else []
            )
    return sorted(set(found))


async def _write(
    store: Store, work: Callable[[AsyncSession], Awaitable[shapes.Identified]]
) -> shapes.Identified:
    """Run ``work``; where another writer was quicker with the same name, run it again, to find that and say so."""
    try:
        return await store.transact(work, EVENTS, CATALOGUE_CHANGED)
    except IntegrityError:
        return await store.transact(work, EVENTS, CATALOGUE_CHANGED)
