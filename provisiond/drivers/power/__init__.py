"""The power contract: what provisiond asks of a machine's management controller (BMC)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class PowerState(StrEnum):
    ON = "on"
    OFF = "off"


class PowerAction(StrEnum):
    ON = "on"
    OFF = "off"
    CYCLE = "cycle"
    RESET = "reset"


class BootDevice(StrEnum):
    DISK = "disk"
    NETWORK = "network"
    CDROM = "cdrom"


@dataclass(frozen=True)
class PowerTarget:
    """One machine's management controller.

    ``address`` is a host name or IP (for the libvirt driver: a libvirt URI); ``port`` None means the protocol's own;
    ``system`` names one machine behind an address that has several (Redfish system id or MAC, libvirt domain UUID).
    ``uefi`` is the firmware the boot device is set for. ``options`` are driver settings (``privilege``, ``verify_tls``...).
    """

    host: str
    address: str
    port: int | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    system: str = ""
    uefi: bool = False
    options: tuple[tuple[str, str], ...] = ()

    @property
    def endpoint(self) -> str:
        """What a limit of concurrent work is counted by."""
        return f"{self.address}:{self.port or ''}"


@dataclass(frozen=True)
class Sensor:
    """One reading; ``value`` is None where the sensor is discrete or unreadable. ``health`` is ok, warning, critical or failed."""

    name: str
    value: float | None
    unit: str
    health: str


class Power(Protocol):
    """Drivers of this room. Raises only DriverUnavailable, DriverRejected, Unsupported."""

    async def state(self, target: PowerTarget) -> PowerState:
        """The power state read from the machine now."""

    async def set(self, target: PowerTarget, action: PowerAction, *, timeout: float = 60.0) -> PowerState:
        """Do ``action`` and return the state that was then verified; already there counts as done.

        DriverUnavailable when the machine has not reached it after ``timeout`` seconds.
        """

    async def set_boot(self, target: PowerTarget, device: BootDevice, *, once: bool = False) -> None:
        """Set the next boot device (for one boot, or until changed), read it back, and set it again if it did not stick."""

    async def boot_device(self, target: PowerTarget) -> BootDevice | None:
        """The boot device now set; None where the machine follows its own order or cannot tell."""

    async def sensors(self, target: PowerTarget) -> list[Sensor]:
        """Every sensor the controller lists."""

    async def identify(self, target: PowerTarget, seconds: int = 15) -> None:
        """Light the identify LED for ``seconds`` (0 turns it off)."""

    def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
        """Serial output as it comes (serial over LAN), until closed; for the host's console log."""

    async def close(self) -> None:
        """Log out everywhere and end the driver's threads."""
