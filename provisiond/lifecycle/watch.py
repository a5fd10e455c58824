"""What happens to machines without our asking: power that changed, leases, life-cycle events of hypervisors. Recorded, never forced.

Somebody may have pulled the plug on purpose: a changed power state is an event and a column, and nothing is switched back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from provisiond.drivers.compute import HypervisorTarget, MachineEvent
from provisiond.drivers.dhcp import LeaseEvent
from provisiond.errors import ConfigError, DriverError
from provisiond.inventory import history
from provisiond.inventory.resolve import ResolvedHost, resolve_hosts
from provisiond.inventory.store import EVENTS
from provisiond.inventory.tables import Bmc, Host, Hypervisor, Interface, utcnow
from provisiond.lifecycle.table import State
from provisiond.lifecycle.world import World

log = structlog.get_logger(__name__)

AT_ONCE = 16
RECONNECT_SECONDS = 10.0
_SWITCHED = {"started": "on", "stopped": "off", "crashed": "off"}


class Watch:
    """Polls controllers, follows hypervisors, and takes lease events."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._tasks: list[asyncio.Task[None]] = []
        self._followed: dict[tuple[str, HypervisorTarget], asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Begin; consoles that an earlier process kept are kept on."""
        await self._resume_consoles()
        if self.world.settings.engine.power_poll_seconds:
            self._tasks.append(asyncio.create_task(self._poll_forever(), name="watch-power"))
        self._tasks.append(asyncio.create_task(self._follow_hypervisors(), name="watch-hypervisors"))

    async def stop(self) -> None:
        tasks = [*self._tasks, *self._followed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- controllers -----------------------------------------------------------------------------------

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(self.world.settings.engine.power_poll_seconds)
            try:
                await self.poll()
            except Exception:
                log.exception("watch.poll_failed")

    async def poll(self) -> int:
        """Read the power of every resting host that has a controller; those that failed come first. Returns how many answered."""
        resting = [str(State.READY), str(State.ACTIVE)]
        async with self.world.store.read() as session:
            found = (
                select(col(Host.id))
                .join(Bmc, col(Bmc.host_id) == col(Host.id))
                .where(col(Host.state).in_(resting), col(Host.maintenance) == "")
            )
            ids = list((await session.execute(found.order_by(col(Host.failure).is_(None)))).scalars())
        gate, answered = asyncio.Semaphore(AT_ONCE), 0

        async def one(host: ResolvedHost) -> None:
            nonlocal answered
            async with gate:
                came = await self._poll_one(host)  # before adding: others count meanwhile
                answered += came

        for begin in range(0, len(ids), 200):
            async with self.world.store.read() as session:
                hosts = await resolve_hosts(session, ids[begin : begin + 200])
            await asyncio.gather(*(one(host) for host in hosts))
        return answered

    async def _poll_one(self, host: ResolvedHost) -> bool:
        try:
            reach = self.world.power_of(host)
            if reach is None:
                return False
            power, target = reach
            state = str(await power.state(target))
        except (
            DriverError,
            ConfigError,
        ) as error:  # no such driver, a secret of another key: one host's trouble
            log.info("watch.no_answer", host=host.name, error=str(error))
            return False
        await self.seen(host.id, state, actor="bmc")
        return True

    async def seen(self, host_id: str, state: str, *, actor: str) -> None:
        """Record the power state that was seen; an event only where it changed."""

        async def work(session: AsyncSession) -> None:
            host = (
                (await session.execute(select(Host).where(col(Host.id) == host_id).with_for_update()))
                .scalars()
                .first()
            )
            if host is None:
                return
            if host.power != state:
                await history.add(
                    session,
                    host=host,
                    kind="power.seen",
                    actor=actor,
                    message=f"power is {state}",
                    data={"was": host.power},
                )
            changed = update(Host).where(col(Host.id) == host_id).values(power=state, power_seen_at=utcnow())
            await session.execute(changed.execution_options(synchronize_session=False))

        await self.world.store.transact(work, EVENTS)

    async def _resume_consoles(self) -> None:
        """Of hosts in the middle of a build, or of a task in the ramdisk. Not on PostgreSQL, where the daemon that started the machine may
        well be alive: a controller has one console."""
        if not self.world.store.sqlite:
            return
        on_their_way = [str(state) for state in (State.BUILDING, State.PROVISIONED, State.CONFIGURING)]
        in_ramdisk = [str(state) for state in (State.INSPECTING, State.RESCUE, State.RELEASING)]
        async with self.world.store.read() as session:
            found = (
                select(col(Host.id))
                .join(Bmc, col(Bmc.host_id) == col(Host.id))
                .where(
                    col(Host.state).in_(on_their_way)
                    | (col(Host.state).in_(in_ramdisk) & col(Host.task_id).isnot(None))
                )
            )
            hosts = await resolve_hosts(session, list((await session.execute(found)).scalars()))
        for host in hosts:
            with suppress(ConfigError):  # a driver that is gone: its steps will say so
                if (reach := self.world.power_of(host)) is not None:
                    self.world.consoles.follow(host, *reach)

    # --- hypervisors -----------------------------------------------------------------------------------

    async def _follow_hypervisors(self) -> None:
        """A follower for each hypervisor; new, changed and removed ones are noticed within ``RECONNECT_SECONDS``."""
        while True:
            try:
                await self.follow_hypervisors()
            except Exception:
                log.exception("watch.look_failed")
            await asyncio.sleep(RECONNECT_SECONDS)

    async def follow_hypervisors(self) -> None:
        """Follow those there are now, and leave those that are gone or have another address."""
        async with self.world.store.read() as session:
            rows: Sequence[Hypervisor] = (await session.execute(select(Hypervisor))).scalars().all()
        there = {(row.driver, HypervisorTarget(name=row.name, uri=row.uri, pool=row.pool)) for row in rows}
        for key in self._followed.keys() - there:
            self._followed.pop(key).cancel()
        for driver, target in there - self._followed.keys():
            self._followed[driver, target] = asyncio.create_task(
                self._follow(driver, target), name=f"watch-{target.name}"
            )

    async def _follow(self, driver: str, target: HypervisorTarget) -> None:
        while True:
            try:
                async for event in self.world.rooms.get("compute", driver).events(target):
                    await self._machine(event)
            except DriverError as error:
                log.info("watch.hypervisor_away", hypervisor=target.name, error=str(error))
            except Exception:
                log.exception("watch.hypervisor_failed", hypervisor=target.name)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _machine(self, event: MachineEvent) -> None:
        if event.kind in _SWITCHED:
            await self.seen(event.uuid, _SWITCHED[event.kind], actor="hypervisor")

    # --- leases ------------------------------------------------------------------------------------------

    async def on_lease(self, event: LeaseEvent) -> None:
        """A DHCP lease was given, renewed or ended; renewals are not news and stay out of the history."""
        if event.kind == "renewed":
            return

        async def work(session: AsyncSession) -> None:
            found = (
                select(Host)
                .join(Interface, col(Interface.host_id) == col(Host.id))
                .where(col(Interface.mac) == event.mac)
            )
            host = (await session.execute(found)).scalars().first()
            if host is not None:
                data = {"mac": event.mac, "ip": event.ip, "hostname": event.hostname}
                await history.add(
                    session,
                    host=host,
                    kind=f"lease.{event.kind}",
                    actor="dhcp",
                    message=f"{event.mac} {event.ip}",
                    data=data,
                )

        await self.world.store.transact(work, EVENTS)
