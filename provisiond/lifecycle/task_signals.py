"""What the agent tells of its host's task, delivered once each: that it was handed the ramdisk, how far it is, its results, its end.

One transaction each, beginning with the host's row (as in signals.py), so that a wake-up is never lost against a step that is just
parking. Each may be repeated: a task that is over, or that is not its host's any more, is left as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict
from provisiond.inventory import history
from provisiond.inventory.hardware_tables import Erasure, HardwareTest
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import new_row, table, utcnow
from provisiond.lifecycle import rows
from provisiond.lifecycle.tasks import find, set_task

LOG_TAIL = 64 * 1024  # characters of the agent's log kept with a failure
ALIVE = timedelta(seconds=30)  # how often a sign of life without news is written
TEST_OUTPUT = 64 * 1024
VERDICTS = ("pass", "fail", "degraded")
_ERASURES = uuid.UUID("8d3bd0a4-6a0f-4c29-9c1a-0d5a0c3a6b1e")  # names erasures, so that one told twice is one

_test, _erasure = table(HardwareTest), table(Erasure)
_TESTED = select(_test.c.id).where(
    _test.c.task_id == bindparam("b_task"), _test.c.name == bindparam("b_name")
)
_FAILED_TESTS = (
    select(_test.c.name)
    .where(_test.c.task_id == bindparam("b_task"), _test.c.verdict == "fail")
    .order_by(_test.c.id)
)
_ERASED = select(_erasure.c.id).where(_erasure.c.id == bindparam("b_id"))


async def boot_asked(store: Store, task_id: str, *, limit: int = 3) -> tuple[int, bool]:
    """The machine is handed the ramdisk for its task; returns how often that was, and whether it may have it.

    ``limit`` times without a word of its agent is a boot loop: recorded as the task's failure, and reported once. A task that is
    over: (0, False).
    """
    answer = (0, False)

    async def tell(session: AsyncSession, host: Any, task: Any) -> None:
        nonlocal answer
        count = task.boots + 1
        loops = task.started_at is None and count >= limit
        answer = count, not loops and task.done_at is None and task.failed_at is None
        await set_task(session, task.id, boots=count)
        data = {"task": task.id, "boots": count}
        await _event(session, host, "boot.asked", f"boot {count}: ramdisk to {task.kind}", data)
        if loops and task.failed_at is None and task.done_at is None:
            message = (
                f"host {host.name} was handed the ramdisk {count} times and its agent never answered: look at its console, "
                f"then 'provisionctl host retry {host.name}'"
            )
            await set_task(session, task.id, failed_at=utcnow(), failure=message)
            await _event(session, host, "boot.loop", f"{count} boots in one task", data)

    await _deliver(store, task_id, tell, revive=False)
    return answer


async def progress(store: Store, task_id: str, percent: int, text: str, done: int = 0, total: int = 0) -> str:
    """The agent is ``percent`` along; ``done`` and ``total`` in bytes. Returns '' (go on), or why it is to stop.

    The first one says that it has taken the task up; it wakes the host, and so does a rescue that lets in (``is_up``). An event is
    written only then, and when the percentage changes.
    """
    percent, text = max(0, min(100, percent)), text[:256]

    async def work(session: AsyncSession) -> str:
        host, task = await _open_one(session, task_id)
        if host is None:
            return "this task is over"
        if task.failed_at is not None:
            return "this task has failed: an operator is to look at it"
        told = (task.progress, task.progress_text, task.done_bytes, task.total_bytes)
        first = task.started_at is None
        if told == (percent, text, done, total) and not first:
            if utcnow() - task.updated_at > ALIVE:
                await set_task(session, task.id)  # a sign of life
            return ""
        values: dict[str, Any] = {
            "progress": percent,
            "progress_text": text,
            "done_bytes": done,
            "total_bytes": total,
        }
        if first:
            values["started_at"] = utcnow()
        await set_task(session, task.id, **values)
        up = task.kind == "rescue" and is_up(text) and not is_up(task.progress_text)
        if first or task.progress != percent or up:
            data = {"percent": percent, "task": task.id}
            await _event(session, host, "task.progress", text, data)
        if first or up:
            await _wake(session, host, revive=False)
        return ""

    return await store.transact(work, HOSTS, EVENTS)


def is_up(text: str) -> bool:
    """Whether a rescue's progress says where to log in."""
    return text.startswith("rescue: ssh ")


async def done(store: Store, task_id: str, result: Mapping[str, Any]) -> None:
    """The agent has done what it was asked; ``result`` is kept."""

    async def tell(session: AsyncSession, host: Any, task: Any) -> None:
        if task.done_at is not None:
            return
        now = utcnow()
        values: dict[str, Any] = {
            "done_at": now, "failed_at": None, "failure": "", "progress": 100, "result": dict(result),
            "started_at": task.started_at or now, "secret": "",
        }  # fmt: skip
        await set_task(session, task.id, **values)
        data = {"task": task.id}
        await _event(session, host, "task.done", task.kind, data, key=f"{task.id}:done:{task.boots}")

    await _deliver(store, task_id, tell)


async def failed(store: Store, task_id: str, message: str, log_tail: str = "") -> None:
    """The agent could not do what it was asked, with the tail of its log."""

    async def tell(session: AsyncSession, host: Any, task: Any) -> None:
        if task.failed_at is not None or task.done_at is not None:
            return
        values = {"failed_at": utcnow(), "failure": message[:4096], "log_tail": log_tail[-LOG_TAIL:]}
        await set_task(session, task.id, **values)
        data = {"task": task.id, "log_tail": log_tail[-4096:]}
        await _event(session, host, "task.failed", message, data)

    await _deliver(store, task_id, tell)


