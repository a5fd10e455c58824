"""Power over IPMI 2.0 (lanplus) by pyghmi: what every order means, verified by reading back.

ipmi_links holds the sessions and threads, ipmi_session one session, ipmi_commands the commands, ipmi_sol the console.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator

import structlog

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget, Sensor
from provisiond.drivers.power import ipmi_commands as commands
from provisiond.drivers.power.ipmi_links import OPTIONS, Link, Links
from provisiond.drivers.power.ipmi_session import Session
from provisiond.drivers.power.ipmi_sol import listen
from provisiond.drivers.power.options import Options
from provisiond.drivers.power.reach import came_back, reach
from provisiond.errors import DriverUnavailable

log = structlog.get_logger(__name__)

BOOT_TRIES = 3


class IpmiPower:
    """Driver ``ipmi``. ``threads`` bounds how many controllers are talked to at once."""

    def __init__(self, threads: int = 64) -> None:
        self._links = Links(threads)

    async def state(self, target: PowerTarget) -> PowerState:
        """The power state read from the machine now."""
        return PowerState.ON if await self._links.run(target, commands.read_power) else PowerState.OFF

    async def set(self, target: PowerTarget, action: PowerAction, *, timeout: float = 60.0) -> PowerState:
        """Do ``action``; cycle and reset of a machine that is off turn it on. See the contract."""
        read = functools.partial(self.state, target)
        turn_on = functools.partial(self._order, target, commands.ON)
        turn_off = functools.partial(self._order, target, commands.OFF)
        if action is PowerAction.OFF:
            return await reach(target.host, PowerState.OFF, read, turn_off, timeout=timeout)
        if action is PowerAction.ON or await read() is PowerState.OFF:
            return await reach(target.host, PowerState.ON, read, turn_on, timeout=timeout)
        if action is PowerAction.RESET:
            await self._order(target, commands.RESET)
            return await reach(target.host, PowerState.ON, read, turn_on, timeout=timeout, asked=True)
        if await self._links.run(target, commands.cycle):
            return await came_back(target.host, read, turn_on, timeout=timeout)
        await reach(
            target.host, PowerState.OFF, read, turn_off, timeout=timeout
        )  # it knows no cycle (VirtualBMC)
        return await reach(target.host, PowerState.ON, read, turn_on, timeout=timeout)

    async def set_boot(self, target: PowerTarget, device: BootDevice, *, once: bool = False) -> None:
        """Set the boot flags and read them back, up to three times.

        DriverUnavailable when another device stays. Noted in the log and taken for done is what cannot be known: a controller that
        names no device after it took the order (ipmi_sim), or, of a running machine, the one it was started from (VirtualBMC).
        """
        vendor = Options(target, OPTIONS).text("vendor", choices=("", "supermicro", "generic"))
        found = commands.BootFlags(None)
        for _ in range(BOOT_TRIES):
            found = await self._links.run(target, functools.partial(_set_boot, target, device, once, vendor))
            if found.device is device:
                if found.persistent is once or found.uefi is not target.uefi:
                    log.info(
                        "power.boot_flags_differ",
                        host=target.host,
                        persistent=found.persistent,
                        uefi=found.uefi,
                    )
                return
        if found.device is None:
            log.warning(
                "power.boot_not_verified",
                host=target.host,
                device=device,
                reason="the BMC took the order but names no device",
            )
            return
        if await self.state(target) is PowerState.ON:
            log.warning(
                "power.boot_not_verified",
                host=target.host,
                device=device,
                reason=f"the machine runs, and the BMC names {found.device}, perhaps what it was started from",
            )
            return
        raise DriverUnavailable(
            f"{target.host}: the BMC took boot device {device} but still names {found.device}; set it in the firmware's setup "
            "or look for a newer BMC firmware"
        )

    async def boot_device(self, target: PowerTarget) -> BootDevice | None:
        """The boot device now set; None where the machine follows its own order or the BMC cannot tell."""
        return (await self._links.run(target, commands.read_boot)).device

    async def sensors(self, target: PowerTarget) -> list[Sensor]:
        """Every sensor the controller lists."""
        return await self._links.run(target, commands.sensors)

    async def identify(self, target: PowerTarget, seconds: int = 15) -> None:
        """Light the identify LED for ``seconds`` (at most 255; 0 turns it off)."""
        await self._links.run(target, lambda session, _link: commands.identify(session, seconds))

    def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
        """Serial over LAN, reconnecting; until closed."""
        return listen(self._links, target)

    async def close(self) -> None:
        """Log out everywhere and end the threads."""
        await self._links.close()

    async def _order(self, target: PowerTarget, order: int) -> None:
        await self._links.run(target, lambda session, _link: commands.control(session, order))


def _set_boot(
    target: PowerTarget, device: BootDevice, once: bool, vendor: str, session: Session, link: Link
) -> commands.BootFlags:
    supermicro = vendor == "supermicro" or (
        not vendor and target.uefi and commands.is_supermicro(session, link)
    )
    lasting = commands.write_boot(session, device, once=once, uefi=target.uefi, supermicro=supermicro)
    if not lasting and not link.memory.setdefault("told_timeout", False):
        link.memory["told_timeout"] = True
        log.info(
            "power.boot_timeout_stays", host=target.host, reason="the BMC keeps its 60 s life of boot flags"
        )
    return commands.read_boot(session, link)
