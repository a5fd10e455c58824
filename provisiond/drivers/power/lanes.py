"""Blocking work in a bounded number of threads, one at a time per controller.

A controller that did not answer last time is tried in a small pool of its own, so that any number of dead ones leaves the
threads to the living.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Lane:
    """One controller's turn. ``failing``: it did not answer last time."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failing: bool = False


class Lanes:
    """The threads of one driver: ``threads`` for the living, ``doubtful`` for those that raised ``dead`` last time."""

    def __init__(self, name: str, dead: type[Exception], threads: int = 64, doubtful: int = 16) -> None:
        self._dead = dead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._doubtful = ThreadPoolExecutor(doubtful, thread_name_prefix=f"{name}-doubtful")

    async def run(self, lane: Lane, work: Callable[[], T]) -> T:
        """``work`` in a thread, when it is its turn. A cancelled caller leaves at once, the next one waits until the thread is done."""
        await lane.lock.acquire()
        try:
            pool = self._doubtful if lane.failing else self._pool
            future = asyncio.get_running_loop().run_in_executor(pool, work)
        except BaseException:
            lane.lock.release()
            raise
        future.add_done_callback(lambda done: self._done(lane, done))
        return await asyncio.shield(future)

    def _done(self, lane: Lane, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            lane.failing = isinstance(future.exception(), self._dead)
        lane.lock.release()

    def later(self, work: Callable[[], Any]) -> None:
        """``work`` in a thread some time, for nobody to wait for."""
        self._pool.submit(work)

    async def close(self) -> None:
        """End the threads, once they have ended what they do."""
        for pool in (self._doubtful, self._pool):
            await asyncio.to_thread(pool.shutdown)
