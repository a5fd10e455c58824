"""The serial consoles of physical machines, kept in a file per host while they are being built, or have something to do in the ramdisk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from provisiond.drivers.power import Power, PowerTarget
from provisiond.errors import DriverError, DriverUnavailable

if TYPE_CHECKING:
    from provisiond.inventory.resolve import ResolvedHost

log = structlog.get_logger(__name__)

KEEP_BYTES = 4 << 20
RECONNECT_SECONDS = 5.0


class Consoles:
    """Follows serial over LAN into ``directory/<host id>.log``; virtual machines' logs are written there by the hypervisor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def path(self, host_id: str) -> Path:
        return self.directory / f"{host_id}.log"

    def follow(self, host: ResolvedHost, power: Power, target: PowerTarget) -> None:
        """Begin to keep the console of ``host``, unless it is kept already or its hypervisor writes it."""
        if host.bmc is None or host.bmc.options.get("console") is False:
            return
        running = self._tasks.get(host.id)
        if running is None or running.done():
            self._tasks[host.id] = asyncio.create_task(
                self._follow(host.id, host.name, power, target), name=f"console-{host.name}"
            )

    def leave(self, host_id: str) -> None:
        """Stop keeping it; what was kept stays."""
        task = self._tasks.pop(host_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Leave every console."""
        tasks = list(self._tasks.values())
        for host_id in list(self._tasks):
            self.leave(host_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, host_id: str, name: str, power: Power, target: PowerTarget) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(host_id)
        while True:
            try:
                async for chunk in power.console(target):
                    if path.exists() and path.stat().st_size > KEEP_BYTES:
                        path.replace(path.with_suffix(".log.1"))
                    with path.open("ab") as file:
                        file.write(chunk)
            except DriverUnavailable as error:
                log.debug("console.broken", host=name, error=str(error))
            except DriverError as error:
                log.info("console.none", host=name, reason=str(error))
                return
            await asyncio.sleep(RECONNECT_SECONDS)
