"""What operators ask of shadow runs: begin, cancel, resume. Each is one transaction; shadow.py does the work."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, NotFound
from provisiond.inventory import history
from provisiond.inventory.release_tables import ShadowRun
from provisiond.inventory.store import EVENTS, Store
from provisiond.inventory.tables import HostGroup, Hypervisor, new_row, table
from provisiond.templating.releases import find_release

_run, _group, _hypervisor = (table(t) for t in (ShadowRun, HostGroup, Hypervisor))


async def begin(
    store: Store,
    said: str,
    group: str | None = None,
    *,
    actor: str,
    validating: bool = True,
    boot: int = 0,
    on: str | None = None,
) -> int:
    """Ask for a shadow run of the release that is called ``said``; returns its number. Raises NotFound, Conflict.

    ``boot`` throw-away machines are booted with it at the end, on the hypervisor ``on`` (None: where the host is that each is like).
    """

    async def work(session: AsyncSession) -> int:
        release = await find_release(session, said)
        group_id = await _id_of(session, "group", _group, group)
        await _id_of(session, "hypervisor", _hypervisor, on)
        number = int((await session.execute(select(func.max(_run.c.number)))).scalar() or 0) + 1
        row = new_row(
            ShadowRun, number=number, release_id=release.id, group_id=group_id, group_name=group or "", actor=actor,
            validate_results=validating, boot=boot, report={"on": on} if on else {},
        )  # fmt: skip
        await session.execute(insert(_run), row)
        where = f"in group {group}" if group else "everywhere"
        data = {"run": number, "release": release.number, "boot": boot}
        message = f"shadow run {number} of release #{release.number} {where}"
        await history.add(session, kind="shadow.begun", actor=actor, message=message, data=data)
        return number

    for _ in range(4):
        try:
            return await store.transact(work, EVENTS)
        except IntegrityError:  # somebody took the same number in the same moment
            continue
    return await store.transact(work, EVENTS)


async def cancel(store: Store, number: int, *, actor: str) -> None:
    """End a run that is under way; what it has found stays. Raises NotFound, Conflict."""
    await _turn(store, number, ("running",), "cancelled", actor)


async def resume(store: Store, number: int, *, actor: str) -> None:
    """Let a cancelled or failed run go on after the last host that is settled. Raises NotFound, Conflict."""
    await _turn(store, number, ("cancelled", "failed"), "running", actor)


async def _turn(store: Store, number: int, froms: tuple[str, ...], to: str, actor: str) -> None:
    async def work(session: AsyncSession) -> None:
        found = select(_run.c.id, _run.c.state).where(_run.c.number == number).with_for_update()
        row = (await session.execute(found)).first()
        if row is None:
            raise NotFound("shadow run", str(number))
        if row.state not in froms:
            raise Conflict(f"shadow run {number} is {row.state}, not {' or '.join(froms)}")
        now = await store.now(session)
        values: dict[str, Any] = {"state": to, "lease_owner": None, "lease_expires": None, "updated_at": now}
        values |= {"ended_at": None, "failure": ""} if to == "running" else {"ended_at": now}
        await session.execute(update(_run).where(_run.c.id == row.id).values(values))
        kind = "shadow.resumed" if to == "running" else f"shadow.{to}"
        message = f"shadow run {number}"
        await history.add(session, kind=kind, actor=actor, message=message, data={"run": number})

    await store.transact(work, EVENTS)


async def _id_of(session: AsyncSession, noun: str, table: Any, name: str | None) -> str | None:
    if name is None:
        return None
    found = (await session.execute(select(table.c.id).where(table.c.name == name))).scalar()
    if found is None:
        raise NotFound(noun, name)
    return str(found)
