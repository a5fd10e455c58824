"""Power over Redfish by sushy: what every order means, verified by reading back.

An order that the service refuses (400, 409 ...) still counts as done when the state is the wanted one afterwards: some services
report an error after success, and some refuse for a minute what they take later. Source: DMTF DSP0266, DSP0268.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from sushy import BootSource, BootSourceOverrideEnabled, BootSourceOverrideMode, ResetType
from sushy import PowerState as Reported

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget, Sensor
from provisiond.drivers.power.lanes import Lane, Lanes
from provisiond.drivers.power.reach import came_back, reach
from provisiond.drivers.power.redfish_client import Client, Gone, Service, judged, service_of
from provisiond.drivers.power.redfish_sensors import read_sensors
from provisiond.errors import DriverError, DriverUnavailable, Unsupported

T = TypeVar("T")
log = structlog.get_logger(__name__)

BOOT_TRIES = 3
SOURCE = {
    BootDevice.NETWORK: BootSource.PXE,
    BootDevice.DISK: BootSource.HDD,
    BootDevice.CDROM: BootSource.CD,
}
DEVICE = {source: device for device, source in SOURCE.items()}
DEVICE |= {BootSource.UEFI_HTTP: BootDevice.NETWORK, BootSource.USB_CD: BootDevice.CDROM}
ORDERS = {  # by preference; a service lists those it knows
    PowerAction.ON: (ResetType.ON, ResetType.FORCE_ON, ResetType.PUSH_POWER_BUTTON),
    PowerAction.OFF: (ResetType.FORCE_OFF,),
    PowerAction.RESET: (ResetType.FORCE_RESTART, ResetType.GRACEFUL_RESTART),
    PowerAction.CYCLE: (ResetType.POWER_CYCLE,),
}


@dataclass
class _Link(Lane):
    """One service: its turn, and the client while it is logged in."""

    client: Client | None = None


class RedfishPower:
    """Driver ``redfish``. ``threads`` bounds how many services are talked to at once."""

    def __init__(self, threads: int = 64) -> None:
        self._links: dict[str, _Link] = {}
        self._lanes = Lanes("redfish", Gone, threads)
        self._leds: set[asyncio.Task[None]] = set()

    async def state(self, target: PowerTarget) -> PowerState:
        """The power state read from the machine now."""
        return await self._run(target, functools.partial(_power, target))

    async def set(self, target: PowerTarget, action: PowerAction, *, timeout: float = 60.0) -> PowerState:
        """Do ``action``; cycle and reset of a machine that is off turn it on. See the contract."""
        read = functools.partial(self.state, target)
        turn_on = functools.partial(self._order, target, PowerAction.ON)
        turn_off = functools.partial(self._order, target, PowerAction.OFF)
        if action is PowerAction.OFF:
            return await reach(target.host, PowerState.OFF, read, turn_off, timeout=timeout)
        if action is PowerAction.ON or await read() is PowerState.OFF:
            return await reach(target.host, PowerState.ON, read, turn_on, timeout=timeout)
        if action is PowerAction.RESET:
            await self._order(target, PowerAction.RESET)
            return await reach(target.host, PowerState.ON, read, turn_on, timeout=timeout, asked=True)
        try:
            await self._order(target, PowerAction.CYCLE)
        except Unsupported:
            await reach(target.host, PowerState.OFF, read, turn_off, timeout=timeout)
            return await reach(target.host, PowerState.ON, read, turn_on, timeout=timeout)
        return await came_back(target.host, read, turn_on, timeout=timeout)

    async def set_boot(self, target: PowerTarget, device: BootDevice, *, once: bool = False) -> None:
        """Set the boot override and read it back, up to three times; DriverUnavailable when another device stays.

        'Once' may read back as 'Continuous' (sushy-emulator); that is noted in the log. Where a service cannot name the disk, the
        override is switched off, which gives the machine's own order.
        """
        found: BootDevice | None = None
        refusal = ""
        for attempt in range(BOOT_TRIES):
            try:
                found = await self._run(target, functools.partial(_set_boot, target, device, once))
            except (
                DriverUnavailable
            ) as error:  # refused during POST (iLO), or after success: what is read back counts
                refusal = f" ({error})"
                found = await self.boot_device(target)
            if found is device or (found is None and device is BootDevice.DISK):
                return
            await asyncio.sleep(attempt)
        raise DriverUnavailable(
            f"{target.host}: boot device {device} did not stick, the BMC names {found}{refusal}"
        )

    async def boot_device(self, target: PowerTarget) -> BootDevice | None:
        """The boot override now set; None where there is none."""
        return await self._run(target, lambda client: _override(client.system(target.host, target.system)))

    async def sensors(self, target: PowerTarget) -> list[Sensor]:
        """Temperatures, fans, supplies and power of the system's chassis."""
        return await self._run(
            target, lambda client: read_sensors(client, client.system(target.host, target.system))
        )

    async def identify(self, target: PowerTarget, seconds: int = 15) -> None:
        """Light the LED and turn it off after ``seconds`` (Redfish has no clock for it; a daemon that stops before leaves it lit)."""
        await self._run(target, functools.partial(_light, target, seconds > 0))
        if seconds > 0:
            task = asyncio.create_task(self._darken(target, seconds), name=f"led-{target.host}")
            self._leds.add(task)
            task.add_done_callback(self._leds.discard)

    async def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
        """Redfish has no serial console of its own; it names an SSH or IPMI one."""
        raise Unsupported(f"{target.host}: Redfish has no serial console; give the host an ipmi BMC for it")
        yield b""  # makes this an iterator like the others

    async def close(self) -> None:
        """Log out everywhere and end the threads."""
        for task in self._leds:
            task.cancel()
        for link in self._links.values():
            async with link.lock:
                if link.client:
                    self._lanes.later(link.client.close)
                    link.client = None
        await self._lanes.close()

    async def _order(self, target: PowerTarget, action: PowerAction) -> None:
        await self._run(target, functools.partial(_reset, target, action))

    async def _darken(self, target: PowerTarget, seconds: int) -> None:
        await asyncio.sleep(seconds)
        try:
            await self._run(target, functools.partial(_light, target, False))
        except DriverError as error:
            log.info("power.led_stays_lit", host=target.host, reason=str(error))

    async def _run(self, target: PowerTarget, work: Callable[[Client], T]) -> T:
        service = service_of(target)
        link = self._links.setdefault(f"{service.url}{service.root}", _Link())
        try:
            return await self._lanes.run(link, functools.partial(_use, link, service, target, work))
        except Gone as error:
            raise DriverUnavailable(str(error)) from None


