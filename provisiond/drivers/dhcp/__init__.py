"""The DHCP contract: addresses and boot options for machines on a subnet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class DhcpOptions:
    """What every driver of this room is constructed with (``load("dhcp", name)(options)``).

    ``interfaces`` are the ones to answer on; ``run_dir`` holds the driver's files and is its own. ``proxy``: another server gives
    addresses, this one only the boot options. ``router_advertisement``: tell machines that there is no IPv6 router here, so
    that iPXE does not wait for one; it takes effect on interfaces that have an IPv6 address besides the link-local one.
    """

    run_dir: Path
    interfaces: tuple[str, ...] = ()
    proxy: bool = False
    dnsmasq: str = "dnsmasq"
    lease_seconds: int = 3600
    router_advertisement: bool = True


@dataclass(frozen=True)
class DhcpSubnet:
    """One network to serve. ``ranges`` are (first, last) of addresses given to machines without a reservation."""

    name: str
    cidr: str
    gateway: str | None
    dns: tuple[str, ...] = ()
    domain: str | None = None
    ranges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class BootOptions:
    """Where machines find their network boot program (NBP).

    ``programs`` maps a client architecture (DHCP option 93, RFC 4578) to a file on the TFTP server ``tftp_server``;
    ``http_programs`` maps one that boots by HTTP (16: x86-64) to a whole URL; ``ipxe_script`` is the URL that a machine already
    running iPXE (option 175) is sent to, unless its architecture is in ``over_ipxe``: those get their program even so.
    """

    tftp_server: str
    programs: tuple[tuple[int, str], ...]
    http_programs: tuple[tuple[int, str], ...]
    ipxe_script: str
    over_ipxe: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reservation:
    """The address a MAC is always given; ``host`` is the host's name and ``id`` its id (one reservation a MAC)."""

    mac: str
    ip: str
    host: str
    subnet: str


@dataclass(frozen=True)
class Lease:
    mac: str
    ip: str
    hostname: str
    expires: datetime | None


@dataclass(frozen=True)
class LeaseEvent:
    """``kind`` is added, renewed or removed."""

    kind: str
    mac: str
    ip: str
    hostname: str


OnLease = Callable[[LeaseEvent], Awaitable[None]]


class Dhcp(Protocol):
    """Drivers of this room. Raises only DriverUnavailable, DriverRejected, Unsupported."""

    @property
    def problem(self) -> str:
        """Why machines get no answer now, in the server's own words; empty when all is well."""

    async def start(self, subnets: Sequence[DhcpSubnet], boot: BootOptions, on_lease: OnLease) -> None:
        """Begin to serve; what was reserved before stays reserved. Called again with other subnets, it changes over.

        ``on_lease`` is awaited for one event after another; what it raises is logged and does not stop the service.
        DriverUnavailable: the server cannot begin (its own words are in the message); the driver keeps trying by itself.
        """

    async def reserve(self, reservation: Reservation) -> None:
        """Give this MAC this address from now on.

        An earlier reservation of the same MAC, or of the same address by another MAC, is replaced: addresses are handed
        out by the inventory, so the latest word is the true one. DriverRejected: the MAC or address is malformed, or the
        address is in no subnet that is served.
        """

    async def release(self, mac: str) -> None:
        """Forget the MAC's reservation and lease. Absent is fine."""

    async def reservations(self) -> list[Reservation]:
        """What is reserved now (so that leftovers can be found)."""

    async def leases(self) -> list[Lease]:
        """The leases given out now."""

    async def close(self) -> None:
        """Stop serving."""
