"""Whose turn it is, where a rack comes up at once: in the order they asked, no faster than the daemon gets through."""

from __future__ import annotations

import time
from collections.abc import Callable

GONE_SECONDS = 30.0  # who has not asked again for so long does not wait any more
TAKEN_SECONDS = 300.0  # a turn that was given and never taken is forgotten
SIDE_BY_SIDE = 4  # turns that last longer than their share are this many at once


class Turns:
    """``rate`` a second, ``burst`` at once after a quiet time; fewer when taking one lasts longer.

    In memory: after a restart turns are given anew.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._least, self._burst, self._clock = 1 / rate, burst, clock
        self._lasts = 0.0  # seconds that one takes, of late
        self._next = 0.0
        self._given: dict[str, float] = {}
        self._asked: dict[str, float] = {}  # in the order of their first asking

    def wait(self, who: str) -> float:
        """0: it is the turn of ``who``, and stays so until ``end``. Else the seconds after which to ask again."""
        now, gap = self._clock(), max(self._least, self._lasts / SIDE_BY_SIDE)
        _forget(self._given, now - TAKEN_SECONDS)
        if who in self._given:
            return 0.0
        self._asked[who] = now
        _forget(self._asked, now - GONE_SECONDS)
        self._next = max(self._next, now - (self._burst - 1) * gap)
        ahead = list(self._asked).index(who)
        due = self._next + ahead * gap
        if due > now:
            return due - now
        self._next += gap
        del self._asked[who]
        self._given[who] = now
        return 0.0

    def end(self, who: str, lasted: float) -> None:
        """It took its turn, in ``lasted`` seconds."""
        self._given.pop(who, None)
        self._lasts += (lasted - self._lasts) / 8


def _forget(times: dict[str, float], before: float) -> None:
    for who in [who for who, at in times.items() if at < before]:
        del times[who]
