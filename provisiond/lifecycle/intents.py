"""What operators ask for: each call checks the table, records the intent in one transaction and returns; the engine does the work."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, NotFound
from provisiond.inventory import history
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle import rows, tasks
from provisiond.lifecycle.asked import NOTHING, Asked, follow
from provisiond.lifecycle.path import retry_step
from provisiond.lifecycle.table import LEAVING, RESTING, TRANSITIONS, WANTED_LATER, State, Verb, allowed

__all__ = ["Asked", "Verb", "ask", "request", "set_lock", "set_maintenance", "set_power"]

POWER_ACTIONS = frozenset({"on", "off", "cycle", "reset"})
_POWER_STATES = frozenset({State.ENROLLED, State.READY, State.ACTIVE})
_GUARDED = frozenset(
    {Verb.REBUILD, Verb.RELEASE, Verb.RETIRE, Verb.BUILD, Verb.CANCEL, Verb.CONFIGURE, Verb.RESCUE}
)


async def request(
    store: Store, name: str, verb: Verb, *, actor: str, cause: str = "", asked: Asked = NOTHING
) -> None:
    """Ask for ``verb`` on the host of this name or id, with what else is ``asked``.

    Raises NotFound, Conflict when the host is locked, in maintenance, or in a state that does not know the verb, or Invalid.
    """
    asked.check(verb)

    async def work(session: AsyncSession) -> None:
        await ask(session, name, verb, actor=actor, cause=cause, asked=asked)

    await store.transact(work, HOSTS, EVENTS)


async def ask(
    session: AsyncSession, name: str, verb: Verb, *, actor: str, cause: str = "", asked: Asked = NOTHING
) -> None:
    """``request`` as a part of somebody's transaction, which wakes HOSTS and EVENTS. What it raises it raises before it writes."""
    host = await _locked_row(session, name)
    state = State(host.state)
    if verb == Verb.RETRY:
        await _retry(session, host, actor, cause)
        return
    _refuse_if_guarded(host, verb)
    if verb == Verb.CANCEL and await _cancelled_gently(session, host, actor, cause):
        return
    if step := LEAVING.get((state, verb)):
        await history.add(session, host=host, kind=f"intent.{verb}", actor=actor, cause=cause)
        await _leave_step(session, host, verb, actor)
        await _begin_step(session, host, step)
        return
    target = TRANSITIONS.get((state, verb))
    if target is None and verb in WANTED_LATER.get(state, ()):
        change = await follow(session, host, verb, asked)
        await rows.move_host(session, host.id, utcnow(), wanted=str(verb), **change)
        told = {"actor": actor, "cause": cause, "message": "will follow when ready"}
        await history.add(session, host=host, kind=f"intent.{verb}", **told)
        return
    if target is None:
        raise Conflict(
            f"host {host.name} is {state} and cannot {verb} now; it can: {', '.join(allowed(state)) or 'nothing but wait'}"
        )
    await enter(session, host, target, verb, actor, cause, asked)


async def enter(
    session: AsyncSession,
    host: Any,
    target: State,
    verb: Verb,
    actor: str,
    cause: str,
    asked: Asked = NOTHING,
) -> None:
    """Put ``host`` at the beginning of ``target``. A worker that is busy with it loses its write, and only then begins anew."""
    change = await follow(session, host, verb, asked)
    now = utcnow()
    if target == State.CONFIGURING:
        await rows.next_run(session, host.deployment_id)
    elif target == State.RESCUE:
        pass  # what is in service stays deployed
    elif host.deployment_id is not None:
        await _end_deployment(session, host, verb)
    told = {"host": host, "actor": actor}
    await history.add(session, kind=f"intent.{verb}", cause=cause, **told)
    await _leave_step(session, host, verb, actor)
    moved = {"from": host.state, "to": str(target)}
    await history.add(session, kind="state.changed", cause=str(verb), data=moved, **told)
    if verb != Verb.APPROVE:  # a discovery rule may have given it an inspection before it was taken in
        await tasks.end_in(session, host, f"{verb} was asked for")
    task = change.pop("task", None)
    kept = None if target == State.BUILDING else host.deployment_id
    await rows.move_host(
        session, host.id, now, state=str(target), step="", step_since=None, state_since=now, deadline_at=None, attempts=0,
        failure=None, failure_kind=None, wanted=None, deployment_id=kept, **change,
    )  # fmt: skip
    if task is not None:
        kind, options = task
        await tasks.open_in(
            session, await rows.lock_host(session, host.id), kind, options, actor=actor, cause=cause
        )


