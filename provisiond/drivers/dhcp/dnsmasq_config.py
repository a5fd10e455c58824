"""What dnsmasq is told: its configuration file, the line of a reservation and the script of lease events. Pure functions.

Sources: dnsmasq(8); client architectures: RFC 4578 section 2.1 and IANA's "Processor Architecture Types"; iPXE's option 175:
ipxe.org/howto/dhcpd; UEFI HTTP boot: UEFI 2.10 section 24.7 (the server answers with option 60 ``HTTPClient``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from provisiond.drivers.dhcp import BootOptions, DhcpOptions, DhcpSubnet, Reservation
from provisiond.errors import DriverRejected

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PLAIN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Paths:
    """The files of one dnsmasq, all in the driver's own directory."""

    run_dir: Path

    @property
    def config(self) -> Path:
        return self.run_dir / "dnsmasq.conf"

    @property
    def hosts(self) -> Path:
        return self.run_dir / "hosts.d"

    @property
    def loaded(self) -> Path:
        """A file of options, without any: dnsmasq reads it after the reservations, so its log says when they are read."""
        return self.run_dir / "options.d" / "loaded"

    @property
    def leases(self) -> Path:
        return self.run_dir / "leases"

    @property
    def pid(self) -> Path:
        return self.run_dir / "dnsmasq.pid"

    @property
    def script(self) -> Path:
        return self.run_dir / "lease-event"

    @property
    def events(self) -> Path:
        """A FIFO: the script writes a line to it for each event."""
        return self.run_dir / "lease-events.fifo"


def configuration(
    options: DhcpOptions,
    paths: Paths,
    subnets: Sequence[DhcpSubnet],
    boot: BootOptions,
    *,
    user: str,
    group: str,
) -> str:
    """The whole configuration file. ``user`` and ``group`` are those the daemon runs as.

    dnsmasq keeps them: it would lose its parent-death signal by a change of user. Raises DriverRejected for a value that
    cannot stand in the file.
    """
    if not options.interfaces:
        raise DriverRejected(
            "dhcp.interfaces is empty; name the network interfaces that dnsmasq shall answer on"
        )
    lines = [
        "port=0",  # no DNS
        "bind-interfaces",
        "except-interface=lo",
        *(f"interface={_plain(name, 'dhcp.interfaces')}" for name in options.interfaces),
        f"user={user}",
        f"group={group}",
        f"pid-file={paths.pid}",
        "log-facility=-",
        f"dhcp-optsdir={paths.loaded.parent}",
        "log-async=100",  # dnsmasq goes on when nobody reads its log
        *(_proxy(subnets) if options.proxy else _server(options, paths, subnets)),
        *_matches(boot),
        *(_services(boot) if options.proxy else _boot_files(boot)),
        f"dhcp-boot={ipxe_tags(boot)},{_plain(boot.ipxe_script, 'the iPXE script')},provisiond,{boot.tftp_server}",
    ]
    return "\n".join(lines) + "\n"


def reservation_lines(reservation: Reservation) -> str:
    """The reservation as a line of ``dhcp-hostsdir``.

    Only the first label of the host's name is told to the machine (option 12): dnsmasq refuses a domain it was not given.
    """
    name = reservation.host.split(".")[0]
    host = f",{name}" if _LABEL.fullmatch(name) else ""
    return f"{reservation.mac},{reservation.ip}{host}\n"


def event_script(paths: Paths) -> str:
    """The ``dhcp-script``: one line ``action|mac|ip|hostname|expiry`` into the FIFO.

    Opened for reading and writing, a FIFO never blocks the opener, also when no daemon listens.
    """
    return (
        "#!/bin/sh\n"
        f"exec 3<>{shlex.quote(str(paths.events))} || exit 0\n"
        """printf '%s|%s|%s|%s|%s\\n' "$1" "$2" "$3" "$4" "$DNSMASQ_LEASE_EXPIRES" >&3\n"""
    )


