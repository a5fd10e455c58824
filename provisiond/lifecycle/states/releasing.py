"""releasing and retired: what was made for the host is removed, whatever of it there is, and a released machine's disks are erased.

These steps converge: each looks at what is there, so they also clean up after a build that was cancelled half-way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from provisiond.drivers.power import PowerAction
from provisiond.errors import DriverRejected, FieldError, Invalid
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Address, Interface, utcnow
from provisiond.lifecycle.outcome import Complete, Note, Outcome, Step, Write
from provisiond.lifecycle.states import ramdisk
from provisiond.lifecycle.states.configuring import run_key
from provisiond.lifecycle.world import World

MODES = ("auto", "quick", "full", "none")


async def stop(host: ResolvedHost, world: World) -> Outcome:
    """Ends a handover that may still run, switches a physical machine off, and settles whether its disks are to be erased."""
    if host.deployment is not None:
        _name, driver = world.handover_of(host)
        if driver is not None:
            await driver.cancel(run_key(host))
    world.consoles.leave(host.id)
    columns, notes, write = _settle_erasure(host, world)
    reach = world.power_of(host) if host.bmc is not None else None
    if reach is None:
        return Complete("nothing to switch off", host=columns, notes=notes, write=write)
    power, target = reach
    try:
        state = await power.set(target, PowerAction.OFF)
    except DriverRejected as error:
        if host.row.state != "retired":
            raise
        # A machine that is gone for good often has no working controller any more; it must not keep its host from retiring.
        return Complete("not switched off", notes=(Note("power.unreachable", str(error)),))
    seen = {"power": str(state), "power_seen_at": utcnow()}
    return Complete(f"power is {state}", host={**seen, **columns}, notes=notes, write=write)


def _settle_erasure(
    host: ResolvedHost, world: World
) -> tuple[dict[str, Any], tuple[Note, ...], Write | None]:
    """Columns, notes and write of whether to erase and how.

    What the operator asked for counts first, then the host's parameter ``erase``, then the setting erase.default. Where nobody asked,
    disks are erased only if an operating system may have been put on them by a build that was not called off, and the machine can be
    started without anybody's hands. Raises Invalid when the parameter is no mode.
    """
    if host.row.state == "retired" or host.hypervisor is not None:
        return {}, (), None  # a virtual machine's disks are destroyed with it
    task = host.task
    if task is not None and task.kind == "erase":
        if task.options.get("mode") != "none":
            return {}, (), partial(_gone, host=host)
        columns, write = ramdisk.end(host)
        said = f"its disks are not erased: {task.actor} asked for --erase none"
        return columns, (Note("erase.skipped", said, {"mode": "none"}),), write
    built = host.deployment is not None and host.deployment.outcome != "cancelled"
    mode = host.parameters.get("erase", world.settings.erase.default)
    if mode not in MODES:
        said = (
            f"parameter 'erase' of host {host.name} is {', '.join(MODES[:-1])} or {MODES[-1]}; not {mode!r}"
        )
        raise Invalid([FieldError("erase", said)])
    if not built or mode == "none":
        return {}, (), None
    if host.bmc is None or ramdisk.why_not(host):
        why = ramdisk.why_not(host) or "it has no controller that could start it"
        said = f"its disks are not erased: {why}; ask for it with 'provisionctl host release {host.name} --erase {mode}'"
        return {}, (Note("erase.skipped", said, {"mode": mode}),), None
    columns, opens = ramdisk.opened(host, "erase", {"mode": mode})

    async def both(session: AsyncSession) -> None:
        await opens(session)
        await _gone(session, host=host)

    return columns, (), both


async def _gone(session: AsyncSession, host: ResolvedHost) -> None:
    await ramdisk.end_sessions(session, host)


async def destroy(host: ResolvedHost, world: World) -> Outcome:
    """Removes the virtual machine with its disks."""
    compute, target = world.compute_of(host)
    await compute.destroy(target, host.id)
    (world.settings.state.console_dir / f"{host.id}.log").unlink(missing_ok=True)
    return Complete("virtual machine removed", host={"power": None, "power_seen_at": utcnow()})


async def boot(host: ResolvedHost, world: World) -> Outcome:
    """Starts the machine from the ramdisk, which erases its disks."""
    return await ramdisk.start(host, world, "erase its disks")


async def erase(host: ResolvedHost, world: World) -> Outcome:
    """Waits until every disk that is not to be kept is erased, verified and recorded."""
    return ramdisk.waiting(host, "erasing") or Complete(_erased(host))


def _erased(host: ResolvedHost) -> str:
    assert host.task is not None
    count, kept = host.task.result.get("disks", 0), host.task.result.get("kept") or []
    return f"{count} disks erased" + (f"; kept: {', '.join(map(str, kept))}" if kept else "")


async def off(host: ResolvedHost, world: World) -> Outcome:
    """Switches the erased machine off."""
    return await ramdisk.leave(host, world, power=PowerAction.OFF)


async def unreserve(host: ResolvedHost, world: World) -> Outcome:
    """Forgets the machine's reservation and lease in DHCP."""
    for interface in host.interfaces:
        await world.dhcp.release(interface.mac)
    return Complete("reservations released", host={"deployment_id": None})


async def free(host: ResolvedHost, world: World) -> Outcome:
    """Gives the host's addresses back to their subnets."""

    async def write(session: AsyncSession) -> None:
        await session.execute(delete(Address).where(col(Address.host_id) == host.id))
        await session.execute(update(Interface).where(col(Interface.host_id) == host.id).values(ip=None))

    return Complete("addresses freed", write=write)


def _virtual(host: ResolvedHost) -> bool:
    return host.hypervisor is not None


STEPS = (
    Step("stop", stop, timeout=180.0),
    Step("destroy", destroy, applies=_virtual, timeout=300.0),
    Step("boot", boot, applies=ramdisk.has_task, timeout=300.0),
    Step("erase", erase, applies=ramdisk.has_task, retry_from="boot"),
    Step("off", off, applies=ramdisk.has_task, timeout=180.0),
    Step("unreserve", unreserve),
)
RETIRE_STEPS = (*STEPS[:2], STEPS[-1], Step("free", free))
