"""How far a host is, how much time is left, and when the watching is over."""

from __future__ import annotations

import time
from typing import Any

import pytest

from provisiond.ctl.watch import Wait


class Host:
    """Stands where the client stands; answers with one host."""

    def __init__(self, **fields: Any) -> None:
        self.fields = {
            "state": "building",
            "step": "install",
            "failure": None,
            "retry_at": None,
            "deadline_at": None,
            "wanted": None,
        }
        self.fields |= fields

    def get(self, _path: str) -> dict[str, Any]:
        return self.fields


def wait(goal: str = "active", durations: dict[str, float] | None = None, **fields: Any) -> Wait:
    """A wait for a host with these fields."""
    return Wait(Host(**fields), "web01", goal, durations or {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("goal", "fields", "over", "said"),
    [
        ("active", {"state": "active"}, True, None),
        ("active", {}, False, None),
        ("active", {"failure": "no disk", "retry_at": "2026-11-21T00:00:00Z"}, False, None),
        ("active", {"failure": "no disk"}, True, "no disk"),
        ("active", {"state": "ready", "wanted": "build"}, False, None),
        ("active", {"state": "ready"}, True, "somebody asked for something else"),
        ("ready", {"state": "ready"}, True, None),
        ("ready", {"state": "releasing"}, False, None),
        ("retired", {"state": "retired", "step": "free"}, False, None),
        ("retired", {"state": "retired", "step": ""}, True, None),
    ],
)
def test_when_it_is_over(goal: str, fields: dict[str, Any], over: bool, said: str | None) -> None:
    """Over when the goal is reached, when a failure stands, or when the host went elsewhere; not while it is tried again."""
    ended, cause = wait(goal, **fields).look()
    assert ended is over
    assert (cause is None) == (said is None) and (said or "") in (cause or "")


def test_the_bar_goes_by_what_earlier_hosts_took() -> None:
    """Half through a build that took 100 s, after states of 10 s: and what is left is said."""
    it = wait(
        durations={"enrolled": 5, "inspecting": 5, "building": 100, "provisioned": 40, "configuring": 50}
    )
    it.look()
    it.since = time.monotonic() - 50
    assert it.fraction() == pytest.approx(60 / 200, abs=0.01)
    assert it.left() == "about 2:20 left"
    it.percent = 90
    assert it.fraction() == pytest.approx(100 / 200, abs=0.01)
    it.since = time.monotonic() - 1000
    assert it.fraction() < 0.99


def test_without_earlier_hosts_the_limit_is_said() -> None:
    """Nobody knows how long it takes; how long it may take is known."""
    from datetime import UTC, datetime, timedelta

    it = wait(deadline_at=(datetime.now(UTC) + timedelta(minutes=90)).isoformat())
    it.look()
    assert it.left() in ("1:30:00 at most for this", "1:29:59 at most for this")