async def set_power(store: Store, name: str, action: str, *, actor: str, cause: str = "") -> None:
    """Ask for power ``on``, ``off``, ``cycle`` or ``reset``. Raises NotFound, Conflict (a build is under way, locked, no controller)."""

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        if action not in POWER_ACTIONS:
            raise Conflict(f"power can be asked {', '.join(sorted(POWER_ACTIONS))}; not {action!r}")
        _refuse_locked(host, f"power {action}")
        if host.state in (State.DISCOVERED, State.RETIRED):
            raise Conflict(f"host {host.name} is {host.state}: nothing switches it")
        if host.state not in _POWER_STATES:
            raise Conflict(
                f"host {host.name} is {host.state}: its power is in the engine's hands; cancel that first"
            )
        await history.add(
            session, host=host, kind="intent.power", actor=actor, cause=cause, data={"action": action}
        )
        cleared = (
            {"attempts": 0, "failure": None, "failure_kind": None} if State(host.state) in RESTING else {}
        )
        await rows.move_host(session, host.id, utcnow(), power_wanted=action, **cleared)

    await store.transact(work, HOSTS, EVENTS)


async def set_lock(store: Store, name: str, locked: bool, *, actor: str) -> None:
    """Guard a host against build, rebuild, release, retire and power (or no longer)."""

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        await history.add(session, host=host, kind="host.locked" if locked else "host.unlocked", actor=actor)
        await rows.set_host(session, host.id, locked=locked, updated_at=utcnow())

    await store.transact(work, EVENTS)


async def set_maintenance(store: Store, name: str, reason: str, *, actor: str) -> None:
    """With a ``reason`` the engine leaves the host alone; with an empty one it goes on where it was."""

    async def work(session: AsyncSession) -> None:
        host = await _locked_row(session, name)
        kind = "host.maintenance" if reason else "host.maintenance_over"
        await history.add(session, host=host, kind=kind, actor=actor, message=reason)
        stands = host.failure is not None and host.due_at is None
        await rows.move_host(session, host.id, None if stands else utcnow(), maintenance=reason)

    await store.transact(work, HOSTS, EVENTS)


# --- inner -----------------------------------------------------------------------------------------------


async def _locked_row(session: AsyncSession, name: str) -> Any:
    host = await rows.lock_host(session, name)
    if host is None:
        raise NotFound("host", name)
    return host


def _refuse_locked(host: Any, what: str) -> None:
    if host.locked:
        raise Conflict(
            f"host {host.name} is locked against {what}; unlock it first: provisionctl host unlock {host.name}"
        )


def _refuse_if_guarded(host: Any, verb: Verb) -> None:
    if verb in _GUARDED:
        _refuse_locked(host, verb)
    if host.maintenance:
        raise Conflict(
            f"host {host.name} is in maintenance ({host.maintenance}); end it first: provisionctl host maintenance {host.name} --off"
        )


async def _cancelled_gently(session: AsyncSession, host: Any, actor: str, cause: str) -> bool:
    """What can be called off without taking the host apart: a build that only waits, a handover of a host that was in service."""
    state = State(host.state)
    if state in WANTED_LATER and host.wanted is not None:
        change: dict[str, Any] = {"wanted": None}
    elif (
        state == State.CONFIGURING
        and (await rows.deployment(session, host.deployment_id)).outcome == "active"
    ):
        change = {"wanted": str(Verb.CANCEL), "attempts": 0, "failure": None, "failure_kind": None}
    else:
        return False
    await history.add(session, host=host, kind="intent.cancel", actor=actor, cause=cause)
    await rows.move_host(session, host.id, utcnow(), **change)
    return True


async def _end_deployment(session: AsyncSession, host: Any, verb: Verb) -> None:
    deployment = await rows.deployment(session, host.deployment_id)
    if deployment is not None and deployment.ended_at is None:
        outcome = {Verb.REBUILD: "replaced", Verb.CANCEL: "cancelled"}.get(verb, "ended")
        await rows.set_deployment(session, deployment.id, ended_at=utcnow(), outcome=outcome)


async def _retry(session: AsyncSession, host: Any, actor: str, cause: str) -> None:
    if host.failure is None:
        raise Conflict(f"host {host.name} has not failed; there is nothing to try again")
    if host.deployment_id is not None:
        await rows.set_deployment(
            session, host.deployment_id, failed_at=None, failure="", log_tail="", boots=0
        )
        await rows.next_run(session, host.deployment_id)
    if host.task_id is not None:
        await tasks.task_again(session, host.task_id)
    await history.add(session, host=host, kind="intent.retry", actor=actor, cause=cause)
    await _leave_step(session, host, Verb.RETRY, actor)
    await _begin_step(session, host, retry_step(State(host.state), host.step), deadline_at=None)


async def _leave_step(session: AsyncSession, host: Any, verb: Verb, actor: str) -> None:
    """The history tells of a step that was under way that it is not any more: not done, not failed, and by nobody's crash."""
    tried = host.failure is None or host.lease_owner is not None
    if host.step and host.step_since is not None and tried:
        await history.add(session, host=host, kind="step.left", actor=actor, message=f"{verb} was asked for")


async def _begin_step(session: AsyncSession, host: Any, step: str, **columns: Any) -> None:
    """Put ``host`` at ``step`` of its state as if it had never been tried."""
    await rows.move_host(
        session, host.id, utcnow(), step=step, step_since=None, attempts=0, failure=None, failure_kind=None, **columns
    )  # fmt: skip
