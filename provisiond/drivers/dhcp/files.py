"""Reservations as files, one a MAC, replaced atomically: what survives ``kill -9`` and what dnsmasq reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from ipaddress import AddressValueError, IPv4Address, IPv4Network, ip_network
from pathlib import Path

import structlog

from provisiond.drivers.dhcp import DhcpSubnet, Reservation
from provisiond.errors import DriverRejected, DriverUnavailable

log = structlog.get_logger(__name__)

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def normal_mac(mac: str) -> str:
    """``mac`` in lower case with colons. DriverRejected if it is none."""
    text = mac.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(text):
        raise DriverRejected(f"{mac!r} is not a MAC address; write it as 52:54:00:12:34:56")
    return text


def ipv4_only(subnets: Sequence[DhcpSubnet]) -> tuple[DhcpSubnet, ...]:
    """The IPv4 ones: machines of an IPv6 subnet address themselves, by router advertisement."""
    return tuple(subnet for subnet in subnets if ip_network(subnet.cidr, strict=False).version == 4)


def checked(reservation: Reservation, subnets: tuple[DhcpSubnet, ...] | None) -> Reservation:
    """The reservation with a normal MAC.

    DriverRejected if an address is malformed, or in none of ``subnets`` (None: not known yet, not looked at).
    """
    mac = normal_mac(reservation.mac)
    try:
        ip = IPv4Address(reservation.ip)
    except AddressValueError:
        raise DriverRejected(
            f"host {reservation.host}: {reservation.ip!r} is not an IPv4 address, so DHCP cannot reserve it"
        ) from None
    if subnets is not None and not any(ip in IPv4Network(subnet.cidr, strict=False) for subnet in subnets):
        served = ", ".join(subnet.cidr for subnet in subnets) or "there are none"
        raise DriverRejected(
            f"host {reservation.host}: address {ip} is in none of the subnets that DHCP serves ({served}); "
            "correct the host's address or add the subnet"
        )
    return Reservation(mac=mac, ip=str(ip), host=reservation.host, subnet=reservation.subnet)


class ReservationFiles:
    """The reservations in ``directory``, also held in memory.

    A file's first line is ``# `` and the reservation as JSON; ``render`` gives the lines below it, in the server's own
    language. Temporary names are beside the directory, so that a watcher of it never sees a half-written file.
    """

    def __init__(self, directory: Path, render: Callable[[Reservation], str] = lambda _: "") -> None:
        self.directory = directory
        self._render = render
        self._by_mac: dict[str, Reservation] | None = None
        self._by_ip: dict[str, Reservation] = {}

    def path(self, mac: str) -> Path:
        """The file of a (normal) MAC."""
        return self.directory / mac.replace(":", "-")

    def all(self) -> dict[str, Reservation]:
        """Every reservation by its MAC; read from the disk at the first call."""
        if self._by_mac is None:
            try:
                self._by_mac = self._load()
                self._by_ip = {reservation.ip: reservation for reservation in self._by_mac.values()}
            except OSError as error:
                raise DriverUnavailable(
                    f"cannot read the reservations in {self.directory}: {error}"
                ) from error
        return self._by_mac

    def holder(self, ip: str) -> Reservation | None:
        """Who has the address."""
        self.all()
        return self._by_ip.get(ip)

    def reload(self) -> None:
        """Read the disk again at the next call: another process may have written."""
        self._by_mac = None

    def write(self, reservation: Reservation) -> None:
        """Keep it, in place of an earlier one of the MAC. DriverUnavailable when the disk does not take it."""
        known = self.all()
        head = json.dumps(asdict(reservation))
        temporary = self.directory.with_name(f"{self.directory.name}.{reservation.mac.replace(':', '-')}.new")
        try:
            temporary.write_text(f"# {head}\n{self._render(reservation)}")
            temporary.replace(self.path(reservation.mac))
        except OSError as error:
            raise DriverUnavailable(
                f"host {reservation.host}: cannot write its reservation: {error}"
            ) from error
        self._drop(known.get(reservation.mac))
        known[reservation.mac] = self._by_ip[reservation.ip] = reservation

    def remove(self, mac: str) -> Reservation | None:
        """Forget it; None if there was none."""
        known = self.all()
        try:
            self.path(mac).unlink(missing_ok=True)
        except OSError as error:
            raise DriverUnavailable(f"cannot remove the reservation of {mac}: {error}") from error
        self._drop(known.get(mac))
        return known.pop(mac, None)

    def _drop(self, earlier: Reservation | None) -> None:
        if earlier and self._by_ip.get(earlier.ip) == earlier:
            del self._by_ip[earlier.ip]

    def _load(self) -> dict[str, Reservation]:
        self.directory.mkdir(parents=True, exist_ok=True)
        found: dict[str, Reservation] = {}
        for path in sorted(self.directory.iterdir()):
            try:
                first, _, _ = path.read_text().partition("\n")
                reservation = Reservation(**json.loads(first.removeprefix("# ")))
            except (ValueError, TypeError):
                log.warning("a reservation file is unreadable and is removed", path=str(path))
                path.unlink(
                    missing_ok=True
                )  # as the reconciler will reserve again, a torn file is better gone
                continue
            found[reservation.mac] = reservation
        return found
