"""inspecting: what the machine's controller tells of its hardware without booting it."""

from __future__ import annotations

from provisiond.errors import Unsupported
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle.outcome import Complete, Note, Outcome, Step
from provisiond.lifecycle.world import World


async def sensors(host: ResolvedHost, world: World) -> Outcome:
    """Reads the sensors; those that are not well are named in the history. A controller without sensors is fine."""
    reach = world.power_of(host)
    assert reach is not None
    power, target = reach
    try:
        readings = await power.sensors(target)
    except Unsupported as error:
        return Complete(f"no sensors: {error}")
    unwell = {
        r.name: {"value": r.value, "unit": r.unit, "health": r.health} for r in readings if r.health != "ok"
    }
    notes = (
        (Note("hardware.unwell", f"{len(unwell)} of {len(readings)} sensors are not well", unwell),)
        if unwell
        else ()
    )
    return Complete(f"{len(readings)} sensors read", notes=notes)


STEPS = (Step("sensors", sensors, applies=lambda host: host.bmc is not None, timeout=180.0),)
