"""enrolled: is the controller or the hypervisor there, and does it let us in?"""

from __future__ import annotations

from provisiond.errors import DriverRejected
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle.outcome import Complete, Failed, Outcome, Step
from provisiond.lifecycle.states.inspecting import at_enrolment
from provisiond.lifecycle.world import World


async def verify(host: ResolvedHost, world: World) -> Outcome:
    """Reads the power state (physical), or asks the hypervisor for the machine (virtual); decides whether the ramdisk is to inspect it."""
    columns, write = at_enrolment(host, world)
    try:
        if host.hypervisor is not None:
            compute, target = world.compute_of(host)
            await compute.find(target, host.id)
            return Complete(f"hypervisor {host.hypervisor.name} answers", host=columns, write=write)
        reach = world.power_of(host)
        if reach is None:
            told = "no controller: it is switched by hand and found by its MAC"
            return Complete(told, host=columns, write=write)
        power, bmc = reach
        state = await power.state(bmc)
    except DriverRejected as error:
        return Failed(
            f"{error}; set the right address and password with 'provisionctl host update {host.name} --bmc ...', "
            f"then 'provisionctl host retry {host.name}'",
            retryable=False,
            kind="rejected",
        )
    seen = {"power": str(state), "power_seen_at": utcnow()}
    return Complete(f"controller answers; power is {state}", host={**seen, **columns}, write=write)


STEPS = (Step("verify", verify),)
