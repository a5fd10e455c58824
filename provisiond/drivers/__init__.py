"""Rooms of drivers. Each room has one contract in its ``__init__``, a file per driver, and entry points to add more.

A driver knows no tables and no other room: it is handed small frozen dataclasses. It raises only
DriverUnavailable (try again), DriverRejected (stop) and Unsupported. Every call is idempotent: asked twice for the
same thing, it finds what is already there.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from provisiond.errors import ConfigError


def load(room: str, name: str) -> Any:
    """The class of driver ``name`` in ``room`` (power, compute, dhcp, handover), imported on first use.

    Raises ConfigError when there is none of that name, listing those there are.
    """
    found = {point.name: point for point in entry_points(group=f"provisiond.{room}")}
    if name not in found:
        raise ConfigError(
            f"there is no {room} driver {name!r}; there are: {', '.join(sorted(found)) or 'none'}"
        )
    return found[name].load()
