"""Making a release current and taking that back, as operators ask for it; and what a rollback would do, before it is done.

A move writes three rows whatever the number of hosts: which release a host gets is decided when its build begins, and a build
under way keeps the one it began with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, NotFound
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove, Release, ReleasePointer, Rollout
from provisiond.inventory.resolve import group_paths
from provisiond.inventory.store import EVENTS, RELEASES, Store
from provisiond.inventory.tables import Deployment, Host, table
from provisiond.templating.current import Standing, load_standing, release_for
from provisiond.templating.pointers import lock_pointers, move_pointer
from provisiond.templating.releases import find_release, place_of

_BUILDING = ("building", "provisioned", "configuring")
_move, _pointer, _rollout, _release = (table(t) for t in (PointerMove, ReleasePointer, Rollout, Release))
_host, _deployment = table(Host), table(Deployment)


@dataclass(frozen=True)
class Moved:
    """What came of it: ids of releases; ``before`` or ``now`` is None where a group has no pointer of its own."""

    place: str
    before: str | None
    now: str | None
    changed: bool


@dataclass(frozen=True)
class Affected:
    """A host: ``release_id`` is what its build has, ``then`` what a new build would get after the move."""

    id: str
    name: str
    state: str
    release_id: str | None
    then: str
    building: bool


@dataclass(frozen=True)
class Plan:
    """What a rollback would do. ``keep`` are hosts now building, ``rebuild`` those that --rebuild would ask for a rebuild."""

    moved: Moved
    changing: int = 0
    """Hosts whose next build would get another release than now."""
    keep: Sequence[Affected] = ()
    rebuild: Sequence[Affected] = ()
    numbers: dict[str, int] = field(default_factory=dict)


async def use_release(store: Store, said: str, *, group: str | None, actor: str, reason: str = "") -> Moved:
    """Make the release called ``said`` current in a group or everywhere. Raises NotFound, and Conflict while a rollout is under way there."""

    async def work(session: AsyncSession) -> Moved:
        place = await place_of(session, group)
        release = await find_release(session, said, place=place)
        await lock_pointers(session)
        await _refuse_rollout(
            session, place, f"release #{release.number} cannot be made current there by hand"
        )
        before = await _at(session, place)
        changed = await move_pointer(session, place, release.id, actor=actor, reason=reason)
        return Moved(place, before, release.id, changed)

    return await store.transact(work, RELEASES, EVENTS)


async def roll_back(
    store: Store, *, group: str | None, to: str | None, actor: str, reason: str = ""
) -> Moved:
    """Make the earlier release current again, or the one called ``to``. Raises NotFound, Conflict.

    Where ``to`` is current already nothing is written and ``before`` is what the newest move there took away, so that what was
    broken off after the move can be gone on with.
    """

    async def work(session: AsyncSession) -> Moved:
        place = await place_of(session, group)
        await lock_pointers(session)
        moved = await _rolled(session, place, group, to)
        changed = moved.changed and await move_pointer(
            session, place, moved.now, actor=actor, reason=reason, back=True
        )
        return replace(moved, changed=changed)

    return await store.transact(work, RELEASES, EVENTS)


async def plan_rollback(store: Store, *, group: str | None, to: str | None) -> Plan:
    """What ``roll_back`` would do now; nothing is changed. Raises what it would raise."""
    async with store.read() as session:
        place = await place_of(session, group)
        moved = await _rolled(session, place, group, to)
        standing = await load_standing(session)
        after = dict(standing.pointers)
        after.pop(place, None)
        if moved.now is not None:
            after[place] = moved.now
        found = await _affected(session, standing, Standing(after, standing.rollouts), moved)
        keep = [host for host, _ in found if host.building]
        rebuild = [host for host, _ in found if _to_rebuild(host, moved)]
        ids = {i for host, _ in found for i in (host.release_id, host.then) if i} | {
            i for i in (moved.before, moved.now) if i
        }
        numbers = await numbers_of(session, ids)
    return Plan(moved, sum(changes for _, changes in found), keep, rebuild, numbers)


async def to_rebuild(store: Store, moved: Moved) -> list[Affected]:
    """Hosts that were built, or are being built, with the release that ``moved`` took back, and would now get another."""
    async with store.read() as session:
        standing = await load_standing(session)
        found = await _affected(session, standing, standing, moved)
    return [host for host, _ in found if _to_rebuild(host, moved)]


async def numbers_of(session: AsyncSession, ids: Any) -> dict[str, int]:
    """Release id -> number."""
    found = await session.execute(
        select(_release.c.id, _release.c.number).where(_release.c.id.in_(list(ids)))
    )
    return {row.id: row.number for row in found}


# --- inner -----------------------------------------------------------------------------------------------


async def _rolled(session: AsyncSession, place: str, group: str | None, to: str | None) -> Moved:
    where = f"in group {group}" if group else "everywhere"
    await _refuse_rollout(session, place, "a rollback there would pull against it")
    before = await _at(session, place)
    if to is not None:
        now: str | None = (await find_release(session, to, place=place)).id
        if now == before:
            last = (
                select(_move.c.before_id).where(_move.c.place == place).order_by(_move.c.id.desc()).limit(1)
            )
            return Moved(place, (await session.execute(last)).scalar(), now, False)
        return Moved(place, before, now, True)
    if before is None:
        raise Conflict(
            f"nothing can be rolled back {where}: no release was ever made current there; say --to RELEASE"
        )
    stack: list[str | None] = []
    moves = select(_move.c.before_id, _move.c.release_id, _move.c.back).where(_move.c.place == place)
    for move in await session.execute(moves.order_by(_move.c.id)):
        if move.back and move.release_id in stack:
            del stack[len(stack) - 1 - stack[::-1].index(move.release_id) :]
        else:
            stack.append(move.before_id)
    if not stack or (stack[-1] is None and place == EVERYWHERE):
        raise Conflict(f"there is no earlier release {where}; say --to RELEASE")
    return Moved(place, before, stack[-1], True)


async def _refuse_rollout(session: AsyncSession, place: str, said: str) -> None:
    found = select(_rollout.c.number, _rollout.c.state).where(_rollout.c.active_place == place)
    if row := (await session.execute(found)).first():
        raise Conflict(
            f"rollout {row.number} is {row.state} there and {said}; end it first: provisionctl rollout cancel {row.number}"
        )


async def _at(session: AsyncSession, place: str) -> str | None:
    return (await session.execute(select(_pointer.c.release_id).where(_pointer.c.place == place))).scalar()


async def _affected(
    session: AsyncSession, standing: Standing, after: Standing, moved: Moved
) -> list[tuple[Affected, bool]]:
    """The hosts that the pointer at the place decides about, or whose build has the release taken back there; whether their next build changes."""
    columns = (_host.c.id, _host.c.name, _host.c.state, _host.c.group_id, _deployment.c.release_id)
    rows = (
        await session.execute(
            select(*columns)
            .select_from(_host.outerjoin(_deployment, _deployment.c.id == _host.c.deployment_id))
            .order_by(_host.c.name)
        )
    ).all()
    paths = await group_paths(session, {row.group_id for row in rows})
    found = []
    for row in rows:
        groups = [group.id for group in paths.get(row.group_id, ())]
        if moved.place != EVERYWHERE and moved.place not in groups:
            continue
        try:
            now, then = release_for(row.id, groups, standing), release_for(row.id, groups, after)
        except NotFound:
            continue
        building = row.state in _BUILDING and row.release_id is not None
        found.append((Affected(row.id, row.name, row.state, row.release_id, then, building), now != then))
    return found


def _to_rebuild(host: Affected, moved: Moved) -> bool:
    return (
        moved.before is not None
        and host.release_id == moved.before
        and host.then != moved.before
        and host.state in (*_BUILDING, "active")
    )


def by_release(hosts: Sequence[Affected]) -> dict[str, int]:
    """Release id -> how many of these hosts have it."""
    return dict(Counter(host.release_id for host in hosts if host.release_id))