def _use(link: _Link, service: Service, target: PowerTarget, work: Callable[[Client], T]) -> T:
    with judged(target, service):
        if link.client and link.client.service != service:
            link.client.close()
            link.client = None
        if link.client is None:
            link.client = Client(service)
        try:
            return work(link.client)
        except Exception as error:
            if (
                getattr(error, "status_code", 0) == 401
            ):  # log in anew next time: the password may have been changed
                link.client.close()
                link.client = None
            raise


def _power(target: PowerTarget, client: Client) -> PowerState:
    """A machine that is on its way is not there yet."""
    reported = client.system(target.host, target.system).power_state
    if reported in (Reported.ON, Reported.POWERING_OFF):
        return PowerState.ON
    if reported in (Reported.OFF, Reported.POWERING_ON):
        return PowerState.OFF
    raise DriverUnavailable(f"{target.host}: the BMC gives no power state now ({reported})")


def _reset(target: PowerTarget, action: PowerAction, client: Client) -> None:
    system = client.system(target.host, target.system)
    allowed = system.get_allowed_reset_system_values()
    for order in ORDERS[action]:
        if order in allowed:
            system.reset_system(order)
            return
    names = ", ".join(sorted(order.value for order in allowed))
    raise Unsupported(f"{target.host}: the BMC has no order for {action}; it knows {names}")


def _override(system: Any) -> BootDevice | None:
    boot = system.boot
    if boot is None or boot.enabled in (None, BootSourceOverrideEnabled.DISABLED):
        return None
    return DEVICE.get(boot.target)


def _set_boot(target: PowerTarget, device: BootDevice, once: bool, client: Client) -> BootDevice | None:
    """Write what differs; returns the device read back."""
    system = client.system(target.host, target.system)
    enabled = BootSourceOverrideEnabled.ONCE if once else BootSourceOverrideEnabled.CONTINUOUS
    mode = BootSourceOverrideMode.UEFI if target.uefi else BootSourceOverrideMode.LEGACY
    source = SOURCE[device]
    if device is BootDevice.DISK and source not in system.get_allowed_system_boot_source_values():
        source, enabled = BootSource.NONE, BootSourceOverrideEnabled.DISABLED
    boot = system.boot
    if boot and (boot.target, boot.enabled, boot.mode or mode) == (source, enabled, mode):
        return _override(system)
    # the mode is sent only where it differs: many services refuse to have it written at all
    differs = bool(boot and boot.mode and boot.mode != mode)
    system.set_system_boot_options(source, enabled, mode if differs else None)
    system = client.system(target.host, target.system)
    if system.boot and system.boot.enabled != enabled:
        log.info(
            "power.boot_flags_differ", host=target.host, asked=enabled.value, found=str(system.boot.enabled)
        )
    return _override(system)


def _light(target: PowerTarget, lit: bool, client: Client) -> None:
    """LocationIndicatorActive where there is one, else the older IndicatorLED."""
    system = client.system(target.host, target.system)
    if "LocationIndicatorActive" in system.json:
        client.wire.patch(system.path, data={"LocationIndicatorActive": lit})
    elif "IndicatorLED" in system.json:
        client.wire.patch(system.path, data={"IndicatorLED": "Lit" if lit else "Off"})
    else:
        raise Unsupported(f"{target.host}: the BMC has no identify LED")
