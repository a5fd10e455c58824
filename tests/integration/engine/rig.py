"""A world of fakes around the real engine and a real database, and a robot that plays the machines.

With a directory the fakes keep their state in files, so that it outlives a ``kill -9`` of the process and can be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from sqlalchemy import select

from provisiond.boot.server import open_room
from provisiond.config import load_settings
from provisiond.drivers import load
from provisiond.drivers.compute.fake import FakeCompute
from provisiond.drivers.dhcp import DhcpOptions
from provisiond.drivers.dhcp.fake import FakeDhcp
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import HOSTS, Store
from provisiond.inventory.tables import (
    Bmc,
    Deployment,
    Event,
    Flavor,
    Host,
    Hypervisor,
    Image,
    Interface,
    OperatingSystem,
    Subnet,
    utcnow,
)
from provisiond.lifecycle import signals
from provisiond.lifecycle.consoles import Consoles
from provisiond.lifecycle.outcome import Outcome
from provisiond.lifecycle.reconciler import Boundary, Reconciler
from provisiond.lifecycle.world import Rooms, World
from provisiond.templating.release import Renderings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample host"


@dataclass
class Rig:
    """Everything of one test; ``open`` makes the schema's content once, so it may be opened again on the same database."""

    url: str
    directory: Path
    engine: dict[str, Any] = field(default_factory=dict)
    on_disk: bool = False
    boundary: Boundary | None = None
    erase: str = (
        "none"  # the setting erase.default: machines that the fake switches have no ramdisk by themselves
    )
    robot: bool = True
    """Whether machines answer by themselves: report built after their boot, and phone home."""

    async def open(self) -> Rig:
        self.settings = load_settings(
            overrides={
                "state": {"dir": self.directory},
                "engine": {"power_poll_seconds": 0, **self.engine},
                "handover": {"driver": "fake"},
                "erase": {"default": self.erase},
            }
        )
        self.store = Store(self.url)
        await self.store.open()
        self.box = SecretBox.open(self.settings.state.key_file)
        files = self.directory / "fakes" if self.on_disk else None
        self.compute = FakeCompute()
        self.dhcp = FakeDhcp(DhcpOptions(run_dir=files / "dhcp") if files else None)
        self.power = load("power", "fake")(directory=files / "power" if files else None)
        self.handover = load("handover", "fake")(directory=files / "handover" if files else None)
        drivers = {
            ("power", "fake"): self.power,
            ("compute", "fake"): self.compute,
            ("handover", "fake"): self.handover,
        }
        self.hypervisor_uri = f"fake://{files / 'compute'}" if files else "fake://memory"
        self.renderings = await Renderings.open(self.store, self.settings.templates)
        self.world = World(
            settings=self.settings,
            store=self.store,
            box=self.box,
            rooms=Rooms(lambda room, name: drivers[room, name]),
            dhcp=self.dhcp,
            renderings=self.renderings,
            boot_url="http://192.0.2.1:8421",
            consoles=Consoles(self.directory / "console"),
        )
        self.reconciler = Reconciler(self.world, boundary=self._boundary)
        self._robots: set[asyncio.Task[None]] = set()
        return self

    async def close(self) -> None:
        await self.reconciler.stop(5)
        await asyncio.gather(*self._robots, return_exceptions=True)
        await self.world.consoles.close()
        await self.world.rooms.close()
        await self.store.close()

    # --- hosts ---------------------------------------------------------------------------------------------

    async def serve(self, door: socket.socket) -> web.AppRunner:
        """The boot server, on a listening socket; the runner is to be cleaned up."""
        self.world.boot_url = f"http://127.0.0.1:{door.getsockname()[1]}"
        folder = self.directory / "ramdisk"
        folder.mkdir(exist_ok=True)
        for name in ("vmlinuz", "initrd.img"):
            (folder / name).write_bytes(b"x")
        boot = self.settings.boot.model_copy(update={"ramdisk_dir": folder})
        self.world.settings = self.settings.model_copy(update={"boot": boot})
        runner = web.AppRunner(open_room(self.world).app)
        await runner.setup()
        await web.SockSite(runner, door).start()
        return runner

    async def furnish(self) -> None:
        """A subnet, a hypervisor, a flavor and an image, once."""
        async with self.store.write() as session:
            if (await session.execute(select(Subnet))).first():
                return
            system = OperatingSystem(name="debian-12", family="debian", version="12")
            session.add(system)
            await session.flush()
            session.add(Subnet(name="lab", cidr="192.0.2.0/24", pools=[["192.0.2.10", "192.0.2.250"]]))
            session.add(Hypervisor(name="hv1", driver="fake", uri=self.hypervisor_uri))
            session.add(Flavor(name="small"))
            session.add(
                Image(
                    name="debian-12",
                    operating_system_id=system.id,
                    path="d12.raw",
                    format="raw",
                    sha256="0" * 64,
                    size=1 << 20,
                )
            )

    async def add(
        self,
        name: str,
        number: int,
        *,
        virtual: bool = False,
        options: dict[str, str] | None = None,
        **columns: Any,
    ) -> str:
        """A host that is enrolled and due; its number makes its MAC and address. Returns its id."""
        async with self.store.write(HOSTS) as session:
            one = {
                m: (await session.execute(select(m))).scalars().first()
                for m in (Subnet, Hypervisor, Flavor, Image)
            }
            subnet, hypervisor, flavor, image = (cast(Any, row) for row in one.values())
            host = Host(
                name=name, due_at=utcnow(), image_id=image.id, hypervisor_id=hypervisor.id if virtual else None,
                flavor_id=flavor.id if virtual else None, limit_key="hv:hv1" if virtual else f"fake:{name}:", **columns,
            )  # fmt: skip
            session.add(host)
            await session.flush()
            ip = f"192.0.2.{number}" if number < 255 else None
            mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
            session.add(Interface(host_id=host.id, mac=mac, ip=ip, subnet_id=subnet.id))
            if not virtual:
                secret = self.box.encrypt("secret")
                session.add(
                    Bmc(host_id=host.id, driver="fake", address=name, secret=secret, options=options or {})
                )
            return host.id

    async def row(self, name: str) -> Host:
        async with self.store.read() as session:
            return (await session.execute(select(Host).where(Host.name == name))).scalars().one()

    async def deployments(self, name: str) -> list[Deployment]:
        host = await self.row(name)
        async with self.store.read() as session:
            found = select(Deployment).where(Deployment.host_id == host.id).order_by(Deployment.number)
            return list((await session.execute(found)).scalars())

    async def events(self, name: str) -> list[Event]:
        async with self.store.read() as session:
            found = select(Event).where(Event.host_name == name).order_by(Event.id)
            return list((await session.execute(found)).scalars())

    async def arrives(self, name: str, state: str, seconds: float = 60.0) -> Host:
        """Wait until the host is at rest in ``state``; fails at once when it stands with a final failure."""
        signal = self.store.subscribe("events")
        try:
            async with asyncio.timeout(seconds):
                while True:
                    signal.clear()
                    host = await self.row(name)
                    if host.state == state and host.due_at is None and host.lease_owner is None:
                        return host
                    assert not (host.failure and host.due_at is None), (
                        f"{name} failed in {host.state}: {host.failure}"
                    )
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(signal.wait(), 0.2)
        except TimeoutError:
            host = await self.row(name)
            raise AssertionError(
                f"{name} is {host.state}/{host.step} (due {host.due_at}, failure {host.failure}), not {state}"
            ) from None
        finally:
            self.store.unsubscribe("events", signal)

    async def fails(self, name: str, seconds: float = 60.0) -> Host:
        """Wait until the host stands with a final failure."""
        async with asyncio.timeout(seconds):
            while True:
                host = await self.row(name)
                if host.failure and host.due_at is None:
                    return host
                await asyncio.sleep(0.02)

    # --- machines --------------------------------------------------------------------------------------------

    async def _boundary(self, when: str, host: ResolvedHost, step: str, outcome: Outcome | None) -> None:
        if self.boundary is not None:
            await self.boundary(when, host, step, outcome)
        if self.robot and when == "stored" and step in ("boot", "local"):
            self._play(host.id)

    def _play(self, host_id: str) -> None:
        task = asyncio.create_task(self.machine_answers(host_id))
        self._robots.add(task)
        task.add_done_callback(self._robots.discard)

    async def machine_answers(self, host_id: str) -> None:
        """What a machine does that was switched on: installs if it waits for that, then boots and phones home."""
        async with self.store.read() as session:
            host = (await session.execute(select(Host).where(Host.id == host_id))).scalars().one()
        if host.deployment_id is None:
            return
        if host.state == "building":
            await signals.built(self.store, host.deployment_id)
        await signals.phone_home(self.store, host.deployment_id, [KEY])
