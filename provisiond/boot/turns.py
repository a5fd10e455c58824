"""Whose turn it is, where a rack comes up at once: so many begin each second, in the order they asked, and nobody waits unanswered."""

from __future__ import annotations

import time
from collections.abc import Callable

FORGOTTEN_SECONDS = 300.0  # a turn that was given and never taken


class Turns:
    """``rate`` a second, and ``burst`` at once after a quiet time. In memory: after a restart turns are given anew."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap, self._burst, self._clock = 1 / rate, burst, clock
        self._next = 0.0
        self._given: dict[str, float] = {}

    def wait(self, who: str) -> float:
        """Seconds until it is the turn of ``who``; 0 or less: it is now, and stays so until ``end``."""
        now = self._clock()
        if who not in self._given:
            self._forget(now)
            self._given[who] = max(self._next, now - (self._burst - 1) * self._gap)
            self._next = self._given[who] + self._gap
        return self._given[who] - now

    def end(self, who: str) -> None:
        """It took its turn."""
        self._given.pop(who, None)

    def _forget(self, now: float) -> None:
        # in the order they were given, which is that of their times
        while (
            self._given
            and (first := next(iter(self._given), ""))
            and self._given[first] < now - FORGOTTEN_SECONDS
        ):
            del self._given[first]
