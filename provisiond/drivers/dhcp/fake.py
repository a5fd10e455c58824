"""DHCP without a network, for tests and demonstrations; with a directory it survives ``kill -9`` of the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from provisiond.drivers.dhcp import (
    BootOptions,
    DhcpOptions,
    DhcpSubnet,
    Lease,
    LeaseEvent,
    OnLease,
    Reservation,
)
from provisiond.drivers.dhcp.files import ReservationFiles, checked, ipv4_only, normal_mac
from provisiond.errors import DriverError


class FakeDhcp:
    """Keeps reservations in memory, or in files (one each) of ``settings.run_dir`` where ``settings`` are given.

    ``calls`` logs (call, MAC). ``latency`` is seconds each call takes; at 0 a call does not give way to others.
    ``fail(call, error, times)`` makes the next calls raise.
    """

    def __init__(self, settings: DhcpOptions | None = None, *, latency: float = 0.0) -> None:
        self.settings = settings
        self.latency = latency
        self.calls: list[tuple[str, str]] = []
        self.boot: BootOptions | None = None
        self._subnets: tuple[DhcpSubnet, ...] | None = None
        self._on_lease: OnLease | None = None
        self._failures: dict[str, list[DriverError]] = {}
        self._memory: dict[str, Reservation] = {}
        self._leases: dict[str, Lease] = {}
        self._files = ReservationFiles(self.directory) if self.directory else None

    @property
    def directory(self) -> Path | None:
        """Where the reservations are, one file each."""
        return self.settings.run_dir / "reservations" if self.settings else None

    def fail(self, call: str, error: DriverError, times: int = 1) -> None:
        """The next ``times`` calls of ``call`` (start, reserve, release) raise ``error``."""
        self._failures.setdefault(call, []).extend([error] * times)

    @property
    def problem(self) -> str:
        return ""

    async def start(self, subnets: Sequence[DhcpSubnet], boot: BootOptions, on_lease: OnLease) -> None:
        await self._enter("start", "")
        self._subnets, self.boot, self._on_lease = ipv4_only(subnets), boot, on_lease

    async def reserve(self, reservation: Reservation) -> None:
        await self._enter("reserve", reservation.mac)
        wanted = checked(reservation, self._subnets)
        others = [self._files.holder(wanted.ip)] if self._files else list(self._memory.values())
        for other in others:
            if other and other.ip == wanted.ip and other.mac != wanted.mac:
                self._remove(other.mac)
        if self._files:
            self._files.write(wanted)
        else:
            self._memory[wanted.mac] = wanted

    async def release(self, mac: str) -> None:
        await self._enter("release", mac)
        mac = normal_mac(mac)
        self._remove(mac)
        if lease := self._leases.pop(mac, None):
            await self._tell("removed", lease)

    async def reservations(self) -> list[Reservation]:
        if self._files:
            self._files.reload()  # several daemons may share the directory
        return list(self._known().values())

    async def leases(self) -> list[Lease]:
        return list(self._leases.values())

    async def close(self) -> None:
        self._on_lease = None

    async def request(self, mac: str) -> str | None:
        """A machine asks for an address: the one it is given, or None. What a test calls in place of a network."""
        mac = normal_mac(mac)
        held = self._known().get(mac)
        ip = (
            held.ip if held else next((first for net in self._subnets or () for first, _ in net.ranges), None)
        )
        if ip is None or self._on_lease is None:
            return None
        seconds = self.settings.lease_seconds if self.settings else 3600
        expires = datetime.now(UTC) + timedelta(seconds=seconds)
        kind = "renewed" if mac in self._leases else "added"
        self._leases[mac] = Lease(mac, ip, held.host if held else "", expires)
        await self._tell(kind, self._leases[mac])
        return ip

    def _known(self) -> dict[str, Reservation]:
        return self._files.all() if self._files else self._memory

    def _remove(self, mac: str) -> None:
        if self._files:
            self._files.remove(mac)
        else:
            self._memory.pop(mac, None)

    async def _tell(self, kind: str, lease: Lease) -> None:
        if self._on_lease:
            await self._on_lease(LeaseEvent(kind, lease.mac, lease.ip, lease.hostname))

    async def _enter(self, call: str, mac: str) -> None:
        self.calls.append((call, mac))
        if self.latency:
            await asyncio.sleep(self.latency)
        if failures := self._failures.get(call):
            raise failures.pop(0)
