"""What rules and name patterns see of a machine: its facts, and where it was seen."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from provisiond.inventory.facts import Facts, Nic, real_serial, real_uuid

_VIRTUAL_DRIVERS = frozenset(
    {"bonding", "bonded", "bond", "bridge", "team", "tun", "veth", "dummy", "macvlan", "ipvlan", "vxlan", "802.1q vlan support", "vlan"}
)  # fmt: skip
# Controllers show the host a card over USB; many makers give it the same MAC in every machine they build.
_CONTROLLER_DRIVERS = frozenset({"cdc_ether", "cdc_eem", "cdc_ncm", "rndis_host", "cdc_subset"})


def real_cards(facts: Facts, booted: str = "") -> list[Nic]:
    """The network cards that identify a machine, each MAC once, the one it booted from first.

    Left out: bonds, bridges and the like, which show a member's MAC again, and a controller's card over USB. ``booted`` is the MAC
    that the ramdisk came in by, where the facts do not say it.
    """
    found: dict[str, Nic] = {}
    for nic in facts.nics:
        driver = (nic.driver or "").lower()
        boots = bool(nic.boot) or nic.mac == booted
        if nic.mac is None or driver in _VIRTUAL_DRIVERS or (driver in _CONTROLLER_DRIVERS and not boots):
            continue
        if nic.mac not in found or boots:
            found[nic.mac] = nic
    return sorted(found.values(), key=lambda nic: not (nic.mac == booted if booted in found else nic.boot))


def values_of(facts: Facts, *, mac: str = "", address: str = "", subnet: str | None = None) -> dict[str, Any]:
    """The names of an expression (fact_names.Seen) with their values. ``subnet`` is the name of the subnet ``address`` is in."""
    values = facts.model_dump()
    cards = real_cards(facts, mac)
    heard = next((nic.lldp for nic in cards if nic.lldp is not None), None)
    values.update(
        serial=real_serial(facts.serial),
        uuid=real_uuid(facts.uuid),
        mac=mac or (cards[0].mac if cards else None),
        address=address or None,
        subnet=subnet,
        lldp=heard.model_dump() if heard else None,
        n=1,
    )  # fmt: skip
    return values


def subnet_of(address: str, subnets: Iterable[Any]) -> Any:
    """The narrowest of ``subnets`` (rows with cidr) that ``address`` is in; None where there is none."""
    try:
        at = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    at = getattr(at, "ipv4_mapped", None) or at
    best: tuple[int, Any] | None = None
    for row in subnets:
        network = ipaddress.ip_network(row.cidr, strict=False)
        if at in network and (best is None or network.prefixlen > best[0]):
            best = (network.prefixlen, row)
    return best[1] if best else None
