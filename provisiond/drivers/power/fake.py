"""Machines that are only noted down: for tests of everything above, and for trying provisiond without hardware.

A machine is known by its target's address and system. With a ``directory`` each machine is a file there, so that the fleet outlives
the daemon, and ``calls.jsonl`` gets a line for each effect, so that a test can count what was really done.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget, Sensor
from provisiond.errors import DriverError, DriverRejected, DriverUnavailable, Unsupported


@dataclass
class FakePower:
    """The driver. ``latency`` is seconds each call takes (at 0 a call does not give way to others).

    ``dead`` addresses do not answer; ``passwords`` maps an address to the only password it takes; ``lies`` are addresses that
    say they obey and do not; ``fail_next`` errors are raised first, one a call; ``calls`` is (call, address, argument).
    """

    directory: Path | None = None
    latency: float = 0.0
    dead: set[str] = field(default_factory=set)
    passwords: dict[str, str] = field(default_factory=dict)
    lies: set[str] = field(default_factory=set)
    fail_next: list[DriverError] = field(default_factory=list)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    _memory: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    async def state(self, target: PowerTarget) -> PowerState:
        return PowerState((await self._call("state", target))["power"])

    async def set(self, target: PowerTarget, action: PowerAction, *, timeout: float = 60.0) -> PowerState:
        machine = await self._call("set", target, str(action))
        wanted = PowerState.OFF if action is PowerAction.OFF else PowerState.ON
        if target.address in self.lies:
            if machine["power"] != wanted:
                raise DriverUnavailable(
                    f"host {target.host}: {target.address} took the order {action} and is still {machine['power']}"
                )
            return wanted
        if machine["power"] != wanted or action in (PowerAction.CYCLE, PowerAction.RESET):
            self._keep(target, machine | {"power": str(wanted)}, f"power {action}")
        return wanted

    async def set_boot(self, target: PowerTarget, device: BootDevice, *, once: bool = False) -> None:
        machine = await self._call("set_boot", target, str(device))
        if machine["boot"] != device:
            self._keep(target, machine | {"boot": str(device)}, f"boot {device}")

    async def boot_device(self, target: PowerTarget) -> BootDevice | None:
        return BootDevice((await self._call("boot_device", target))["boot"])

    async def sensors(self, target: PowerTarget) -> list[Sensor]:
        await self._call("sensors", target)
        return [Sensor("CPU temperature", 41.0, "°C", "ok"), Sensor("fan 1", 4200.0, "rpm", "ok")]

    async def identify(self, target: PowerTarget, seconds: int = 15) -> None:
        machine = await self._call("identify", target, str(seconds))
        self._keep(target, machine | {"identify": str(seconds)}, f"identify {seconds}")

    async def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
        raise Unsupported(f"host {target.host}: a fake machine has no console")
        yield b""

    async def close(self) -> None:
        """Nothing is held open."""

    async def _call(self, call: str, target: PowerTarget, argument: str = "") -> dict[str, str]:
        self.calls.append((call, target.address, argument))
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.fail_next:
            raise self.fail_next.pop(0)
        if target.address in self.dead:
            raise DriverUnavailable(f"host {target.host}: no answer from {target.address}")
        if self.passwords.get(target.address, target.password) != target.password:
            raise DriverRejected(
                f"host {target.host}: {target.address} refused the log-in of {target.username!r}"
            )
        return {"power": "off", "boot": "disk"} | self._read(target)

    def _name(self, target: PowerTarget) -> str:
        return quote(f"{target.address}#{target.system}", safe="#:")

    def _read(self, target: PowerTarget) -> dict[str, str]:
        if self.directory is None:
            return self._memory.get(self._name(target), {})
        try:
            known: dict[str, str] = json.loads((self.directory / f"{self._name(target)}.json").read_text())
        except FileNotFoundError:
            return {}
        return known

    def _keep(self, target: PowerTarget, machine: dict[str, str], effect: str) -> None:
        if self.directory is None:
            self._memory[self._name(target)] = machine
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        staged = self.directory / f".{self._name(target)}.{os.getpid()}"
        staged.write_text(json.dumps(machine))
        staged.replace(self.directory / f"{self._name(target)}.json")
        with (self.directory / "calls.jsonl").open("a") as journal:
            journal.write(json.dumps({"machine": self._name(target), "effect": effect}) + "\n")
