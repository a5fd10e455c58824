"""What a machine boots, as a table over every state."""

from __future__ import annotations

import pytest

from provisiond.boot.target import TASK_STEPS, Boot, Build, Chore, Target, boot_target
from provisiond.lifecycle.path import PATH
from provisiond.lifecycle.table import State

IMAGE, INSTALLER = Build("image"), Build("installer")

TABLE = [
    # state, step, build, unknown -> boot
    (None, "", None, "ignore", Boot.LOCAL),
    (None, "", None, "discover", Boot.WAIT),
    ("discovered", "", None, "ignore", Boot.WAIT),
    ("enrolled", "verify", None, "discover", Boot.LOCAL),
    ("inspecting", "sensors", None, "discover", Boot.LOCAL),
    ("ready", "", None, "discover", Boot.LOCAL),
    ("building", "prepare", IMAGE, "ignore", Boot.LOCAL),
    ("building", "reserve", IMAGE, "ignore", Boot.LOCAL),
    ("building", "boot", IMAGE, "ignore", Boot.IMAGE),
    ("building", "install", IMAGE, "ignore", Boot.IMAGE),
    ("building", "boot", INSTALLER, "ignore", Boot.INSTALLER),
    ("building", "install", INSTALLER, "ignore", Boot.INSTALLER),
    ("building", "install", None, "ignore", Boot.LOCAL),
    ("building", "install", Build("image", built=True), "ignore", Boot.LOCAL),
    ("building", "install", Build("installer", built=True), "ignore", Boot.LOCAL),
    ("building", "install", Build("image", failed=True), "ignore", Boot.LOCAL),
    ("building", "install", Build("image", ended=True), "ignore", Boot.LOCAL),
    ("building", "install", Build("image", boots=2), "ignore", Boot.IMAGE),
    ("building", "install", Build("image", boots=3), "ignore", Boot.LOCAL),
    ("building", "boot", Build("image", by_network=False), "ignore", Boot.LOCAL),
    ("building", "local", Build("image", built=True), "ignore", Boot.LOCAL),
    ("building", "local", IMAGE, "ignore", Boot.LOCAL),
    ("provisioned", "first-boot", IMAGE, "discover", Boot.LOCAL),
    ("configuring", "handover", INSTALLER, "discover", Boot.LOCAL),
    ("active", "", INSTALLER, "discover", Boot.LOCAL),
    ("releasing", "", IMAGE, "discover", Boot.LOCAL),
    ("rescue", "stay", IMAGE, "discover", Boot.LOCAL),
    ("retired", "", None, "discover", Boot.LOCAL),
]

INSPECT, ERASE, RESCUE = Chore("inspect"), Chore("erase"), Chore("rescue")
TASKS = [
    # state, step, task -> boot
    ("inspecting", "sensors", INSPECT, Boot.LOCAL),
    ("inspecting", "boot", INSPECT, Boot.INSPECT),
    ("inspecting", "tests", INSPECT, Boot.INSPECT),
    ("inspecting", "back", INSPECT, Boot.LOCAL),
    ("inspecting", "tests", Chore("inspect", started=True, boots=9), Boot.INSPECT),
    ("inspecting", "tests", Chore("inspect", boots=2), Boot.INSPECT),
    ("inspecting", "tests", Chore("inspect", boots=3), Boot.LOCAL),
    ("inspecting", "tests", Chore("inspect", done=True), Boot.LOCAL),
    ("inspecting", "tests", Chore("inspect", failed=True), Boot.LOCAL),
    ("inspecting", "tests", Chore("inspect", ended=True), Boot.LOCAL),
    ("inspecting", "tests", ERASE, Boot.LOCAL),
    ("inspecting", "tests", None, Boot.LOCAL),
    ("releasing", "stop", ERASE, Boot.LOCAL),
    ("releasing", "boot", ERASE, Boot.ERASE),
    ("releasing", "erase", ERASE, Boot.ERASE),
    ("releasing", "erase", Chore("erase", done=True), Boot.LOCAL),
    ("releasing", "off", ERASE, Boot.LOCAL),
    ("releasing", "unreserve", None, Boot.LOCAL),
    ("releasing", "erase", RESCUE, Boot.LOCAL),
    ("rescue", "boot", RESCUE, Boot.RESCUE),
    ("rescue", "login", RESCUE, Boot.RESCUE),
    ("rescue", "stay", Chore("rescue", started=True, boots=5), Boot.RESCUE),
    ("rescue", "leave", RESCUE, Boot.LOCAL),
    ("active", "", RESCUE, Boot.LOCAL),
    ("ready", "", INSPECT, Boot.LOCAL),
]


@pytest.mark.parametrize(("state", "step", "build", "unknown", "boot"), TABLE)
def test_boot_target(state: str | None, step: str, build: Build | None, unknown: str, boot: Boot) -> None:
    """One line of the table; every answer comes with a reason."""
    target = boot_target(state, step, build, unknown=unknown, loop_limit=3)
    assert target.boot is boot
    assert target.why
    assert target.builds == (boot in {Boot.INSTALLER, Boot.IMAGE})


@pytest.mark.parametrize(("state", "step", "task", "boot"), TASKS)
def test_boot_for_a_task(state: str, step: str, task: Chore | None, boot: Boot) -> None:
    """The ramdisk is booted where the host stands at a step that waits for it, for a task of that kind that is open and not done."""
    target = boot_target(state, step, None, task, unknown="discover", loop_limit=3)
    assert target.boot is boot
    assert target.why
    assert target.tasked == (boot is not Boot.LOCAL)
    assert not target.builds


def test_the_steps_of_tasks_are_steps_of_their_states() -> None:
    """A step that is renamed would never boot the ramdisk."""
    for state, steps in TASK_STEPS.values():
        assert steps <= {step.name for step in PATH[State(state)]}


def test_every_state_and_step_has_an_answer() -> None:
    """No state or step of the path but building's boot and install ever starts a build, and every state is in the table."""
    for state, steps in PATH.items():
        for step in ["", *(s.name for s in steps)]:
            target = boot_target(str(state), step, IMAGE, unknown="discover", loop_limit=3)
            assert isinstance(target, Target)
            assert target.builds == (state is State.BUILDING and step in {"boot", "install"})
    assert {row[0] for row in TABLE} == {None, *map(str, State)}


def test_unknown_machine_chooses() -> None:
    """Where the subnet says menu; that builds nothing and is no task."""
    target = boot_target(None, "", None, unknown="menu", loop_limit=3)
    assert target.boot is Boot.MENU and not target.builds and not target.tasked
