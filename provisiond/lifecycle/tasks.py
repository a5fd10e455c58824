"""What a host does in the ramdisk besides being built: its task is opened, begun anew and ended. What the agent tells of it: task_signals.py.

All are parts of the caller's transaction, which has locked the host's row. To open what is open, or to end what is over, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict
from provisiond.inventory import history
from provisiond.inventory.hardware_tables import Task
from provisiond.inventory.tables import new_id, new_row, table, utcnow
from provisiond.lifecycle import rows

_task = table(Task)
_FIND = select(_task).where(_task.c.id == bindparam("b_id"))
_OPEN = insert(_task)
_SET = update(_task).where(_task.c.id == bindparam("b_id"))


async def open_in(
    session: AsyncSession, host: Any, kind: str, options: Mapping[str, Any], *, actor: str, secret: str = "", cause: str = ""
) -> str:  # fmt: skip
    """Give the locked row ``host`` a task of ``kind`` inspect | erase | rescue, as a part of a transaction; returns its id.

    ``options`` are inspect's {"tests": [names]} ("all" among them: every one there is), erase's {"mode"}, rescue's {"keys"};
    ``secret`` is what only the machine may be told, encrypted by the caller. A task of the same kind that is open already stays, and
    its id is returned; raises Conflict when one of another kind is open.
    """
    there = await find(session, host.task_id)
    if there is not None and there.ended_at is None:
        if there.kind != kind:
            raise Conflict(
                f"host {host.name} has another task in the ramdisk ({there.kind}); wait for its end first"
            )
        return str(there.id)
    row = task_row(host.id, kind, options, actor=actor, secret=secret)
    await rows.move_host(session, host.id, utcnow(), task_id=row["id"])
    await insert_task(session, row)
    data = {"task": row["id"], "kind": kind, **options}
    await history.add(
        session, host=host, kind="task.opened", actor=actor, cause=cause, message=kind, data=data
    )
    return str(row["id"])


def task_row(
    host_id: str, kind: str, options: Mapping[str, Any], *, actor: str, secret: str = ""
) -> dict[str, Any]:
    """A new task, for ``insert_task``; whoever stores it has its host point to it."""
    return new_row(
        Task, id=new_id(), host_id=host_id, kind=kind, options=dict(options), secret=secret, actor=actor[:128]
    )


async def insert_task(session: AsyncSession, row: dict[str, Any]) -> None:
    """Store a row of ``task_row``."""
    await (await session.connection()).execute(_OPEN, row)


async def end_in(session: AsyncSession, host: Any, why: str = "") -> None:
    """The locked row ``host`` has left its task, if it has one: the agent is told to stop. ``why`` says why an unfinished one ends."""
    if host.task_id is None:
        return
    await rows.move_host(session, host.id, utcnow(), task_id=None)
    await finish(session, host.task_id, why)


async def finish(session: AsyncSession, task_id: str, why: str = "") -> None:
    """``end_in`` for a step, whose outcome sets the host's task_id itself."""
    task = await find(session, task_id)
    if task is None or task.ended_at is not None:
        return
    values: dict[str, Any] = {"ended_at": utcnow(), "secret": ""}
    if task.done_at is None and task.failed_at is None and why:
        values["failure"] = why[:4096]
    await set_task(session, task.id, **values)


async def task_again(session: AsyncSession, task_id: str) -> None:
    """Somebody asks for another try: the task stands as it was opened. The caller has locked its host."""
    await set_task(
        session, task_id, boots=0, started_at=None, progress=0, progress_text="", done_bytes=0, total_bytes=0,
        done_at=None, failed_at=None, failure="", log_tail="", result={},
    )  # fmt: skip


async def find(session: AsyncSession, task_id: str | None) -> Any:
    """The task's row; its host's lock guards it. None where there is none."""
    if task_id is None:
        return None
    return (await (await session.connection()).execute(_FIND, {"b_id": task_id})).first()


async def set_task(session: AsyncSession, task_id: str, **columns: Any) -> None:
    """Set columns of a task whose host is locked."""
    await (await session.connection()).execute(_SET, {"b_id": task_id, "updated_at": utcnow(), **columns})
