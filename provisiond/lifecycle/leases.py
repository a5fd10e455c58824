"""Keeps the DHCP server in step with the inventory: its subnets, and the reservations of hosts that are in service or on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy import select
from sqlmodel import col

from provisiond.drivers.dhcp import BootOptions, Dhcp, DhcpSubnet, OnLease, Reservation
from provisiond.errors import DriverError, DriverRejected
from provisiond.inventory.store import EVENTS, Store
from provisiond.inventory.tables import Domain, Host, Interface, Subnet
from provisiond.lifecycle.table import State

log = structlog.get_logger(__name__)

RESERVED_IN = (State.BUILDING, State.PROVISIONED, State.CONFIGURING, State.ACTIVE, State.RESCUE)
LOOK_SECONDS = 3.0
PAUSE_SECONDS = 0.1  # between two looks, however much happens


class Leases:
    """Starts the DHCP driver, hands it changed subnets, and puts right at start what a crash may have left."""

    def __init__(self, store: Store, dhcp: Dhcp, boot: BootOptions, on_lease: OnLease) -> None:
        self.store, self.dhcp, self.boot, self.on_lease = store, dhcp, boot, on_lease
        self._subnets: list[DhcpSubnet] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve the subnets as they are now. Raises DriverError when the server cannot start."""
        self._subnets = await self.subnets()
        await self.dhcp.start(self._subnets, self.boot, self.on_lease)
        await self.converge()
        self._task = asyncio.create_task(self._keep(), name="leases")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.dhcp.close()

    async def subnets(self) -> list[DhcpSubnet]:
        """The subnets as the driver takes them."""
        async with self.store.read() as session:
            found = (
                select(Subnet, col(Domain.name))
                .outerjoin(Domain, col(Domain.id) == col(Subnet.domain_id))
                .order_by(col(Subnet.name))
            )
            rows: Sequence[Any] = (await session.execute(found)).all()
        return [
            DhcpSubnet(
                name=subnet.name, cidr=subnet.cidr, gateway=subnet.gateway, dns=tuple(subnet.dns), domain=domain,
                ranges=tuple((first, last) for first, last in subnet.dynamic),
            )
            for subnet, domain in rows
        ]  # fmt: skip

    async def converge(self) -> None:
        """Reserve what is missing for hosts on their way or in service, and release what belongs to no host at all.

        A reservation that the server refuses is that host's trouble and is logged; the others are served.
        """
        async with self.store.read() as session:
            found = (
                select(
                    col(Interface.mac),
                    col(Interface.ip),
                    col(Host.name),
                    col(Subnet.name),
                    col(Host.state),
                )
                .join(Host, col(Host.id) == col(Interface.host_id))
                .join(Subnet, col(Subnet.id) == col(Interface.subnet_id))
                .where(col(Interface.ip).isnot(None))
            )
            rows: Sequence[Any] = (await session.execute(found)).all()
        states = {mac: State(state) for mac, _ip, _host, _subnet, state in rows}
        there = {reservation.mac for reservation in await self.dhcp.reservations()}
        for mac in there - states.keys():
            await self.dhcp.release(mac)
        for mac, ip, host, subnet, state in rows:
            # A host in `building` reserves for itself at its step; doing it here too is harmless and finds it done.
            if State(state) in RESERVED_IN[1:] and mac not in there:
                try:
                    await self.dhcp.reserve(Reservation(mac, ip, host, subnet))
                except DriverRejected as error:
                    log.warning("dhcp.not_reserved", host=host, error=str(error))

    async def _keep(self) -> None:
        changed = self.store.subscribe(EVENTS)  # whoever makes or changes a subnet writes an event
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await changed.wait()
                changed.clear()
                await self._follow_subnets()
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self.store.unsubscribe(EVENTS, changed)

    async def _follow_subnets(self) -> None:
        try:
            now = await self.subnets()
            if now != self._subnets:
                await self.dhcp.start(now, self.boot, self.on_lease)
                self._subnets = now
        except DriverError as error:
            log.warning("dhcp.subnets_not_taken", error=str(error))
        except Exception:
            log.exception("dhcp.look_failed")
