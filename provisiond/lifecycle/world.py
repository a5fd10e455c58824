"""What a step may reach: the drivers by name, the store to look into, templates, secrets and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from provisiond.config import Settings
from provisiond.drivers.compute import Compute, HypervisorTarget
from provisiond.drivers.dhcp import Dhcp
from provisiond.drivers.handover import Handover
from provisiond.drivers.power import Power, PowerTarget
from provisiond.errors import DriverRejected
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.lifecycle.consoles import Consoles
from provisiond.templating.release import Renderings


@dataclass
class Rooms:
    """Drivers by room and name, made on first use by ``make(room, name)`` and kept."""

    make: Callable[[str, str], Any]
    made: dict[tuple[str, str], Any] = field(default_factory=dict)

    def get(self, room: str, name: str) -> Any:
        """The driver; raises ConfigError when there is none of that name."""
        if (room, name) not in self.made:
            self.made[room, name] = self.make(room, name)
        return self.made[room, name]

    async def close(self) -> None:
        """Close every driver that was made."""
        for driver in self.made.values():
            await driver.close()
        self.made.clear()


@dataclass
class World:
    """Handed to every step."""

    settings: Settings
    store: Store
    box: SecretBox
    rooms: Rooms
    dhcp: Dhcp
    renderings: Renderings
    boot_url: str
    consoles: Consoles

    def power_of(self, host: ResolvedHost) -> tuple[Power, PowerTarget] | None:
        """Driver and target that switch this host: its BMC, or its hypervisor for a virtual machine. None where there is neither."""
        uefi = host.row.firmware == "uefi"
        if host.bmc is not None:
            password = self.box.decrypt(host.bmc.secret) if host.bmc.secret else ""
            target = PowerTarget(
                host=host.name, address=host.bmc.address, port=host.bmc.port, username=host.bmc.username, password=password,
                system=host.bmc.system, uefi=uefi, options=tuple(sorted((k, str(v)) for k, v in host.bmc.options.items())),
            )  # fmt: skip
            return self.rooms.get("power", host.bmc.driver), target
        if host.hypervisor is not None:
            target = PowerTarget(host=host.name, address=host.hypervisor.uri, system=host.id, uefi=uefi)
            return self.rooms.get("power", host.hypervisor.driver), target
        return None

    def compute_of(self, host: ResolvedHost) -> tuple[Compute, HypervisorTarget]:
        """Driver and target of the hypervisor a virtual machine lives on."""
        if host.hypervisor is None:
            raise DriverRejected(f"host {host.name} is not a virtual machine: it has no hypervisor")
        found = host.hypervisor
        return self.rooms.get("compute", found.driver), HypervisorTarget(
            name=found.name, uri=found.uri, pool=found.pool
        )

    def handover_of(self, host: ResolvedHost) -> tuple[str, Handover | None]:
        """The handover driver's name and the driver; None for ``none``."""
        name = host.handover or self.settings.handover.driver
        return name, None if name == "none" else self.rooms.get("handover", name)
