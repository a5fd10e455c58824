"""releasing and retired: what was made for the host is removed, whatever of it there is.

These steps converge: each looks at what is there, so they also clean up after a build that was cancelled half-way.
"""

from __future__ import annotations

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from provisiond.drivers.power import PowerAction
from provisiond.errors import DriverRejected
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Address, Interface, utcnow
from provisiond.lifecycle.outcome import Complete, Note, Outcome, Step
from provisiond.lifecycle.states.configuring import run_key
from provisiond.lifecycle.world import World


async def stop(host: ResolvedHost, world: World) -> Outcome:
    """Ends a handover that may still run, and switches a physical machine off."""
    if host.deployment is not None:
        _name, driver = world.handover_of(host)
        if driver is not None:
            await driver.cancel(run_key(host))
    world.consoles.leave(host.id)
    reach = world.power_of(host) if host.bmc is not None else None
    if reach is None:
        return Complete("nothing to switch off")
    power, target = reach
    try:
        state = await power.set(target, PowerAction.OFF)
    except DriverRejected as error:
        if host.row.state != "retired":
            raise
        # A machine that is gone for good often has no working controller any more; it must not keep its host from retiring.
        return Complete("not switched off", notes=(Note("power.unreachable", str(error)),))
    return Complete(f"power is {state}", host={"power": str(state), "power_seen_at": utcnow()})


async def destroy(host: ResolvedHost, world: World) -> Outcome:
    """Removes the virtual machine with its disks."""
    compute, target = world.compute_of(host)
    await compute.destroy(target, host.id)
    (world.settings.state.console_dir / f"{host.id}.log").unlink(missing_ok=True)
    return Complete("virtual machine removed", host={"power": None, "power_seen_at": utcnow()})


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
    Step("unreserve", unreserve),
)
RETIRE_STEPS = (*STEPS, Step("free", free))
