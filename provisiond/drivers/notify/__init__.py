"""The notify contract: telling people and programs what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

Severity = Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True)
class Notice:
    """One thing that happened. ``key`` names it for good: a notice that is sent again, after a crash, has the same one.

    ``title`` is one line, ``text`` a few; ``data`` is what programs read.
    """

    key: str
    kind: str
    at: datetime
    title: str
    text: str
    severity: Severity = "info"
    host: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class Notify(Protocol):
    """Drivers of this room; one is made for each address: ``Driver(url, secret=..., timeout=...)``, which raises ConfigError.

    The address is a secret as a whole: no message of a driver has it. Raises only DriverUnavailable (try again) and
    DriverRejected (this notice will never be taken).
    """

    async def send(self, notice: Notice) -> None:
        """Hand the notice over; when this returns, it has been taken."""

    async def close(self) -> None:
        """Let go of connections."""
