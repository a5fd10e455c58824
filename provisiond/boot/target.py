"""What should this machine boot now? One pure function; every protocol asks it, so no two can disagree.

Nothing here reads a clock, a database or a setting: the caller brings the facts (boot/machine.py reads them).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Boot(StrEnum):
    """The things a machine can be told to boot."""

    LOCAL = "local"  # its own disk
    INSTALLER = "installer"  # the operating system's own installer, from a medium
    IMAGE = "image"  # the ramdisk, which writes a disk image
    WAIT = "wait"  # the ramdisk, which reports and waits
    INSPECT = "inspect"  # the ramdisk, which looks at the hardware and tests it
    ERASE = "erase"  # the ramdisk, which erases the disks
    MENU = "menu"  # its own disk or the waiting ramdisk, as its user chooses
    RESCUE = "rescue"  # the ramdisk, which lets the operator in


@dataclass(frozen=True)
class Target:
    """The answer; ``why`` is a sentence for the boot screen, the log and `provisionctl host show`."""

    boot: Boot
    why: str

    @property
    def builds(self) -> bool:
        """Whether this boot puts an operating system on the disk, and so is counted and carries a token."""
        return self.boot in {Boot.INSTALLER, Boot.IMAGE}

    @property
    def tasked(self) -> bool:
        """Whether this boot is for the host's task, and so is counted there (lifecycle.task_signals.boot_asked)."""
        return self.boot in TASK_STEPS


@dataclass(frozen=True)
class Build:
    """What matters of the host's newest deployment. ``boots`` is how often it was handed its installer already."""

    method: str  # image | installer
    by_network: bool = True  # False: a virtual machine whose disk is made from its image
    built: bool = False
    failed: bool = False
    ended: bool = False
    boots: int = 0


@dataclass(frozen=True)
class Chore:
    """What matters of the host's task. ``boots`` is how often the ramdisk was handed out for it already, ``started`` whether its agent
    has taken it up."""

    kind: str  # inspect | erase | rescue
    started: bool = False
    done: bool = False
    failed: bool = False
    ended: bool = False
    boots: int = 0


BOOTING_STEPS = frozenset({"boot", "install"})
"""Steps of `building` at which the machine is to install. `boot` counts: a fast machine asks before the engine has
written that its power-on is done."""

TASK_STEPS = {
    Boot.INSPECT: ("inspecting", frozenset({"boot", "tests"})),
    Boot.ERASE: ("releasing", frozenset({"boot", "erase"})),
    Boot.RESCUE: ("rescue", frozenset({"boot", "login", "stay"})),
}
"""State and steps at which a machine is to boot the ramdisk for its task."""


def boot_target(
    state: str | None, step: str, build: Build | None, task: Chore | None = None, *, unknown: str, loop_limit: int
) -> Target:  # fmt: skip
    """Decide by the host's ``state`` and ``step`` (``state`` None: no host has this MAC), its newest ``build`` and its ``task``.

    ``unknown`` is the policy of the subnet an unknown machine is in: "discover", "menu" or "ignore". A build whose ``boots`` have
    reached ``loop_limit`` is in a boot loop: it does not boot what was built, and is not started again.
    """
    if state is None:
        if unknown == "discover":
            return Target(Boot.WAIT, "unknown machine: the ramdisk reports it and waits for approval")
        if unknown == "menu":
            return Target(Boot.MENU, "unknown machine: choose what it boots")
        return Target(Boot.LOCAL, "unknown machine: this subnet ignores those")
    if state == "discovered":
        return Target(Boot.WAIT, "discovered: the ramdisk reports and waits for approval")
    if state == "building":
        return _building(step, build, loop_limit)
    for boot, (where, steps) in TASK_STEPS.items():
        if state == where and step in steps:
            return _task(boot, state, task, loop_limit)
    return Target(Boot.LOCAL, f"{state}: boots its own disk")


def _task(boot: Boot, state: str, task: Chore | None, loop_limit: int) -> Target:
    if task is None or task.ended or task.kind != boot:
        return Target(Boot.LOCAL, f"{state}, but there is nothing to do in the ramdisk")
    if task.done:
        return Target(Boot.LOCAL, f"{state}: what was to do in the ramdisk is done")
    if task.failed:
        return Target(
            Boot.LOCAL, f"{state}: it failed in the ramdisk; not started again until someone asks for it"
        )
    if not task.started and task.boots >= loop_limit:
        return Target(
            Boot.LOCAL, f"boot loop: asked {task.boots} times for its ramdisk, whose agent never answered"
        )
    return Target(boot, {
        Boot.INSPECT: "inspecting: the ramdisk looks at the hardware",
        Boot.ERASE: "releasing: the ramdisk erases the disks",
        Boot.RESCUE: "rescue: the ramdisk lets the operator in",
    }[boot])  # fmt: skip


def _building(step: str, build: Build | None, loop_limit: int) -> Target:
    if build is None or build.ended:
        return Target(Boot.LOCAL, "building, but there is no build under way")
    if build.built:
        return Target(Boot.LOCAL, "built: boots its own disk from now on")
    if build.failed:
        return Target(Boot.LOCAL, "its build failed: not started again until someone asks for it")
    if build.boots >= loop_limit:
        return Target(Boot.LOCAL, f"boot loop: asked {build.boots} times for its installer in one build")
    if not build.by_network:
        return Target(Boot.LOCAL, "building: its disk is made from an image")
    if step not in BOOTING_STEPS:
        return Target(Boot.LOCAL, f"building, at step {step or '(none)'}: not its turn to install")
    if build.method == "installer":
        return Target(Boot.INSTALLER, "building: starts its installer")
    return Target(Boot.IMAGE, "building: the ramdisk writes its image")
