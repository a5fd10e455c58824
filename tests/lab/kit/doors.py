"""What a booting machine asked of provisiond's doors, read from the daemon's own log: TFTP, HTTP, the engine.

door = Doors(lab, "metal1")
door.until("/agent/plan", timeout=300)
door.tell()                                # one line for each leg, with its second
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from tests.lab.kit.lab import Lab


@dataclass(frozen=True)
class Leg:
    """``seconds`` since the engine began to switch the machine on; ``by`` is tftp or http."""

    seconds: float
    by: str
    path: str
    bytes: int


class Doors:
    """What the machine of host ``name`` asked for so far."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name

    def until(self, path: str, timeout: float) -> Leg:
        """The first time the machine got ``path`` (tokens read TOKEN). AssertionError with the whole story when it never does."""
        end = time.monotonic() + timeout
        while True:
            for leg in self.legs():
                if leg.path == path:
                    return leg
            host = self.lab.daemon.host(self.name)
            failed = host["failure"] and not host["retry_at"]
            if failed or time.monotonic() > end:
                why = host["failure"] if failed else f"it never asked for {path} in {timeout:.0f} s"
                raise AssertionError(f"{self.name}: {why}\n{self.text()}\n{self.lab.story(self.name)}")
            time.sleep(0.5)

    def legs(self) -> list[Leg]:
        """Every file that was sent to the machine, in order."""
        begin = self._begin()
        address = self.lab.daemon.host(self.name)["interfaces"][0]["ip"]
        return [leg for leg in self._all(address, begin) if leg.seconds >= 0] if begin else []

    def text(self) -> str:
        """The legs as lines."""
        return "\n".join(
            f"  {self.name:<12} {leg.seconds:6.1f} s  {leg.by} {leg.path} ({leg.bytes} bytes)"
            for leg in self.legs()
        )

    def tell(self) -> None:
        """Print the legs."""
        print(f"\n{self.text()}", flush=True)

    def _begin(self) -> datetime | None:
        for event in self.lab.history(self.name):
            if event["kind"] == "step.started" and event["step"] == "boot":
                return datetime.fromisoformat(event["at"])
        return None

    def _all(self, address: str, begin: datetime) -> Iterator[Leg]:
        for line in self.lab.daemon.log().splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue  # what is not the daemon's own, or not written to its end yet
            by = {"TFTP transfer done": "tftp", "boot.request": "http"}.get(said.get("event", ""))
            if by is None or str(said["client"]).split(" ")[0] != address or said.get("status", 200) >= 400:
                continue
            at = datetime.fromisoformat(said["timestamp"])
            yield Leg((at - begin).total_seconds(), by, said["path"], said["bytes"])
