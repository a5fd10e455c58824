"""A fleet of machines that exist only in memory, or in a journal on disk that outlives a killed daemon.

For tests, benchmarks and a first look without hardware. Every call is recorded in order, with what it changed, so that a test can
count side effects. A machine is known by its address, port and system; it is off and follows its own boot order until told.

Trouble is asked for by the constructor for all machines, or by the options of one target:

    latency  seconds every call takes          dead   true: nobody answers
    lies     true: takes orders, does nothing  busy   how many calls are refused as busy before one is taken
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget, Sensor
from provisiond.drivers.power.options import Options
from provisiond.errors import DriverRejected, DriverUnavailable

OPTIONS = ("latency", "dead", "lies", "busy")
JOURNAL = "PROVISIOND_FAKE_DIR"  # the directory of the journal when the constructor names none
KEPT_CALLS = 200_000
LOCK_SECONDS = 0.05  # a call holds the journal for less than a millisecond


@dataclass(frozen=True)
class Call:
    """One call in order. ``changed`` False: it found everything as wanted. ``failed`` is the name of the error it raised."""

    host: str
    machine: str
    what: str
    argument: str = ""
    changed: bool = False
    failed: str = ""


@dataclass
class Machine:
    """What a real one would know of itself. ``starts`` counts how often it was powered on, cycled or reset."""

    power: PowerState = PowerState.OFF
    boot: BootDevice | None = None
    once: bool = False
    starts: int = 0
    led: int = 0
    refusals: int = 0


class FakePower:
    """The fleet.

    ``password``: what every machine wants, None takes any. ``failure_rate``: the share of calls (0 to 1) that are DriverUnavailable,
    drawn with ``seed``. ``dead`` and ``liars``: addresses. ``directory``: keep state and calls in its file power.jsonl;
    several processes may share it. ``on_start`` is called with the target after each start: the moment a real machine begins to boot.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        failure_rate: float = 0.0,
        seed: int = 0,
        dead: Collection[str] = (),
        liars: Collection[str] = (),
        password: str | None = None,
        directory: Path | None = None,
        on_start: Callable[[PowerTarget], None] | None = None,
    ) -> None:
        self.latency, self.failure_rate, self.password = latency, failure_rate, password
        self.dead, self.liars = set(dead), set(liars)
        self.on_start = on_start
        self.machines: dict[str, Machine] = {}
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self._random = random.Random(seed)  # noqa: S311 - dice for a test, not a secret
        self._consoles: dict[str, list[asyncio.Queue[bytes]]] = {}
        directory = directory or (Path(os.environ[JOURNAL]) if os.environ.get(JOURNAL) else None)
        self._journal = _Journal(directory / "power.jsonl", self._replay) if directory else None

    # --- the contract ---------------------------------------------------------------------------------------

    async def state(self, target: PowerTarget) -> PowerState:
        """The power state of the machine now."""
        await self._wait(target)
        with self._call(target, "state") as machine:
            return machine.power

    async def set(self, target: PowerTarget, action: PowerAction, *, timeout: float = 60.0) -> PowerState:
        """Do ``action``; cycle and reset of a machine that is off turn it on. A liar is DriverUnavailable at once."""
        await self._wait(target)
        wanted = PowerState.OFF if action is PowerAction.OFF else PowerState.ON
        with self._call(target, "set", action) as machine:
            again = action in (PowerAction.CYCLE, PowerAction.RESET)
            if machine.power is wanted and not again:
                return wanted
            if self._lies(target):
                raise DriverUnavailable(
                    f"{target.host} did not reach power {wanted} within {timeout:g} s: it still reads {machine.power}"
                )
            machine.power = wanted
            if wanted is PowerState.ON:
                machine.starts += 1
                if machine.once:
                    machine.boot, machine.once = None, False
        if wanted is PowerState.ON and self.on_start:
            self.on_start(target)
        return wanted

    async def set_boot(self, target: PowerTarget, device: BootDevice, *, once: bool = False) -> None:
        """Set the boot device; of a liar it does not stick, which is DriverUnavailable."""
        await self._wait(target)
        with self._call(target, "set_boot", f"{device}{' once' if once else ''}") as machine:
            if self._lies(target):
                raise DriverUnavailable(
                    f"{target.host}: the BMC took boot device {device} but still names {machine.boot}"
                )
            machine.boot, machine.once = device, once

    async def boot_device(self, target: PowerTarget) -> BootDevice | None:
        """The boot device now set; a one-time one is gone after the next start."""
        await self._wait(target)
        with self._call(target, "boot_device") as machine:
            return machine.boot

    async def sensors(self, target: PowerTarget) -> list[Sensor]:
        """Two of them: one that follows the power state, one that cannot be read."""
        await self._wait(target)
        with self._call(target, "sensors") as machine:
            watts = 180.0 if machine.power is PowerState.ON else 9.0
            return [Sensor("System Power", watts, "W", "ok"), Sensor("PSU2", None, "", "warning")]

    async def identify(self, target: PowerTarget, seconds: int = 15) -> None:
        """Remember the LED's time."""
        await self._wait(target)
        with self._call(target, "identify", str(seconds)) as machine:
            machine.led = seconds

    async def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
        """What ``write_console`` is given from now on, until closed."""
        await self._wait(target)
        with self._call(target, "console"):
            pass
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        listeners = self._consoles.setdefault(key(target), [])
        listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            listeners.remove(queue)

    async def close(self) -> None:
        """Close the journal."""
        if self._journal:
            self._journal.close()

    # --- the test's side -------------------------------------------------------------------------------------

    def machine(self, target: PowerTarget) -> Machine:
        """The machine behind ``target``, to look at or to tamper with (someone pulls the plug)."""
        if self._journal:
            self._journal.catch_up()
        return self.machines.setdefault(key(target), Machine())

    def effects(self, what: str = "set", host: str | None = None) -> list[Call]:
        """The calls ``what`` that changed something, of one host or of all."""
        if self._journal:
            self._journal.catch_up()
        return [
            call for call in self.calls if call.what == what and call.changed and host in (None, call.host)
        ]

    def write_console(self, target: PowerTarget, text: bytes) -> None:
        """Let the machine write on its serial port."""
        for queue in self._consoles.get(key(target), ()):
            queue.put_nowait(text)

    # --- inside ----------------------------------------------------------------------------------------------

    async def _wait(self, target: PowerTarget) -> None:
        latency = self.latency
        if target.options:
            latency = Options(target, OPTIONS).number("latency", latency, 0.0, 3600.0)
        if latency:
            await asyncio.sleep(latency)

    @contextmanager
    def _call(self, target: PowerTarget, what: str, argument: str = "") -> Iterator[Machine]:
        """Check whether the machine answers, then record what the body does to it, together with the state it leaves."""
        name = key(target)
        with self._journal.locked() if self._journal else _unlocked():
            machine = self.machines.setdefault(name, Machine())
            before, failed = asdict(machine), ""
            try:
                self._answers(target, machine)
                yield machine
            except Exception as error:
                failed = type(error).__name__
                raise
            finally:
                after = asdict(machine)
                call = Call(target.host, name, what, argument, not failed and after != before, failed)
                self.calls.append(call)
                if self._journal:
                    self._journal.write({"call": asdict(call), "machine": after})

    def _answers(self, target: PowerTarget, machine: Machine) -> None:
        where = f"{target.host}: the BMC at {target.endpoint}"
        options = Options(target, OPTIONS) if target.options else None
        if target.address in self.dead or (options and options.flag("dead", False)):
            raise DriverUnavailable(f"{where} does not answer")
        if self.password is not None and target.password != self.password:
            raise DriverRejected(f"{where} refuses to log in user {target.username!r}: wrong password")
        if options and machine.refusals < options.number("busy", 0, 0, 1e6):
            machine.refusals += 1
            raise DriverUnavailable(f"{where} is busy")
        if self.failure_rate and self._random.random() < self.failure_rate:
            raise DriverUnavailable(f"{where} broke off")

    def _lies(self, target: PowerTarget) -> bool:
        return target.address in self.liars or (
            bool(target.options) and Options(target, OPTIONS).flag("lies", False)
        )

    def _replay(self, line: dict[str, Any]) -> None:
        state = dict(line["machine"])
        state["power"] = PowerState(state["power"])
        state["boot"] = BootDevice(state["boot"]) if state["boot"] else None
        machine = self.machines.setdefault(line["call"]["machine"], Machine())
        machine.__dict__.update(state)
        self.calls.append(Call(**line["call"]))


class _Journal:
    """One JSON line per call; what other processes wrote is read before each call of ours."""

    def __init__(self, path: Path, replay: Callable[[dict[str, Any]], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._replay = replay
        self._offset = 0
        self.catch_up()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One call at a time among processes; a holder that was frozen (SIGSTOP) is passed by, or it would freeze them all."""
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(0.001)
        try:
            self.catch_up()
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def catch_up(self) -> None:
        while (size := os.fstat(self._file).st_size) > self._offset:
            chunk = os.pread(self._file, size - self._offset, self._offset)
            whole = chunk.rpartition(b"\n")[0]
            if not whole:
                return
            self._offset += len(whole) + 1
            for line in whole.split(b"\n"):
                self._replay(json.loads(line))

    def write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        os.write(self._file, text)
        self._offset += len(text)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextmanager
def _unlocked() -> Iterator[None]:
    yield


def key(target: PowerTarget) -> str:
    """What a machine is known by."""
    return f"{target.endpoint}/{target.system}"
