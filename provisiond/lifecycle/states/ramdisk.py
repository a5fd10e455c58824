"""What the states share that send a machine into the ramdisk for a task: whether it can, starting it, waiting for it, leaving it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.drivers.power import BootDevice, PowerAction, PowerState
from provisiond.inventory import agents
from provisiond.inventory.hardware_tables import AgentSession
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import table, utcnow
from provisiond.lifecycle import tasks
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Note, Outcome, Write
from provisiond.lifecycle.world import World

BOOT_MINUTES = 15.0
"""How long a machine may take from power-on to asking for its boot program; parameter ``boot_minutes`` overrides it."""
SILENT_MINUTES = 15.0
"""How long the agent may say nothing in the middle of its work; parameter ``silent_minutes`` overrides it."""

_session = table(AgentSession)
_END_SESSIONS = update(_session).where(
    _session.c.host_id == bindparam("b_host"), _session.c.ended_at.is_(None)
)


def from_image(host: ResolvedHost) -> bool:
    """A virtual machine whose disk is made from an image: it needs no network boot. A root file system (tree) is no disk."""
    by_image = host.hypervisor is not None and host.row.method == "image"
    return by_image and host.image is not None and host.image.content == "disk"


def why_not(host: ResolvedHost) -> str:
    """Why this host cannot be started from the ramdisk; '' when it can."""
    if from_image(host):
        return f"host {host.name} is a virtual machine made from an image: it does not boot from the network"
    if host.mac is None:
        return (
            f"host {host.name} has no MAC, so its network boot would not be known: "
            f"give it one with 'provisionctl host update {host.name} --mac ...'"
        )
    return ""


def has_task(host: ResolvedHost) -> bool:
    """Whether the host has a task: its state's steps in the ramdisk are to be taken."""
    return host.row.task_id is not None


def opened(host: ResolvedHost, kind: str, options: dict[str, Any]) -> tuple[dict[str, Any], Write]:
    """Columns and write of an outcome that gives the host a new task."""
    row = tasks.task_row(host.id, kind, options, actor="engine")

    async def write(session: AsyncSession) -> None:
        await tasks.insert_task(session, row)

    return {"task_id": row["id"]}, write


async def start(host: ResolvedHost, world: World, what: str) -> Outcome:
    """Has the machine boot the ramdisk; one that runs it already is not restarted."""
    if host.task is not None and host.task.done_at is not None:
        return Complete(f"its ramdisk has done so already: no restart to {what}")
    if not await _runs(host, world):
        return await network_boot(host, world)
    seen = {"power": str(PowerState.ON), "power_seen_at": utcnow()} if host.row.power == "off" else {}
    return Complete(f"its ramdisk runs already: no restart to {what}", host=seen)


async def _runs(host: ResolvedHost, world: World) -> bool:
    """Whether the machine runs its ramdisk. Where its power is noted down as off it does if it came up since this step was begun: then
    the daemon died that had started it, before it could note that down."""
    if not await agents.alive(world.store, host.id):
        return False
    if host.row.power != "off":
        return True
    newest = await agents.newest(world.store, host.id)
    return host.row.step_since is not None and newest.claimed_at >= host.row.step_since


async def network_boot(host: ResolvedHost, world: World) -> Outcome:
    """Restarts the machine from the network; where there is no controller somebody is asked to."""
    reach = world.power_of(host)
    if reach is None:
        return Complete(
            "no controller: switch the machine on by hand, set to boot from the network",
            notes=(Note("operator.asked", f"power on {host.name} by hand; it waits at its network boot"),),
        )
    power, target = reach
    world.consoles.follow(host, power, target)
    await power.set_boot(target, BootDevice.NETWORK)
    state = await power.set(target, PowerAction.CYCLE)
    return Complete(f"power is {state}", host={"power": str(state), "power_seen_at": utcnow()})


