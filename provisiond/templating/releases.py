"""Releases as rows: found by what people call them, listed, and shown. Their files stay in the database until somebody asks for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, NotFound
from provisiond.inventory.release_tables import EVERYWHERE, Release, ReleasePointer
from provisiond.inventory.store import Store
from provisiond.inventory.tables import HostGroup, table

CURRENT = "current"
MIN_PREFIX = 6  # digits of a digest that are enough to name a release by

_release, _pointer, _group = table(Release), table(ReleasePointer), table(HostGroup)
_BRIEF = [column for column in _release.c if column.name != "files"]


async def find_release(session: AsyncSession, said: str, *, place: str = EVERYWHERE) -> Any:
    """The row, without its files, of the release that is called ``said``: #12 or 12, a digest's beginning, or ``current``.

    Raises NotFound, or Conflict where several digests begin so.
    """
    name = said.strip().lower()
    if name == CURRENT:
        pointers = await _pointers(session)
        wanted = _release.c.id == pointers.get(place, pointers.get(EVERYWHERE, ""))
    elif re.fullmatch(r"#?[0-9]{1,9}", name) and (name.startswith("#") or len(name) < MIN_PREFIX):
        wanted = _release.c.number == int(name.removeprefix("#"))
    elif re.fullmatch(r"[0-9a-f]{6,64}", name):
        wanted = _release.c.digest.startswith(name)
        if name.isdigit() and len(name) <= 9:
            wanted |= _release.c.number == int(name)
    else:
        raise NotFound("release", said)
    found = (await session.execute(select(*_BRIEF).where(wanted).limit(2))).all()
    if not found:
        raise NotFound("release", said)
    if len(found) > 1:
        raise Conflict(
            f"several releases are called {said!r}: #{found[0].number}, #{found[1].number}, ...; name one by its number"
        )
    return found[0]


async def read_files(session: AsyncSession, release_id: str) -> dict[str, str]:
    """Path -> text of a release's templates."""
    found = (await session.execute(select(_release.c.files).where(_release.c.id == release_id))).scalar_one()
    return dict(found)


async def list_releases(store: Store, limit: int = 1000) -> list[tuple[Any, list[str]]]:
    """The newest first: rows without files, each with where it is current: "everywhere" or groups' names."""
    async with store.read() as session:
        rows = (await session.execute(select(*_BRIEF).order_by(_release.c.number.desc()).limit(limit))).all()
        places = await places_of(session)
    return [(row, places.get(row.id, [])) for row in rows]


async def places_of(session: AsyncSession) -> Mapping[str, list[str]]:
    """Release id -> where it is current by a pointer: "everywhere" first, then groups' names."""
    pointers = await _pointers(session)
    names: dict[str, str] = {}
    if groups := [place for place in pointers if place != EVERYWHERE]:
        found = await session.execute(select(_group.c.id, _group.c.name).where(_group.c.id.in_(groups)))
        names = {row.id: row.name for row in found}
    places: dict[str, list[str]] = {}
    for place, release_id in sorted(
        pointers.items(), key=lambda p: (p[0] != EVERYWHERE, names.get(p[0], p[0]))
    ):
        places.setdefault(release_id, []).append(
            "everywhere" if place == EVERYWHERE else names.get(place, place)
        )
    return places


async def place_of(session: AsyncSession, group: str | None) -> str:
    """The place of a group's pointer by the group's name; EVERYWHERE for None. Raises NotFound."""
    if group is None:
        return EVERYWHERE
    found = (await session.execute(select(_group.c.id).where(_group.c.name == group))).scalar()
    if found is None:
        raise NotFound("group", group)
    return str(found)


async def _pointers(session: AsyncSession) -> dict[str, str]:
    found = await session.execute(select(_pointer.c.place, _pointer.c.release_id))
    return {row.place: row.release_id for row in found}
