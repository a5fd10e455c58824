"""Which step comes next, with tables of steps made for the purpose."""

from __future__ import annotations

import pytest

from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle import path
from provisiond.lifecycle.outcome import Complete, Outcome, Step
from provisiond.lifecycle.table import State
from provisiond.lifecycle.world import World
from tests.unit.lifecycle.hosts import a_host


async def run(_host: ResolvedHost, _world: World) -> Outcome:
    return Complete()


def uefi(host: ResolvedHost) -> bool:
    return host.row.firmware == "uefi"


STEPS = (Step("one", run), Step("two", run, applies=uefi), Step("three", run, retry_from="one"))


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building takes three steps, the second with UEFI only; ready takes none."""
    monkeypatch.setattr(path, "PATH", {State.BUILDING: STEPS, State.READY: (), State.ACTIVE: (STEPS[1],)})


def name(step: Step | None) -> str | None:
    return step.name if step else None


@pytest.mark.parametrize(
    ("firmware", "after", "then"),
    [
        ("bios", "", "one"),
        ("bios", "one", "three"),
        ("uefi", "one", "two"),
        ("uefi", "two", "three"),
        ("bios", "three", None),
        ("bios", "renamed", "one"),
    ],
)
def test_the_next_step(firmware: str, after: str, then: str | None) -> None:
    """Steps that do not apply are left out; after the last there is none; an unknown one begins anew."""
    assert name(path.next_step(a_host(firmware=firmware), State.BUILDING, after)) == then


def test_a_state_without_steps_is_through() -> None:
    """No step at all, or none that applies."""
    assert path.next_step(a_host(), State.READY, "") is None
    assert path.next_step(a_host(firmware="bios"), State.ACTIVE, "") is None


@pytest.mark.parametrize(
    ("stands", "step"), [("", "one"), ("three", "three"), ("renamed", "one"), ("two", "two")]
)
def test_where_a_host_stands(stands: str, step: str) -> None:
    """At the step it names, even where that applies no more; a fresh or renamed one means the first."""
    assert name(path.find_step(a_host(firmware="bios"), State.BUILDING, stands)) == step


@pytest.mark.parametrize(
    ("stands", "step"), [("three", "one"), ("two", "two"), ("renamed", "renamed"), ("", "")]
)
def test_where_a_retry_begins(stands: str, step: str) -> None:
    """At the step that declares itself repeatable: one that waits for a machine begins where that machine is started."""
    assert path.retry_step(State.BUILDING, stands) == step


def test_the_steps_of_a_host() -> None:
    """For those who show what is to come."""
    assert [step.name for step in path.steps_of(a_host(firmware="bios"), State.BUILDING)] == ["one", "three"]