def _server(options: DhcpOptions, paths: Paths, subnets: Sequence[DhcpSubnet]) -> Iterator[str]:
    yield from (
        "dhcp-authoritative",
        "dhcp-ignore-clid",  # ROM, installer and system of one machine send different client ids
        "dhcp-no-override",  # boot file and server name stay in their fields: old ROMs look nowhere else
        "no-ping",  # a ping delays each offer by up to 3 s, longer than some ROMs wait
        "dhcp-lease-max=65536",
        f"dhcp-leasefile={paths.leases}",
        f"dhcp-hostsdir={paths.hosts}",
        f"dhcp-script={paths.script}",
        "script-on-renewal",
    )
    for number, subnet in enumerate(subnets):
        yield from _subnet(f"subnet{number}", subnet, options.lease_seconds)
    if options.router_advertisement:
        yield "enable-ra"
        for name in options.interfaces:
            yield f"dhcp-range=::,constructor:{name},ra-only"
            yield f"ra-param={name},60,0"  # lifetime 0: never anyone's default router


def _subnet(tag: str, subnet: DhcpSubnet, lease_seconds: int) -> Iterator[str]:
    network = IPv4Network(subnet.cidr, strict=False)
    for first, last in subnet.ranges:
        yield f"dhcp-range=set:{tag},{first},{last},{network.netmask},{lease_seconds}"
    if not subnet.ranges:
        yield f"dhcp-range=set:{tag},{network.network_address},static,{network.netmask},{lease_seconds}"
    # an option without a value is not sent: dnsmasq would name itself as router
    yield ",".join([f"dhcp-option=tag:{tag},option:router", *([subnet.gateway] if subnet.gateway else [])])
    yield ",".join([f"dhcp-option=tag:{tag},option:dns-server", *subnet.dns])
    if subnet.domain:
        domain = subnet.domain.rstrip(".")
        if not all(_LABEL.fullmatch(label) for label in domain.split(".")):
            raise DriverRejected(f"subnet {subnet.name}: {subnet.domain!r} is not a domain name")
        yield f"dhcp-option=tag:{tag},option:domain-name,{domain}"


def _proxy(subnets: Sequence[DhcpSubnet]) -> Iterator[str]:
    for subnet in subnets:
        network = IPv4Network(subnet.cidr, strict=False)
        yield f"dhcp-range={network.network_address},proxy,{network.netmask}"


def _matches(boot: BootOptions) -> Iterator[str]:
    yield "dhcp-match=set:ipxe,175"
    yield "dhcp-userclass=set:ipxe,iPXE"
    yield "dhcp-match=set:client-arch,option:client-arch"
    for number in sorted({number for number, _ in (*boot.programs, *boot.http_programs)}):
        yield f"dhcp-match=set:arch{number},option:client-arch,{number}"


def ipxe_tags(boot: BootOptions) -> str:
    """Which machines are sent to the iPXE script."""
    return ",".join(["tag:ipxe", *(f"tag:!arch{number}" for number in boot.over_ipxe)])


def program_tags(boot: BootOptions, number: int) -> str:
    """Which machines are given the program of architecture ``number``."""
    return f"tag:arch{number}" if number in boot.over_ipxe else f"tag:!ipxe,tag:arch{number}"


def _boot_files(boot: BootOptions) -> Iterator[str]:
    for number, program in boot.programs:
        yield f"dhcp-boot={program_tags(boot, number)},{_plain(program, 'a boot program')},provisiond,{boot.tftp_server}"
        if number == 0:  # ROMs older than RFC 4578 do not say what they are; they are BIOS
            yield f"dhcp-boot=tag:!ipxe,tag:!client-arch,{program},provisiond,{boot.tftp_server}"
    for number, url in boot.http_programs:
        yield f"dhcp-option-force=tag:!ipxe,tag:arch{number},60,HTTPClient"
        yield f"dhcp-boot=tag:!ipxe,tag:arch{number},{_plain(url, 'a boot program')}"


def _services(boot: BootOptions) -> Iterator[str]:
    """What proxy mode offers: BIOS takes the file from the offer, UEFI asks for a PXE service on port 4011.

    A service whose program has no dot in its name would get ``.0`` behind it from dnsmasq.
    """
    for number, program in boot.programs:
        name = _plain(program, "a boot program")
        if number == 0:
            yield f"dhcp-boot={program_tags(boot, 0)},{name},provisiond,{boot.tftp_server}"
        else:
            yield f"pxe-service=tag:!ipxe,{number},provisiond,{name},{boot.tftp_server}"


def _plain(value: str, what: str) -> str:
    """``value`` if it can stand in a comma-separated line of the file."""
    if not _PLAIN.fullmatch(value) or any(char in value for char in ',"#\\'):
        raise DriverRejected(
            f"{what}: {value!r} cannot be told to dnsmasq; leave out spaces, commas, quotes and '#'"
        )
    return value
