"""The processes that render for a shadow run: one chunk of hosts each at a time, answers in the order they were asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from provisiond.errors import ProvisiondError
from provisiond.rollouts.shadow_worker import LENGTH, pack

START_SECONDS = 60.0


class WorkerDied(ProvisiondError):
    """A worker process ended in the middle of its work."""


class Pool:
    """``count`` processes with the same ``task`` (see shadow_worker.Worker). Use as an asynchronous context manager."""

    def __init__(self, count: int, task: dict[str, Any]) -> None:
        self._count, self._task = count, task
        self._workers: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Pool:
        try:
            for _ in range(self._count):
                self._workers.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "provisiond.rollouts.shadow_worker",
                        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
                    )
                )  # fmt: skip
            async with asyncio.timeout(START_SECONDS):
                await asyncio.gather(*(self._ask(worker, self._task) for worker in self._workers))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End them at once, with what they started (validators)."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
        for worker in self._workers:
            await worker.wait()
        self._workers.clear()

    async def answers(
        self, chunks: AsyncIterator[list[str]]
    ) -> AsyncIterator[tuple[list[str], dict[str, Any]]]:
        """Each chunk of host ids with its answer, in order; no more chunks are under way or kept than there are workers.

        Raises WorkerDied, ProvisiondError (what a worker could not do).
        """
        free = list(self._workers)
        under_way: deque[tuple[list[str], asyncio.Task[Any], asyncio.subprocess.Process]] = deque()

        async def begin() -> None:
            while free and (ids := await anext(chunks, None)) is not None:
                worker = free.pop()
                under_way.append((ids, asyncio.create_task(self._ask(worker, {"ids": ids})), worker))

        try:
            await begin()
            while under_way:
                ids, asked, worker = under_way.popleft()
                answer = await asked
                free.append(worker)
                await begin()  # before the answer is stored, so that nobody waits for that
                yield ids, answer
        finally:
            for _, asked, _worker in under_way:
                asked.cancel()
            await asyncio.gather(*(asked for _, asked, _ in under_way), return_exceptions=True)

    async def _ask(self, worker: asyncio.subprocess.Process, message: Any) -> Any:
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(pack(message))
            await worker.stdin.drain()
            (length,) = LENGTH.unpack(await worker.stdout.readexactly(LENGTH.size))
            answer = json.loads(await worker.stdout.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerDied(
                f"a rendering process ended by itself (exit status {await worker.wait()}); the daemon's log may say why"
            ) from None
        if "error" in answer:
            raise ProvisiondError(answer["error"])
        return answer
