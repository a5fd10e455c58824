"""DHCP follows the inventory: subnets, reservations, and what a crash left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import update

from provisiond.drivers.dhcp import BootOptions, LeaseEvent, Reservation
from provisiond.errors import DriverUnavailable
from provisiond.inventory import history
from provisiond.inventory.store import EVENTS
from provisiond.inventory.tables import Interface, Subnet
from provisiond.lifecycle.leases import Leases
from tests.integration.engine.rig import Rig

BOOT = BootOptions("192.0.2.1", ((0, "undionly.kpxe"),), (), "http://192.0.2.1:8421/boot/ipxe")


async def ignore(_event: LeaseEvent) -> None:
    pass


@pytest_asyncio.fixture
async def leases(rig: Rig) -> AsyncIterator[Leases]:
    """Not started; stopped at the end."""
    made = Leases(rig.store, rig.dhcp, BOOT, ignore)
    yield made
    await made.stop()


async def reserved(rig: Rig) -> dict[str, str]:
    return {one.mac: one.ip for one in await rig.dhcp.reservations()}


async def test_hosts_in_service_are_reserved_at_start(rig: Rig, leases: Leases) -> None:
    """A DHCP server that lost its files gets them back; hosts that are only known get nothing."""
    await rig.add("web01", 20, state="active")
    await rig.add("web02", 21, state="configuring")
    await rig.add("web03", 22, state="ready")
    await rig.add("web04", 23, state="rescue")
    await leases.start()
    assert await reserved(rig) == {f"52:54:00:00:00:{n:02x}": f"192.0.2.{n}" for n in (20, 21, 23)}


async def test_what_belongs_to_no_host_is_released_at_start(rig: Rig, leases: Leases) -> None:
    """A host that was deleted while the daemon was down leaves no reservation."""
    await rig.dhcp.reserve(Reservation("52:54:00:00:00:99", "192.0.2.99", "gone", "lab"))
    await leases.start()
    assert await reserved(rig) == {}


async def test_one_refused_reservation_keeps_nobody_from_service(rig: Rig, leases: Leases) -> None:
    """An IPv6 address is nothing DHCPv4 could reserve: that host goes without, the daemon starts, the others are reserved."""
    six = await rig.add("six", 20, state="active")
    await rig.add("web02", 21, state="active")
    async with rig.store.write() as session:
        await session.execute(update(Interface).where(Interface.host_id == six).values(ip="2001:db8::20"))
    await leases.start()
    assert await reserved(rig) == {"52:54:00:00:00:15": "192.0.2.21"}


async def test_a_new_subnet_is_served_at_once(rig: Rig, leases: Leases) -> None:
    """Whoever makes one writes an event, and that is heard."""
    await leases.start()
    async with rig.store.write(EVENTS) as session:
        session.add(Subnet(name="more", cidr="198.51.100.0/24", pools=[]))
        await history.add(session, kind="subnet.created", actor="user:ann")
    async with asyncio.timeout(30):
        while [call for call, _ in rig.dhcp.calls].count("start") < 2:
            await asyncio.sleep(0.01)
    assert [subnet.name for subnet in rig.dhcp._subnets or ()] == ["lab", "more"]


async def test_a_subnet_that_was_not_taken_is_offered_again(rig: Rig, leases: Leases) -> None:
    """The server was away when the subnets changed: the next look tries again."""
    await leases.start()
    async with rig.store.write() as session:
        session.add(Subnet(name="more", cidr="198.51.100.0/24", pools=[]))
    rig.dhcp.fail("start", DriverUnavailable("dnsmasq is away"))
    await leases._follow_subnets()
    assert [subnet.name for subnet in rig.dhcp._subnets or ()] == ["lab"]
    await leases._follow_subnets()
    assert [subnet.name for subnet in rig.dhcp._subnets or ()] == ["lab", "more"]
