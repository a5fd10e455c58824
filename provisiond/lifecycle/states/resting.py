"""ready and active: nothing is done until somebody asks; a wish for power is carried out here."""

from __future__ import annotations

from provisiond.drivers.power import PowerAction
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Note, Outcome, Step
from provisiond.lifecycle.world import World


async def power(host: ResolvedHost, world: World) -> Outcome:
    """Switches as asked, verified by reading back. Without a wish the host goes back to rest."""
    wanted = host.row.power_wanted
    if wanted is None:
        return Continue()
    reach = world.power_of(host)
    if reach is None:
        return Failed(
            f"host {host.name} has no controller: nothing can switch it; give it one with "
            f"'provisionctl host update {host.name} --bmc ipmi://user@address'",
            retryable=False, kind="rejected",
        )  # fmt: skip
    driver, target = reach
    state = await driver.set(target, PowerAction(wanted))
    seen = {"power": str(state), "power_seen_at": utcnow(), "power_wanted": None}
    return Complete(
        f"power {wanted}: now {state}", host=seen, notes=(Note("power.set", f"{wanted}: {state}"),)
    )


STEPS = (Step("power", power, applies=lambda host: host.row.power_wanted is not None),)
