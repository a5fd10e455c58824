"""Notify that only notes down what it was told: for tests of everything above."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from provisiond.drivers.notify import Notice
from provisiond.errors import ConfigError, DriverError


class FakeNotify:
    """``fake://memory`` keeps notices in ``sent``; ``fake:///DIRECTORY`` also in its file notices.jsonl, which outlives a kill.

    ``fail_next`` errors are raised first, one a call.
    """

    def __init__(self, url: str, *, secret: str = "", timeout: float = 20.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "fake":
            raise ConfigError("notify.urls: an address of the fake begins with fake://")
        self.sent: list[Notice] = []
        self.fail_next: list[DriverError] = []
        self._file = Path(parts.path) / "notices.jsonl" if parts.path else None

    async def send(self, notice: Notice) -> None:
        if self.fail_next:
            raise self.fail_next.pop(0)
        self.sent.append(notice)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(json.dumps({**asdict(notice), "at": notice.at.isoformat()}) + "\n")

    async def close(self) -> None:
        """Nothing is held open."""
