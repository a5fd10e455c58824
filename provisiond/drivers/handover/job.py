"""One run as the parts that carry it out see it, inside the run's own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from provisiond.drivers.handover import HandoverTarget
from provisiond.drivers.handover.ssh import Ssh

MAX_OUTPUT = 8 << 20
"""More output than this is cut off, with a line that says so."""


@dataclass
class Job:
    """``run`` is the run's directory, ``deadline`` on the monotonic clock; a driver's part looks at ``stop()`` often."""

    run: Path
    target: HandoverTarget
    protocols: tuple[str, ...]
    output: BinaryIO
    deadline: float
    cancelled: Callable[[], bool]
    _written: int = 0

    @property
    def ssh(self) -> Ssh:
        return Ssh(self.target, self.run)

    def stop(self) -> bool:
        """The run was cancelled, or its time is up."""
        return self.cancelled() or time.monotonic() > self.deadline

    def say(self, text: str | bytes) -> None:
        """Add to the output."""
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        if self._written > MAX_OUTPUT:
            return
        if self._written + len(data) > MAX_OUTPUT:
            data = data[: MAX_OUTPUT - self._written] + b"\n... the rest of the output is left out\n"
            self._written = MAX_OUTPUT
        self._written += len(data)
        self.output.write(data)


@dataclass(frozen=True)
class Ended:
    """What a driver's part returns. ``message`` says what failed; ``stats`` are its figures per host."""

    ok: bool
    message: str = ""
    stats: dict[str, dict[str, int]] = field(default_factory=dict)


class Failure(Exception):
    """The run cannot go on; the message is for the operator."""
