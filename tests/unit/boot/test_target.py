"""What a machine boots, as a table over every state."""

from __future__ import annotations

import pytest

from provisiond.boot.target import Boot, Build, Target, boot_target
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
    ("retired", "", None, "discover", Boot.LOCAL),
]


@pytest.mark.parametrize(("state", "step", "build", "unknown", "boot"), TABLE)
def test_boot_target(state: str | None, step: str, build: Build | None, unknown: str, boot: Boot) -> None:
    """One line of the table; every answer comes with a reason."""
    target = boot_target(state, step, build, unknown=unknown, loop_limit=3)
    assert target.boot is boot
    assert target.why
    assert target.builds == (boot in {Boot.INSTALLER, Boot.IMAGE})


def test_every_state_and_step_has_an_answer() -> None:
    """No state or step of the path but building's boot and install ever starts a build, and every state is in the table."""
    for state, steps in PATH.items():
        for step in ["", *(s.name for s in steps)]:
            target = boot_target(str(state), step, IMAGE, unknown="discover", loop_limit=3)
            assert isinstance(target, Target)
            assert target.builds == (state is State.BUILDING and step in {"boot", "install"})
    assert {row[0] for row in TABLE} == {None, *map(str, State)}
