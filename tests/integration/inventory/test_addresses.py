"""Addresses are taken once, whoever asks at the same moment, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, Invalid, PoolExhausted
from provisiond.inventory.addresses import Pools, free_addresses, take_address, take_free
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, Subnet, new_row, table

_host, _subnet = table(Host), table(Subnet)


async def prepare(
    store: Store, cidr: str, pools: list[list[str]], hosts: int, gateway: str | None = None
) -> list[str]:
    """A subnet ``lan`` and some hosts; returns their ids."""
    rows = [new_row(Host, name=f"h{i}") for i in range(hosts)]
    async with store.write() as session:
        await session.execute(
            insert(_subnet).values(new_row(Subnet, name="lan", cidr=cidr, pools=pools, gateway=gateway))
        )
        await session.execute(insert(_host), rows)
    return [row["id"] for row in rows]


async def take(store: Store, host_id: str, wanted: str | None = None) -> str:
    """Take one in a transaction of its own."""

    async def work(session: AsyncSession) -> str:
        subnet = (await session.execute(select(_subnet))).one()
        return await take_address(session, subnet, host_id, wanted)

    return await store.transact(work)


@pytest.mark.parametrize(
    ("cidr", "pool", "gateway"),
    [
        ("10.0.0.0/24", ["10.0.0.100", "10.0.0.150"], "10.0.0.120"),
        (
            "2001:db8::/64",
            ["2001:db8::ffff:ffff:ffff:ffcd", "2001:db8::ffff:ffff:ffff:ffff"],
            "2001:db8::ffff:ffff:ffff:fff0",
        ),
    ],
)
async def test_fifty_at_once(
    store: Store, other_store: Callable[[], Store], cidr: str, pool: list[str], gateway: str
) -> None:
    """Fifty writers use a pool of fifty up to the last one without a duplicate; the fifty-first is refused."""
    hosts = await prepare(store, cidr, [pool], 51, gateway)
    stores = [store]
    if not store.sqlite:  # as several daemons would
        stores += [other_store() for _ in range(3)]
        for other in stores[1:]:
            await other.open()
    try:
        taken = await asyncio.gather(
            *(take(stores[i % len(stores)], host) for i, host in enumerate(hosts[:50]))
        )
    finally:
        for other in stores[1:]:
            await other.close()
    assert len(set(taken)) == 50 and gateway not in taken
    with pytest.raises(PoolExhausted, match="all 50"):
        await take(store, hosts[50])


async def test_wanted_by_many(store: Store) -> None:
    """One address wanted by twenty at once goes to one; the others are told who has it."""
    hosts = await prepare(store, "10.0.0.0/24", [["10.0.0.10", "10.0.0.99"]], 20)
    results = await asyncio.gather(
        *(take(store, host, "10.0.0.50") for host in hosts), return_exceptions=True
    )
    assert results.count("10.0.0.50") == 1
    assert all(isinstance(r, Conflict) and "taken by host h" in str(r) for r in results if r != "10.0.0.50")


async def test_order_gaps_and_pools(store: Store) -> None:
    """Freed addresses rest until the end of the pool is reached; then gaps are filled, the next pool comes after that."""
    hosts = await prepare(
        store, "10.0.0.0/29", [["10.0.0.0", "10.0.0.4"], ["10.0.0.6", "10.0.0.7"]], 9, "10.0.0.2"
    )
    assert [await take(store, h) for h in hosts[:2]] == ["10.0.0.1", "10.0.0.3"]
    async with store.write() as session:
        await free_addresses(session, hosts[0])
    assert [await take(store, h) for h in hosts[2:4]] == ["10.0.0.4", "10.0.0.6"]
    assert await take(store, hosts[4]) == "10.0.0.1"
    with pytest.raises(PoolExhausted, match="all 4"):
        await take(store, hosts[5])


async def test_many_for_one_request(store: Store) -> None:
    """A batch gets what is free beyond the highest and in the gaps, and no more."""
    hosts = await prepare(store, "10.0.0.0/24", [["10.0.0.10", "10.0.0.19"]], 12)
    await take(store, hosts[0], "10.0.0.19")
    await take(store, hosts[1], "10.0.0.14")
    async with store.write() as session:
        pools = Pools.of((await session.execute(select(_subnet))).one())
        taken = await take_free(session, pools, hosts[2:10])
        assert taken == [f"10.0.0.{n}" for n in (10, 11, 12, 13, 15, 16, 17, 18)]
        with pytest.raises(PoolExhausted):
            await take_free(session, pools, hosts[10:11])


@pytest.mark.parametrize("ip", ["10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.1.5"])
async def test_addresses_no_host_may_have(store: Store, ip: str) -> None:
    """Network, broadcast, gateway and addresses outside are refused with the reason."""
    hosts = await prepare(store, "10.0.0.0/24", [["10.0.0.10", "10.0.0.99"]], 1, "10.0.0.1")
    with pytest.raises(Invalid, match="ip:"):
        await take(store, hosts[0], ip)