async def record_test(
    store: Store, task_id: str, name: str, verdict: str, output: str, seconds: float
) -> None:
    """The result of one hardware test: ``verdict`` pass | fail | degraded. Told again, the newer one counts.

    Raises Conflict for another verdict.
    """
    if verdict not in VERDICTS:
        raise Conflict(f"a hardware test ends with {', '.join(VERDICTS)}; not {verdict!r}")

    async def tell(session: AsyncSession, host: Any, task: Any) -> None:
        connection = await session.connection()
        values = {
            "verdict": verdict, "output": output.replace("\0", "")[-TEST_OUTPUT:], "seconds": seconds, "at": utcnow()
        }  # fmt: skip
        there = (await connection.execute(_TESTED, {"b_task": task.id, "b_name": name})).scalar()
        if there is not None:
            await connection.execute(update(_test).where(_test.c.id == there).values(**values))
        else:
            row = {"host_id": host.id, "task_id": task.id, "name": name, **values}
            await connection.execute(insert(_test), row)
        last = output.strip().rpartition("\n")[2][:1024]
        data = {"test": name, "verdict": verdict, "seconds": round(seconds, 1), "task": task.id}
        kind = {"fail": "hardware.test_failed", "degraded": "hardware.test_degraded"}
        said = f"{name}: {verdict}" + (f": {last}" if last and verdict != "pass" else "")
        await _event(
            session, host, kind.get(verdict, "hardware.tested"), said, data,
            key=f"{task.id}:{task.boots}:{name}:{verdict}",
        )  # fmt: skip

    await _deliver(store, task_id, tell, wake=False)


async def failed_tests(store: Store, task_id: str) -> list[str]:
    """The names of the hardware tests that failed in this task."""
    async with store.connect() as connection:
        return list((await connection.execute(_FAILED_TESTS, {"b_task": task_id})).scalars())


async def record_erasure(
    store: Store, task_id: str, disk: Mapping[str, Any], *, method: str, started: datetime, ended: datetime,
    verified: bool, message: str = "",
) -> None:  # fmt: skip
    """One disk ({"name","path","model","serial","wwn","size"}) was erased by ``method``, or (not ``verified``) it was tried.

    The record never changes and outlives its host. The same telling twice is one record.
    """
    what = "\0".join(
        [task_id, *(str(disk.get(k) or "") for k in ("path", "name", "serial")), method, started.isoformat()]
    )
    record_id = str(uuid.uuid5(_ERASURES, what))

    async def tell(session: AsyncSession, host: Any, task: Any) -> None:
        connection = await session.connection()
        if (await connection.execute(_ERASED, {"b_id": record_id})).scalar() is not None:
            return
        row = new_row(
            Erasure, id=record_id, task_id=task.id, host_id=host.id, host_name=host.name, host_serial=host.serial,
            disk_name=str(disk.get("name") or disk.get("path") or "")[:64], disk_model=str(disk.get("model") or "")[:128],
            disk_serial=str(disk.get("serial") or "")[:128], disk_wwn=str(disk.get("wwn") or "")[:64],
            disk_size=int(disk.get("size") or 0), method=method[:32], started_at=started, ended_at=ended,
            verified=verified, passed=verified, message=message[:1024], actor=task.actor[:128],
        )  # fmt: skip
        await connection.execute(insert(_erasure), row)
        told = f"{row['disk_name']} {row['disk_serial']}".strip()
        said = f"{told}: {method}" + ("" if verified else f" did not erase it: {message}")
        data = {"erasure": record_id, "method": method, "serial": row["disk_serial"], "verified": verified}
        await _event(
            session, host, "disk.erased" if verified else "disk.not_erased", said, data, key=record_id
        )

    await _deliver(store, task_id, tell, wake=False)


# --- inner -----------------------------------------------------------------------------------------------

Tell = Callable[[AsyncSession, Any, Any], Awaitable[None]]


async def _open_one(session: AsyncSession, task_id: str) -> tuple[Any, Any]:
    """The locked host and its open task; (None, None) when the task is unknown, over, or its host's no more."""
    task = await find(session, task_id)
    host = await rows.lock_host(session, task.host_id) if task is not None else None
    if host is None or host.task_id != task_id:
        return None, None
    task = await find(session, task_id)  # again, as it is under the lock
    return (host, task) if task.ended_at is None else (None, None)


async def _deliver(store: Store, task_id: str, tell: Tell, *, wake: bool = True, revive: bool = True) -> None:
    async def work(session: AsyncSession) -> None:
        host, task = await _open_one(session, task_id)
        if host is None:
            return
        await tell(session, host, task)
        if wake:
            await _wake(session, host, revive=revive)

    await store.transact(work, *((HOSTS, EVENTS) if wake else (EVENTS,)))


async def _wake(session: AsyncSession, host: Any, *, revive: bool) -> None:
    """``revive`` False leaves a host alone whose failure stands: what a machine says by itself must not have its step tried."""
    stands = host.failure is not None and host.due_at is None
    if revive or not stands:
        await rows.wake_host(session, host.id, utcnow())


async def _event(
    session: AsyncSession, host: Any, kind: str, message: str = "", data: Mapping[str, Any] | None = None, key: str | None = None
) -> None:  # fmt: skip
    await history.add(
        session, host=host, kind=kind, actor="machine", message=message, data=data or {}, key=key
    )