def waiting(host: ResolvedHost, doing: str) -> Outcome | None:
    """How a task stands that is not done: Continue, or Failed when it failed, never booted, or fell silent; None when it is done."""
    task = host.task
    assert task is not None
    again = f"then 'provisionctl host retry {host.name}'"
    if task.done_at is not None:
        return None
    if task.failed_at is not None:
        return Failed(f"{task.failure}; mend it, {again}", retryable=False, kind=task.kind)
    if task.started_at is None and task.boots == 0:
        since = host.row.step_since or utcnow()
        return booting(host, since, "its ramdisk", "waiting for the machine to boot its ramdisk")
    since = max(task.updated_at, host.row.step_since or task.updated_at)
    patience = _minutes(host, "silent_minutes", SILENT_MINUTES)
    at = f"{task.progress} % {task.progress_text}".strip()
    silent = Failed(
        f"the ramdisk of host {host.name} has been silent for {patience.total_seconds() / 60:.0f} minutes (last: {at}): look at its "
        f"console, {again}",
        retryable=False, kind="silent",
    )  # fmt: skip
    return _patient(since, patience, silent, f"{doing}: {at}")


async def heard(host: ResolvedHost, world: World, doing: str) -> Outcome:
    """Whether the agent that builds the host still says something: Continue, or Failed when it fell silent in the middle."""
    session = await agents.newest(world.store, host.id)
    begun = host.row.step_since or utcnow()
    since = max(begun, session.seen_at) if session is not None else begun
    patience = _minutes(host, "silent_minutes", SILENT_MINUTES)

    async def write(db: AsyncSession) -> None:
        await end_sessions(db, host)

    late = Failed(
        f"the ramdisk of host {host.name} has been silent for {patience.total_seconds() / 60:g} minutes ({doing}): has it lost its power or "
        f"its network? Look at its console, then 'provisionctl host retry {host.name}'",
        retryable=False, kind="silent", write=write,
    )  # fmt: skip
    return _patient(since, patience, late, doing)


async def leave(host: ResolvedHost, world: World, *, power: PowerAction) -> Outcome:
    """Ends the task; the machine is switched off, or restarted from its disk.

    One that is switched off here is free: it boots from the network when somebody switches it on, where it is told its disk or,
    when its host was deleted meanwhile, is discovered again.
    """
    off = power is PowerAction.OFF
    columns, finish = end(host)
    reach, told = world.power_of(host), "its power is left to the operator"
    if reach is not None:
        driver, target = reach
        await driver.set_boot(target, BootDevice.NETWORK if off else BootDevice.DISK)
        state = await driver.set(target, power)
        columns |= {"power": str(state), "power_seen_at": utcnow()}
        told = f"power is {state}"
    if off:
        world.consoles.leave(host.id)

    async def write(session: AsyncSession) -> None:
        await end_sessions(session, host)
        await finish(session)

    return Complete(f"boots from {'the network' if off else 'disk'}; {told}", host=columns, write=write)


async def end_sessions(session: AsyncSession, host: ResolvedHost) -> None:
    """The machine was switched: whatever ramdisk ran is gone."""
    await (await session.connection()).execute(_END_SESSIONS, {"b_host": host.id, "ended_at": utcnow()})


def end(host: ResolvedHost) -> tuple[dict[str, Any], Write]:
    """Columns and write of an outcome that ends the host's task and leaves its ramdisk running."""

    async def write(session: AsyncSession) -> None:
        if host.row.task_id is not None:
            await tasks.finish(session, host.row.task_id)

    return {"task_id": None}, write


def booting(host: ResolvedHost, since: datetime, what: str, text: str) -> Outcome:
    """Waiting for a machine, started at ``since``, to ask for ``what``: Continue, or Failed when it takes too long."""
    patience = _minutes(host, "boot_minutes", BOOT_MINUTES)
    late = Failed(
        f"host {host.name} never asked for {what} in {patience.total_seconds() / 60:.0f} minutes: check that it is on, boots "
        f"from the network, and that the MAC {host.mac} is right; then 'provisionctl host retry {host.name}'",
        retryable=False, kind="no-boot",
    )  # fmt: skip
    return _patient(since, patience, late, text)


# --- inner -----------------------------------------------------------------------------------------------


def _minutes(host: ResolvedHost, name: str, default: float) -> timedelta:
    given = host.parameters.get(name, default)
    good = isinstance(given, int | float) and not isinstance(given, bool) and given > 0
    return timedelta(minutes=float(given) if good else default)


def _patient(since: datetime, patience: timedelta, late: Failed, text: str) -> Outcome:
    left = (since + patience - utcnow()).total_seconds()
    return late if left <= 0 else Continue(text, after=left + 0.1)
