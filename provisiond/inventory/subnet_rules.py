"""What a subnet must be like, alone (pure) and beside the addresses and subnets there are."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from itertools import combinations
from types import SimpleNamespace

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import FieldError
from provisiond.inventory.addresses import Pools
from provisiond.inventory.shapes_catalogue import Subnet
from provisiond.inventory.tables import Address, Host, table
from provisiond.inventory.tables import Subnet as SubnetRow

_address, _host, _subnet = table(Address), table(Host), table(SubnetRow)


def check_subnet(spec: Subnet) -> list[FieldError]:
    """Every wrong field: ranges outside the network, turned round or overlapping, a gateway that cannot be one."""
    network = ipaddress.ip_network(spec.cidr)
    errors: list[FieldError] = []
    good: list[tuple[str, int, int]] = []
    for kind, ranges in (("pools", spec.pools), ("dynamic", spec.dynamic)):
        for i, (first, last) in enumerate(ranges):
            at = f"{kind}.{i}"
            ends = [ipaddress.ip_address(first), ipaddress.ip_address(last)]
            outside = [str(end) for end in ends if end not in network]
            if outside:
                errors.append(FieldError(at, f"{' and '.join(outside)} not in {spec.cidr}"))
            elif int(ends[0]) > int(ends[1]):
                errors.append(FieldError(at, f"{first} comes after {last}; write FIRST-LAST"))
            else:
                good.append((at, int(ends[0]), int(ends[1])))
    for (at, first_a, last_a), (other, first_b, last_b) in combinations(good, 2):
        if first_a <= last_b and first_b <= last_a:
            errors.append(FieldError(other, f"overlaps {at}; an address belongs to one range only"))
    if spec.gateway is not None:
        gateway = ipaddress.ip_address(spec.gateway)
        edge = {network.network_address} | ({network.broadcast_address} if network.version == 4 else set())
        if gateway not in network:
            errors.append(FieldError("gateway", f"{spec.gateway} is not in {spec.cidr}"))
        elif (
            network.num_addresses > 2
            and gateway in edge
            and not (network.version == 6 and gateway == network.network_address)
        ):
            errors.append(FieldError("gateway", f"{spec.gateway} is the network's own or broadcast address"))
        for at, first_n, last_n in good:
            if at.startswith("dynamic") and gateway in network and first_n <= int(gateway) <= last_n:
                errors.append(
                    FieldError(at, f"holds the gateway {spec.gateway}, which DHCP must not give away")
                )
    return errors


async def check_subnet_in_use(session: AsyncSession, row_id: str | None, spec: Subnet) -> list[FieldError]:
    """Besides ``check_subnet``: no other subnet may overlap, and addresses that hosts have must stay possible."""
    errors = check_subnet(spec)
    network = ipaddress.ip_network(spec.cidr)
    old = None
    for row in await session.execute(select(_subnet)):
        if row.id == row_id:
            old = row
            continue
        other = ipaddress.ip_network(row.cidr)
        if other.version == network.version and other.overlaps(network):
            errors.append(FieldError("cidr", f"{spec.cidr} overlaps subnet {row.name} ({row.cidr})"))
    if old is None or errors:
        return errors
    # An address may stay outside the pools, but not where it would be another's.
    pools = Pools.of(
        SimpleNamespace(
            id=old.id, name=spec.name, cidr=spec.cidr, gateway=spec.gateway, pools=[], dynamic=spec.dynamic
        )
    )
    taken = await session.execute(
        select(_address.c.ip, _host.c.name)
        .join(_host, _host.c.id == _address.c.host_id)
        .where(_address.c.subnet_id == row_id)
    )
    held = list(taken)
    if held and old.cidr != spec.cidr:
        return [
            FieldError(
                "cidr", f"cannot change while hosts have addresses in it: {_some([row.name for row in held])}"
            )
        ]
    bad = [f"{row.name} has {row.ip}" for row in held if pools.why_not(row.ip)]
    if bad:
        errors.append(
            FieldError(
                "dynamic" if spec.dynamic else "gateway",
                f"these hosts have addresses that would be another's: {_some(bad)}",
            )
        )
    return errors


def _some(names: Sequence[str]) -> str:
    names = sorted(set(names))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
