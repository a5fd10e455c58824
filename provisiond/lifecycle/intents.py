"""What operators ask for: each call checks the table, records the intent in one transaction and returns; the engine does the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from provisiond.errors import Conflict, NotFound
from provisiond.inventory import history
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Deployment, Host, utcnow
from provisiond.lifecycle.table import TRANSITIONS, WANTED_LATER, State, Verb, allowed

__all__ = ["Verb", "request", "set_lock", "set_maintenance", "set_power"]

POWER_ACTIONS = frozenset({"on", "off", "cycle", "reset"})
_POWER_STATES = frozenset({State.ENROLLED, State.READY, State.ACTIVE, State.RETIRED})
_GUARDED = frozenset({Verb.REBUILD, Verb.RELEASE, Verb.RETIRE, Verb.BUILD})


async def request(
    store: Store,
    name: str,
    verb: Verb,
    *,
    actor: str,
    cause: str = "",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Ask for ``verb`` on the host of this name or id.

    Raises NotFound, or Conflict when the host is locked, in maintenance, or in a state that does not know the verb.
    """

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        state = State(host.state)
        if verb == Verb.RETRY:
            await _retry(session, host, actor, cause)
            return
        _refuse_if_guarded(host, verb)
        target = TRANSITIONS.get((state, verb))
        if target is None and verb in WANTED_LATER.get(state, ()):
            await _set(session, host, wanted=str(verb))
            await history.add(
                session,
                host=host,
                kind=f"intent.{verb}",
                actor=actor,
                cause=cause,
                message="will follow when ready",
            )
            return
        if target is None:
            raise Conflict(
                f"host {host.name} is {state} and cannot {verb} now; it can: {', '.join(allowed(state)) or 'nothing but wait'}"
            )
        await enter(session, host, target, verb, actor, cause)

    await store.transact(work, HOSTS, EVENTS)


async def enter(session: AsyncSession, host: Host, target: State, verb: Verb, actor: str, cause: str) -> None:
    """Put ``host`` at the beginning of ``target``. A worker that is busy with it loses its write, and only then begins anew."""
    now = utcnow()
    if target != State.CONFIGURING:
        await _end_deployment(session, host, verb)
    await history.add(session, host=host, kind=f"intent.{verb}", actor=actor, cause=cause)
    await history.add(
        session,
        host=host,
        kind="state.changed",
        actor=actor,
        cause=str(verb),
        data={"from": host.state, "to": str(target)},
    )
    if verb == Verb.CONFIGURE:
        await _new_run(session, host)
    fresh = {"deployment_id": None} if target == State.BUILDING else {}
    await _set(
        session, host, state=str(target), step="", step_since=None, state_since=now, deadline_at=None, attempts=0,
        failure=None, failure_kind=None, wanted=None, **fresh,
    )  # fmt: skip


async def set_power(store: Store, name: str, action: str, *, actor: str, cause: str = "") -> None:
    """Ask for power ``on``, ``off``, ``cycle`` or ``reset``. Raises NotFound, Conflict (a build is under way, locked, no controller)."""

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        if action not in POWER_ACTIONS:
            raise Conflict(f"power can be asked {', '.join(sorted(POWER_ACTIONS))}; not {action!r}")
        if host.locked:
            raise Conflict(
                f"host {host.name} is locked; unlock it first: provisionctl host unlock {host.name}"
            )
        if host.state not in _POWER_STATES:
            raise Conflict(
                f"host {host.name} is {host.state}: its power is in the engine's hands; cancel that first"
            )
        await history.add(
            session, host=host, kind="intent.power", actor=actor, cause=cause, data={"action": action}
        )
        await _set(session, host, power_wanted=action)

    await store.transact(work, HOSTS, EVENTS)


async def set_lock(store: Store, name: str, locked: bool, *, actor: str) -> None:
    """Guard a host against build, rebuild, release, retire and power (or no longer)."""

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        await history.add(session, host=host, kind="host.locked" if locked else "host.unlocked", actor=actor)
        await session.execute(
            update(Host).where(col(Host.id) == host.id).values(locked=locked, updated_at=utcnow())
        )

    await store.transact(work, EVENTS)


async def set_maintenance(store: Store, name: str, reason: str, *, actor: str) -> None:
    """With a ``reason`` the engine leaves the host alone; with an empty one it goes on where it was."""

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        kind = "host.maintenance" if reason else "host.maintenance_over"
        await history.add(session, host=host, kind=kind, actor=actor, message=reason)
        await _set(session, host, maintenance=reason)

    await store.transact(work, HOSTS, EVENTS)


# --- inner -----------------------------------------------------------------------------------------------


async def _locked_row(session: AsyncSession, name: str) -> Host:
    found = select(Host).where((col(Host.name) == name) | (col(Host.id) == name)).with_for_update()
    host = (await session.execute(found)).scalars().first()
    if host is None:
        raise NotFound("host", name)
    return host


def _refuse_if_guarded(host: Host, verb: Verb) -> None:
    if host.locked and verb in _GUARDED:
        raise Conflict(
            f"host {host.name} is locked against {verb}; unlock it first: provisionctl host unlock {host.name}"
        )
    if host.maintenance:
        raise Conflict(
            f"host {host.name} is in maintenance ({host.maintenance}); end it first: provisionctl host maintenance {host.name} --off"
        )


async def _set(session: AsyncSession, host: Host, **columns: Any) -> None:
    """Change the row, fence whoever works on it, and make it due. The lease stays: nobody else begins before its holder let go."""
    now = utcnow()
    await session.execute(
        update(Host)
        .where(col(Host.id) == host.id)
        .values(
            version=col(col(Host.version)) + 1,
            wake=col(col(Host.wake)) + 1,
            due_at=now,
            updated_at=now,
            **columns,
        )
        .execution_options(synchronize_session=False)
    )


async def _end_deployment(session: AsyncSession, host: Host, verb: Verb) -> None:
    if host.deployment_id is None:
        return
    outcome = {Verb.REBUILD: "replaced", Verb.CANCEL: "cancelled"}.get(verb, "ended")
    await session.execute(
        update(Deployment)
        .where(col(Deployment.id) == host.deployment_id, col(col(Deployment.ended_at)).is_(None))
        .values(ended_at=utcnow(), outcome=outcome)
    )


async def _new_run(session: AsyncSession, host: Host) -> None:
    values = {"runs": col(col(Deployment.runs)) + 1, "handover_offset": 0}
    await session.execute(update(Deployment).where(col(Deployment.id) == host.deployment_id).values(**values))


async def _retry(session: AsyncSession, host: Host, actor: str, cause: str) -> None:
    from provisiond.lifecycle.path import retry_step

    if host.failure is None:
        raise Conflict(f"host {host.name} has not failed; there is nothing to try again")
    if host.deployment_id is not None:
        await session.execute(
            update(Deployment)
            .where(col(Deployment.id) == host.deployment_id)
            .values(failed_at=None, failure="", log_tail="", boots=0)
        )
        await _new_run(session, host)
    await history.add(session, host=host, kind="intent.retry", actor=actor, cause=cause)
    step = retry_step(State(host.state), host.step)
    await _set(
        session,
        host,
        step=step,
        step_since=None,
        attempts=0,
        failure=None,
        failure_kind=None,
        deadline_at=None,
    )
