"""dnsmasq as a child of the daemon: started, listened to, restarted when it dies, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from provisiond.errors import DriverUnavailable

log = structlog.get_logger(__name__)

START_SECONDS = 10.0
STOP_SECONDS = 3.0
BACKOFF = (0.2, 30.0)  # seconds: first pause and longest pause between two starts


class Child:
    """One dnsmasq on configuration file ``config``.

    ``prepare`` is called while it is down, before each start; ``on_line`` gets each line of its log without
    the program's name; it serves once a line ends with ``ready``. ``problem`` says why it does not serve, in
    its own words; None while it does.
    """

    def __init__(
        self,
        program: str,
        config: Path,
        *,
        ready: str,
        prepare: Callable[[], None],
        on_line: Callable[[str], None],
    ) -> None:
        # setpriv sets the parent-death signal and becomes dnsmasq: no Python code runs between fork and exec
        self._argument = f"--conf-file={config}"
        self._argv = ["setpriv", "--pdeathsig", "KILL", "--", program, "--keep-in-foreground", self._argument]
        self._ready, self._prepare, self._on_line = ready, prepare, on_line
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[str | None] | None = (
            None  # of the start under way: None, or what failed
        )
        self._serving = asyncio.Event()
        self._wanted_down = False
        self._lock = asyncio.Lock()
        self.problem: str | None = "it was not started yet"
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def restart(self) -> None:
        """(Re)start it now and wait until it serves.

        DriverUnavailable with its words when it does not; it is then tried again and again, with pauses.
        """
        async with self._lock:
            if self._task is None:
                await end_leftovers(self._argument)
            await self._down()
            outcome = self._outcome = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(), name="dhcp-dnsmasq")
            problem = await outcome
        if problem:
            raise DriverUnavailable(f"dnsmasq does not start: {problem}")

    async def serving(self, seconds: float) -> None:
        """Wait until it serves. DriverUnavailable, with the cause, when that takes longer than ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._serving.wait()
        except TimeoutError:
            raise DriverUnavailable(f"dnsmasq does not serve DHCP: {self.problem}") from None

    async def stop(self) -> None:
        """End it for good."""
        async with self._lock:
            await self._down()
            self.problem = "it was stopped"

    async def _down(self) -> None:
        if self._task is None:
            return
        self._wanted_down = True
        process = self._process
        if process and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task, self._wanted_down = None, False

    async def _run(self) -> None:
        pause = BACKOFF[0]
        while True:
            began = time.monotonic()
            words = await self._live()
            if self._wanted_down:
                return
            self.problem = words
            self._settle(words)
            if time.monotonic() - began > BACKOFF[1]:
                pause = BACKOFF[0]
            log.error("dnsmasq ended; it is started again", cause=words, pause_seconds=round(pause, 1))
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])

    async def _live(self) -> str:
        """One life of the process; returns its last words."""
        tail: deque[str] = deque(maxlen=4)
        try:
            self._prepare()
            process = self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            )
        except OSError as error:
            return str(error)
        self.starts += 1
        assert process.stderr is not None
        try:
            async with asyncio.timeout(START_SECONDS) as deadline:
                async for raw in process.stderr:
                    line = _bare(raw.decode(errors="replace").rstrip())
                    if line.endswith(self._ready) and not self._serving.is_set():
                        deadline.reschedule(None)
                        self.problem = None
                        self._serving.set()
                        self._settle(None)
                    tail.append(line)
                    self._on_line(line)
            await process.wait()
        except TimeoutError:
            return f"it was not ready after {START_SECONDS:.0f} s; its last words: {tail[-1] if tail else 'none'}"
        finally:
            self._serving.clear()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return _cause(tail, process.returncode or 0)

    def _settle(self, problem: str | None) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(problem)


async def end_leftovers(argument: str) -> None:
    """End every process whose command line has ``argument``: a child of an earlier daemon that was killed.

    The argument names our own configuration file, so nobody else's dnsmasq is met; unlike a pid file it also finds one
    whose daemon died before it wrote the pid down.
    """
    for stop in (signal.SIGTERM, signal.SIGKILL):
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if _runs(entry.name, argument)]
        for pid in pids:
            log.warning("a dnsmasq of an earlier daemon is ended", pid=pid)
            with suppress(ProcessLookupError):
                os.kill(pid, stop)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_runs(str(pid), argument) for pid in pids) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _runs(pid: str, argument: str) -> bool:
    try:
        return pid.isdigit() and argument.encode() in Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _bare(line: str) -> str:
    """``line`` without ``dnsmasq-dhcp[123]: `` or ``dnsmasq: `` in front."""
    head, separator, rest = line.partition(": ")
    return rest if separator and head.startswith("dnsmasq") and " " not in head else line


def _cause(tail: Sequence[str], code: int) -> str:
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    return f"{tail[-1] if tail else 'it said nothing'} (exit code {code})"
