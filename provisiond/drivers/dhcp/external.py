"""A DHCP server that is the administrator's own: what must be set in it is said, nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import Any

from provisiond.drivers.dhcp import BootOptions, DhcpOptions, DhcpSubnet, Lease, OnLease, Reservation
from provisiond.drivers.dhcp.dnsmasq_config import ipxe_tags, program_tags
from provisiond.drivers.dhcp.files import ReservationFiles, checked, ipv4_only, normal_mac


class ExternalDhcp:
    """Keeps the reservations in files of ``settings.run_dir`` so that ``instructions`` can name them.

    Leases are not seen: ``leases`` is empty and no lease event comes.
    """

    def __init__(self, settings: DhcpOptions) -> None:
        self._files = ReservationFiles(settings.run_dir / "reservations")
        self._lease_seconds = settings.lease_seconds
        self._subnets: tuple[DhcpSubnet, ...] | None = None
        self._boot: BootOptions | None = None

    @property
    def problem(self) -> str:
        return ""

    async def start(self, subnets: Sequence[DhcpSubnet], boot: BootOptions, on_lease: OnLease) -> None:
        self._files.all()
        self._subnets, self._boot = ipv4_only(subnets), boot

    async def reserve(self, reservation: Reservation) -> None:
        wanted = checked(reservation, self._subnets)
        other = self._files.holder(wanted.ip)
        if other and other.mac != wanted.mac:
            self._files.remove(other.mac)
        if self._files.all().get(wanted.mac) != wanted:
            self._files.write(wanted)

    async def release(self, mac: str) -> None:
        self._files.remove(normal_mac(mac))

    async def reservations(self) -> list[Reservation]:
        return list(self._files.all().values())

    async def leases(self) -> list[Lease]:
        return []

    async def close(self) -> None:
        pass

    def instructions(self) -> dict[str, str]:
        """What to set, with the values as they are now: ``isc`` (dhcpd.conf), ``kea`` (JSON), ``dnsmasq``.

        Empty before ``start``.
        """
        if self._boot is None or self._subnets is None:
            return {}
        held = sorted(self._files.all().values(), key=lambda r: (r.host, r.mac))
        return {
            "isc": "\n".join(_isc(self._subnets, self._boot, held, self._lease_seconds)) + "\n",
            "kea": json.dumps(_kea(self._subnets, self._boot, held, self._lease_seconds), indent=2) + "\n",
            "dnsmasq": "\n".join(_dnsmasq(self._subnets, self._boot, held, self._lease_seconds)) + "\n",
        }


def _isc(
    subnets: Sequence[DhcpSubnet], boot: BootOptions, held: Sequence[Reservation], lease_seconds: int
) -> Iterator[str]:
    yield "option client-arch code 93 = unsigned integer 16;"
    yield "option ipxe-encap code 175 = string;"
    yield "authoritative;"
    yield f"default-lease-time {lease_seconds};"
    yield f"next-server {boot.tftp_server};"
    first = "if"
    for number, program in boot.programs:
        if number in boot.over_ipxe:
            yield f"{first} option client-arch = {number} {{"
            yield f'  filename "{program}";'
            first = "} elsif"
    yield f"{first} exists ipxe-encap {{"
    yield f'  filename "{boot.ipxe_script}";'
    for number, url in boot.http_programs:
        yield f"}} elsif option client-arch = {number} {{"
        yield '  option vendor-class-identifier "HTTPClient";'
        yield f'  filename "{url}";'
    for number, program in boot.programs:
        if number not in boot.over_ipxe:
            yield f"}} elsif option client-arch = {number} {{"
            yield f'  filename "{program}";'
    yield "}"
    for subnet in subnets:
        network = IPv4Network(subnet.cidr, strict=False)
        yield f"subnet {network.network_address} netmask {network.netmask} {{  # {subnet.name}"
        yield from (f"  range {first} {last};" for first, last in subnet.ranges)
        if subnet.gateway:
            yield f"  option routers {subnet.gateway};"
        if subnet.dns:
            yield f"  option domain-name-servers {', '.join(subnet.dns)};"
        if subnet.domain:
            yield f'  option domain-name "{subnet.domain}";'
        yield "}"
    for r in held:
        name = f"{r.host}-{r.mac.replace(':', '')}"
        yield f"host {name} {{ hardware ethernet {r.mac}; fixed-address {r.ip}; }}"


def _kea(
    subnets: Sequence[DhcpSubnet], boot: BootOptions, held: Sequence[Reservation], lease_seconds: int
) -> dict[str, Any]:
    ipxe = "option[175].exists"
    over = "".join(f" and not option[93].hex == 0x{number:04X}" for number in boot.over_ipxe)
    classes: list[dict[str, Any]] = [
        {"name": "ipxe", "test": ipxe + over, "boot-file-name": boot.ipxe_script}
    ]
    for number, program in (*boot.http_programs, *boot.programs):
        unless = "" if number in boot.over_ipxe else f"not {ipxe} and "
        entry: dict[str, Any] = {
            "name": f"arch-{number}",
            "test": f"{unless}option[93].hex == 0x{number:04X}",
            "boot-file-name": program,
        }
        if (number, program) in boot.http_programs:
            option = {"name": "vendor-class-identifier", "data": "HTTPClient", "always-send": True}
            entry["option-data"] = [option]
        else:
            entry["next-server"] = boot.tftp_server
        classes.append(entry)
    return {
        "Dhcp4": {
            "valid-lifetime": lease_seconds,
            "match-client-id": False,
            "client-classes": classes,
            "subnet4": [_kea_subnet(i, subnet, held) for i, subnet in enumerate(subnets, 1)],
        }
    }


def _kea_subnet(number: int, subnet: DhcpSubnet, held: Sequence[Reservation]) -> dict[str, Any]:
    options = {
        "routers": subnet.gateway,
        "domain-name-servers": ", ".join(subnet.dns),
        "domain-name": subnet.domain,
    }
    return {
        "id": number,
        "subnet": subnet.cidr,
        "user-context": {"name": subnet.name},
        "pools": [{"pool": f"{first} - {last}"} for first, last in subnet.ranges],
        "option-data": [{"name": name, "data": data} for name, data in options.items() if data],
        "reservations": [
            {"hw-address": r.mac, "ip-address": r.ip, "hostname": r.host}
            for r in held
            if r.subnet == subnet.name
        ],
    }


def _dnsmasq(
    subnets: Sequence[DhcpSubnet], boot: BootOptions, held: Sequence[Reservation], lease_seconds: int
) -> Iterator[str]:
    yield "dhcp-match=set:ipxe,175"
    yield "dhcp-ignore-clid"
    yield f"dhcp-boot={ipxe_tags(boot)},{boot.ipxe_script}"
    for number, program in boot.programs:
        yield f"dhcp-match=set:arch{number},option:client-arch,{number}"
        yield f"dhcp-boot={program_tags(boot, number)},{program},provisiond,{boot.tftp_server}"
    for number, url in boot.http_programs:
        yield f"dhcp-match=set:arch{number},option:client-arch,{number}"
        yield f"dhcp-option-force=tag:!ipxe,tag:arch{number},60,HTTPClient"
        yield f"dhcp-boot=tag:!ipxe,tag:arch{number},{url}"
    for number, subnet in enumerate(subnets):
        network = IPv4Network(subnet.cidr, strict=False)
        tag = f"subnet{number}"
        spans = [f"{first},{last}" for first, last in subnet.ranges] or [f"{network.network_address},static"]
        yield from (f"dhcp-range=set:{tag},{span},{network.netmask},{lease_seconds}" for span in spans)
        if subnet.gateway:
            yield f"dhcp-option=tag:{tag},option:router,{subnet.gateway}"
        if subnet.dns:
            yield f"dhcp-option=tag:{tag},option:dns-server,{','.join(subnet.dns)}"
        if subnet.domain:
            yield f"dhcp-option=tag:{tag},option:domain-name,{subnet.domain}"
    yield from (f"dhcp-host={r.mac},{r.ip},{r.host.split('.')[0]}" for r in held)
