"""Pointers: what makes a release current somewhere. Each move is one transaction that leaves a row and an event for ever."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory import history
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove, Release, ReleasePointer
from provisiond.inventory.tables import HostGroup, table, utcnow

MOVED, ROLLED_BACK = "release.moved", "release.rolled-back"
"""The kinds of event of a move."""

_move, _pointer, _release, _group = (table(t) for t in (PointerMove, ReleasePointer, Release, HostGroup))


async def lock_pointers(session: AsyncSession) -> None:
    """Let nobody else move a pointer or begin a rollout until this transaction ends; reads go on. On SQLite there is one writer anyway."""
    if (await session.connection()).dialect.name == "postgresql":
        await session.execute(text("LOCK TABLE release_pointer IN SHARE ROW EXCLUSIVE MODE"))


async def move_pointer(
    session: AsyncSession,
    place: str,
    release_id: str | None,
    *,
    actor: str,
    reason: str = "",
    rollout_id: str | None = None,
    back: bool = False,
) -> bool:
    """Make ``release_id`` current at ``place`` (a group's id, or EVERYWHERE), or take a group's own pointer away with None.

    ``back`` is for a move that takes an earlier one back: whoever rolls back next goes on from before that one. Run it by
    ``store.transact(work, RELEASES, EVENTS)``. Takes ``lock_pointers``. False, and nothing written, when it is so already.
    """
    await lock_pointers(session)
    before = (await session.execute(select(_pointer.c.release_id).where(_pointer.c.place == place))).scalar()
    if before == release_id:
        return False
    now = utcnow()
    values: dict[str, Any] = {"place": place, "release_id": release_id, "before_id": before, "at": now}
    values |= {"actor": actor[:128], "reason": reason[:1024], "rollout_id": rollout_id, "back": back}
    move_id = (await session.execute(_move.insert().returning(_move.c.id), values)).scalar_one()
    if release_id is None:
        await session.execute(_pointer.delete().where(_pointer.c.place == place))
    else:
        row = {"release_id": release_id, "move_id": move_id, "moved_at": now}
        if before is None:
            await session.execute(_pointer.insert().values(place=place, **row))
        else:
            await session.execute(_pointer.update().where(_pointer.c.place == place).values(**row))
    numbers = {i: n for i in (before, release_id) if i and (n := await _number(session, i)) is not None}
    where = "everywhere" if place == EVERYWHERE else f"in group {await _group_name(session, place)}"
    is_now = (
        f"release #{numbers[release_id]} is current {where}"
        if release_id
        else f"no release of its own {where}"
    )
    data = {
        "place": place,
        "where": where,
        "from": numbers.get(before or ""),
        "to": numbers.get(release_id or ""),
        "move": move_id,
        "rollout_id": rollout_id,
    }
    kind = ROLLED_BACK if back else MOVED
    await history.add(session, kind=kind, actor=actor, cause=reason, message=is_now, data=data)
    return True


async def _number(session: AsyncSession, release_id: str) -> int | None:
    return (await session.execute(select(_release.c.number).where(_release.c.id == release_id))).scalar()


async def _group_name(session: AsyncSession, group_id: str) -> str:
    found = (await session.execute(select(_group.c.name).where(_group.c.id == group_id))).scalar()
    return str(found or group_id)
