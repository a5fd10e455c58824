"""rescue: a host in service is started from the ramdisk, for its operator to repair it; its disks are left alone."""

from __future__ import annotations

from provisiond.drivers.power import PowerAction
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle import task_signals
from provisiond.lifecycle.outcome import Complete, Continue, Note, Outcome, Step
from provisiond.lifecycle.states import ramdisk
from provisiond.lifecycle.world import World


async def boot(host: ResolvedHost, world: World) -> Outcome:
    """Restarts the machine into the ramdisk."""
    return await ramdisk.start(host, world, "let the operator in")


async def login(host: ResolvedHost, world: World) -> Outcome:
    """Waits until the ramdisk lets the operator in, and tells the address."""
    task = host.task
    assert task is not None
    if task_signals.is_up(task.progress_text) and task.failed_at is None:
        return Complete(task.progress_text, notes=(Note("rescue.up", task.progress_text),))
    return ramdisk.waiting(host, "starting the rescue") or Complete("the ramdisk has let go of the rescue")


async def stay(host: ResolvedHost, world: World) -> Outcome:
    """Stays in rescue until 'unrescue', release or rebuild; a machine that restarts meanwhile gets the ramdisk again."""
    return Continue("in rescue")


async def leave(host: ResolvedHost, world: World) -> Outcome:
    """Restarts the machine from its disk."""
    world.consoles.leave(host.id)
    return await ramdisk.leave(host, world, power=PowerAction.CYCLE)


STEPS = (
    Step("boot", boot, timeout=300.0),
    Step("login", login, retry_from="boot"),
    Step("stay", stay),
    Step("leave", leave, timeout=300.0),
)
