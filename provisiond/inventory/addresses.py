"""Addresses are taken from a subnet's pools in the database: the unique constraint, no process's memory, makes one taken once.

An address is kept with its position in the subnet (a number both databases can search by): the distance from the network
address, less 2**63 for IPv6, so that the whole of a /64 fits in 64 signed bits.

New addresses come after the highest one taken in a pool, so that one given back rests for as long as possible (its old
holder may still have a DHCP lease or an ARP entry); gaps are filled when the end is reached. On PostgreSQL those who take
from one subnet at the same moment queue on its row; should two collide all the same, the constraint lets one win and the
other goes on to the next.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, FieldError, Invalid, PoolExhausted
from provisiond.inventory.tables import Address, Host, Subnet, new_id, table, utcnow

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_address, _host, _subnet = table(Address), table(Host), table(Subnet)
_at = _address.c.position
_in_pool = and_(
    _address.c.subnet_id == bindparam("subnet"), _at.between(bindparam("first"), bindparam("last"))
)
_TAKE: dict[str, Any] = {
    "sqlite": sqlite.insert(_address).on_conflict_do_nothing().returning(_at),
    "postgresql": postgresql.insert(_address).on_conflict_do_nothing().returning(_at),
}
_HIGHEST = select(func.max(_at)).where(_in_pool)
_LOWEST = select(func.min(_at)).where(_in_pool)
_pairs = select(_at.label("here"), func.lead(_at).over(order_by=_at).label("next")).where(_in_pool).subquery()
_GAPS = select(_pairs.c.here, _pairs.c.next).where(_pairs.c.next - 1 > _pairs.c.here).order_by(_pairs.c.here)


@dataclass(frozen=True)
class Pools:
    """A subnet as the search sees it; ``ranges`` and ``dynamic`` are (first, last) positions, ``never`` positions no host gets."""

    subnet_id: str
    name: str
    network: Network
    ranges: tuple[tuple[int, int], ...]
    dynamic: tuple[tuple[int, int], ...]
    never: frozenset[int]

    @classmethod
    def of(cls, row: Any) -> Pools:
        """From a row (or model) of the subnet table."""
        network = ipaddress.ip_network(row.cidr)

        def ranges(pairs: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
            return tuple((position(network, first), position(network, last)) for first, last in pairs)

        never = {position(network, row.gateway)} if row.gateway else set()
        if (
            network.num_addresses > 2
        ):  # a /31 or /32 has neither (RFC 3021); an IPv6 link's first is its routers' (RFC 4291, 2.6.1)
            never.add(position(network, str(network.network_address)))
            if network.version == 4:
                never.add(position(network, str(network.broadcast_address)))
        return cls(row.id, row.name, network, ranges(row.pools), ranges(row.dynamic), frozenset(never))

    @property
    def size(self) -> int:
        """How many addresses hosts can have from the pools."""
        inside = sum(1 for n in self.never for first, last in self.ranges if first <= n <= last)
        return sum(last - first + 1 for first, last in self.ranges) - inside

    def why_not(self, ip: str) -> str | None:
        """Why no host may have ``ip`` here; None if it may. Outside the pools is fine: someone asked for it by hand."""
        if ipaddress.ip_address(ip) not in self.network:
            return f"{ip} is not in subnet {self.name} ({self.network})"
        at = position(self.network, ip)
        if at in self.never:
            return f"{ip} is the network's own, broadcast or gateway address of subnet {self.name}"
        if any(first <= at <= last for first, last in self.dynamic):
            return f"{ip} is in a dynamic range of subnet {self.name}, which DHCP gives to strangers"
        return None


def position(network: Network, ip: str) -> int:
    """Where ``ip`` stands in ``network``, as a signed number of 64 bits."""
    return (
        int(ipaddress.ip_address(ip))
        - int(network.network_address)
        - (0 if network.version == 4 else 1 << 63)
    )


def address_at(network: Network, at: int) -> str:
    """The address at a position."""
    number = at + int(network.network_address) + (0 if network.version == 4 else 1 << 63)
    return str(ipaddress.IPv4Address(number) if network.version == 4 else ipaddress.IPv6Address(number))


async def lock_subnets(session: AsyncSession, subnet_ids: Sequence[str]) -> None:
    """Queue behind others who take from these subnets (PostgreSQL; on SQLite there is one writer anyway)."""
    if session.get_bind().dialect.name == "postgresql" and subnet_ids:
        await session.execute(
            select(_subnet.c.id)
            .where(_subnet.c.id.in_(subnet_ids))
            .order_by(_subnet.c.id)
            .with_for_update(key_share=True)
        )


async def take_address(session: AsyncSession, subnet: Any, host_id: str, wanted: str | None = None) -> str:
    """Take ``wanted``, or a free address of the pools of ``subnet`` (a row of its table), for a host. Returns the address.

    Raises PoolExhausted; Conflict naming the host that has ``wanted``; Invalid where no host may have it.
    """
    pools = Pools.of(subnet)
    if wanted is not None:
        wanted = str(ipaddress.ip_address(wanted))
        if reason := pools.why_not(wanted):
            raise Invalid([FieldError("ip", reason)])
        if not await insert_positions(session, pools, [(position(pools.network, wanted), host_id)]):
            holders = await holders_of(session, pools.subnet_id, [wanted])
            raise Conflict(
                f"{wanted} in subnet {pools.name} is taken by host {holders.get(wanted, 'unknown')}"
            )
        return wanted
    await lock_subnets(session, [pools.subnet_id])
    return (await take_free(session, pools, [host_id]))[0]


async def take_free(session: AsyncSession, pools: Pools, host_ids: Sequence[str]) -> list[str]:
    """One free address for each of ``host_ids`` (a host may come twice), in their order. Raises PoolExhausted, and then took some."""
    taken: list[str] = []
    while len(taken) < len(host_ids):
        missing = host_ids[len(taken) :]
        free = await _free_positions(session, pools, len(missing))
        if not free:
            raise PoolExhausted(pools.name, pools.size)
        won = await insert_positions(session, pools, list(zip(free, missing, strict=False)))
        taken += [address_at(pools.network, at) for at in won]
    return taken


async def insert_positions(
    session: AsyncSession, pools: Pools, wanted: Sequence[tuple[int, str]]
) -> list[int]:
    """Try to take each (position, host id); returns the positions won, those that somebody has already are left out.

    When fewer are won than wanted, the first hosts of the list have them.
    """
    new = _TAKE[session.get_bind().dialect.name]
    won: list[int] = []
    now = utcnow()
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        rows = [
            {
                "id": new_id(),
                "subnet_id": pools.subnet_id,
                "ip": address_at(pools.network, at),
                "position": at,
                "host_id": host_id,
                "created_at": now,
                "updated_at": now,
            }
            for at, host_id in part
        ]
        if len(rows) == 1:
            taken = await session.execute(new, rows[0])
        else:
            taken = await session.execute(new.values(rows))
        got = sorted(taken.scalars())
        if len(got) < len(part) and len(part) > 1:
            # Somebody was quicker (only where the queue was not taken): give the rest back and hand out what is surely free.
            ids = [row["id"] for row in rows]
            await session.execute(delete(_address).where(_address.c.id.in_(ids)))
            for at, host_id in zip(got, (host for _, host in part), strict=False):
                won += await insert_positions(session, pools, [(at, host_id)])
            return won
        won += got
    return won


async def holders_of(session: AsyncSession, subnet_id: str, ips: Sequence[str]) -> dict[str, str]:
    """Which of ``ips`` are taken, by the names of which hosts."""
    rows = await session.execute(
        select(_address.c.ip, _host.c.name)
        .join(_host, _host.c.id == _address.c.host_id)
        .where(_address.c.subnet_id == subnet_id, _address.c.ip.in_(ips))
    )
    return {row.ip: row.name for row in rows}


async def free_addresses(session: AsyncSession, host_id: str, ips: Sequence[str] | None = None) -> None:
    """Give back the addresses of a host, or only ``ips`` of them."""
    statement = delete(_address).where(_address.c.host_id == host_id)
    await session.execute(statement if ips is None else statement.where(_address.c.ip.in_(ips)))


async def _free_positions(session: AsyncSession, pools: Pools, count: int) -> list[int]:
    """Up to ``count`` free positions, in ascending order within the first pool that has any beyond its highest, else out of gaps."""
    for first, last in pools.ranges:
        here = {"subnet": pools.subnet_id, "first": first, "last": last}
        top = (await session.execute(_HIGHEST, here)).scalar()
        free = _some(range(first if top is None else top + 1, last + 1), pools.never, count)
        if free:
            return free
    for first, last in pools.ranges:
        here = {"subnet": pools.subnet_id, "first": first, "last": last}
        gaps = (await session.execute(_GAPS, here)).all()
        lowest = (await session.execute(_LOWEST, here)).scalar()
        free = _some(range(first, lowest if lowest is not None else first), pools.never, count)
        for before, beyond in gaps:
            if len(free) >= count:
                break
            free += _some(range(before + 1, beyond), pools.never, count - len(free))
        if free:
            return free
    return []


def _some(positions: range, never: frozenset[int], count: int) -> list[int]:
    free: list[int] = []
    for at in positions:
        if len(free) >= count:
            break
        if at not in never:
            free.append(at)
    return free
