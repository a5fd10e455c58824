"""inspecting: what the machine is made of and whether it is well: its controller's sensors, and, where asked for, the ramdisk."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.drivers.power import PowerAction
from provisiond.errors import Unsupported
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle import task_signals, tasks
from provisiond.lifecycle.outcome import Complete, Failed, Note, Outcome, Step, Write
from provisiond.lifecycle.states import ramdisk
from provisiond.lifecycle.table import Verb
from provisiond.lifecycle.world import World


def at_enrolment(host: ResolvedHost, world: World) -> tuple[dict[str, Any], Write | None]:
    """Columns and write that give a new host its inspection in the ramdisk, where its parameter or the setting wants one.

    The host's parameter ``inspect``: ramdisk | sensors; ``tests``: names of hardware tests, or all.
    """
    asked = host.parameters.get("tests", world.settings.inspection.tests)
    names = [asked] if isinstance(asked, str) else asked if isinstance(asked, list | tuple) else []
    tests = [str(name) for name in names]
    if (given := host.task) is not None and given.kind == "inspect" and "tests" not in given.options:
        options = {**given.options, "tests": tests}  # a discovery rule asked for it, to set its controller up

        async def write(session: AsyncSession) -> None:
            await tasks.set_task(session, given.id, options=options)

        return {}, write
    wanted = host.parameters.get("inspect", "ramdisk" if world.settings.inspection.on_enrol else "sensors")
    if wanted != "ramdisk" or host.row.task_id is not None or ramdisk.why_not(host):
        return {}, None
    return ramdisk.opened(host, "inspect", {"tests": tests})


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


async def boot(host: ResolvedHost, world: World) -> Outcome:
    """Restarts the machine into the ramdisk; one that runs it already is not restarted."""
    return await ramdisk.start(host, world, "inspect it")


async def wait(host: ResolvedHost, world: World) -> Outcome:
    """Waits for the ramdisk to have told the facts and run the hardware tests. A test that fails fails the step only where the
    host's parameter tests_must_pass is true."""
    standing = ramdisk.waiting(host, "inspecting")
    if standing is not None:
        return standing
    assert host.task is not None
    failed = await task_signals.failed_tests(world.store, host.task.id)
    if not failed:
        return Complete("inspected")
    text = f"hardware tests failed: {', '.join(failed)}; see 'provisionctl host tests {host.name}'"
    if host.parameters.get("tests_must_pass") is True:
        return Failed(
            f"host {host.name}: {text}, repair it, then 'provisionctl host retry {host.name}'",
            retryable=False, kind="tests",
        )  # fmt: skip
    return Complete(text, notes=(Note("hardware.unwell", text, {"failed": failed}),))


async def back(host: ResolvedHost, world: World) -> Outcome:
    """Switches the machine off, to boot from its disk; not where its build by image follows, which goes on in the same ramdisk."""
    if host.row.task_id is None:
        return Complete("called off")
    if host.row.wanted == Verb.BUILD and host.row.method == "image":
        columns, write = ramdisk.end(host)
        return Complete("left running: its build follows", host=columns, write=write)
    return await ramdisk.leave(host, world, power=PowerAction.OFF)


STEPS = (
    Step("sensors", sensors, applies=lambda host: host.bmc is not None, timeout=180.0),
    Step("boot", boot, applies=ramdisk.has_task, timeout=300.0),
    Step("tests", wait, applies=ramdisk.has_task, retry_from="boot"),
    Step("back", back, applies=ramdisk.has_task, timeout=300.0),
)
