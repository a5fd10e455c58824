"""The share of hosts that a feature flag is on for."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

from provisiond.inventory.flags import is_on

HOSTS = [str(uuid.UUID(int=n)) for n in range(4000)]


def on(percent: float, name: str = "disk") -> set[str]:
    flag = SimpleNamespace(name=name, percent=percent, groups=[], hosts=[], off_hosts=[])
    return {host for host in HOSTS if is_on(flag, host, [])}


def test_a_share_is_stable_and_only_grows() -> None:
    """Whoever is in at 5 % is in at 25 %; none at 0, all at 100; about as many as it says."""
    assert on(0) == set() and on(100) == set(HOSTS)
    assert on(5) == on(5) < on(25) < on(80)
    assert abs(len(on(25)) - 1000) < 150


def test_two_flags_take_different_hosts() -> None:
    """Or the same few machines would try everything that is new."""
    assert len(on(10) & on(10, "other")) < 100
