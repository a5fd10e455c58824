"""A boot server over a real database, real templates and real files, for tests of the boot room."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web
from sqlalchemy import update
from sqlmodel import col, select

from provisiond.boot import tickets
from provisiond.boot.files import TftpFiles
from provisiond.boot.http import BootAccessLogger, boot_app
from provisiond.boot.loader import Loaders, load
from provisiond.boot.machines import Machines
from provisiond.boot.scripts import Scripts
from provisiond.boot.shares import Shares
from provisiond.config import BootSettings, Settings, StateSettings, TemplateSettings
from provisiond.inventory.release_tables import EVERYWHERE
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import (
    Deployment,
    Domain,
    Event,
    Host,
    Image,
    Interface,
    Medium,
    OperatingSystem,
    Subnet,
    new_id,
    utcnow,
)
from provisiond.media.blockmap import MIB, BlockMap, map_path, used_extents
from provisiond.templating.release import Renderings
from tests.fake_ramdisk import FakeRamdisk

KERNEL, INITRD = b"\x7fKERNEL" * 1000, b"INITRD" * 5000
RAMDISK_KERNEL, RAMDISK_INITRD = b"ramdisk-kernel" * 100, b"ramdisk-initrd" * 100


@dataclass
class BootWorld:
    """What boot_app needs of the daemon's World."""

    settings: Settings
    store: Store
    box: SecretBox
    renderings: Renderings
    boot_url: str = "http://127.0.0.1:0"


@dataclass
class Served:
    """A running boot server. ``get`` and ``post`` take paths below its root."""

    world: BootWorld
    client: ClientSession
    machines: Machines
    files: TftpFiles
    loaders: Loaders
    image: Path
    rows: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, **options: Any) -> tuple[int, str]:
        """(status, text) of a GET."""
        async with self.client.get(self.world.boot_url + path, **options) as answer:
            return answer.status, (await answer.read()).decode("utf-8", "replace")

    async def post(self, path: str, data: Any = "", **options: Any) -> tuple[int, str]:
        """(status, text) of a POST; a mapping is sent as a form."""
        async with self.client.post(self.world.boot_url + path, data=data, **options) as answer:
            return answer.status, await answer.text()

    async def agent(self, mac: str, host_id: str | None = None, **options: Any) -> FakeRamdisk:
        """The ramdisk of the machine with this card, its ticket claimed; whatever its boot script says."""
        keys = self.world.box.derived(tickets.PURPOSE)
        ramdisk = FakeRamdisk(self.client, self.world.boot_url, mac, **options)
        ramdisk.ticket = tickets.issue(keys, mac, host_id, utcnow())
        await ramdisk.claim()
        return ramdisk

    async def tftp(self, path: str, client_ip: str = "192.0.2.1") -> bytes | None:
        """What TFTP would serve."""
        found = await self.files.lookup(path, client_ip)
        return found.read_bytes() if isinstance(found, Path) else found

    async def host(
        self,
        name: str,
        *,
        state: str = "building",
        step: str = "install",
        method: str = "image",
        **columns: Any,
    ) -> Built:
        """A host with one network card and, when it is being built, a deployment with a fresh token."""
        number = len(self.rows)
        mac, ip = f"52:54:00:00:00:{number:02x}", f"192.0.2.{10 + number}"
        token = secrets.token_urlsafe(32)
        host = Host(
            name=name,
            state=state,
            step=step,
            method=method,
            image_id=self.rows["image"],
            medium_id=self.rows["medium"],
            **columns,
        )
        deployment = Deployment(
            host_id=host.id, method=method, token_hash=hashlib.sha256(token.encode()).hexdigest(),
            secret_seed=self.world.box.encrypt(token), token_expires=utcnow() + timedelta(minutes=60),
            release_id=(await self.world.renderings.standing()).pointers[EVERYWHERE],
        )  # fmt: skip
        host.deployment_id = deployment.id
        async with self.world.store.write() as session:
            session.add(host)
            await session.flush()
            session.add(
                Interface(
                    host_id=host.id, mac=mac, ip=ip, subnet_id=self.rows["subnet"], primary=True, name="eth0"
                )
            )
            session.add(deployment)
        built = Built(self, host.id, deployment.id, token, mac, ip)
        self.rows[name] = built.id
        return built


@dataclass
class Built:
    """A host of Served."""

    served: Served
    id: str
    deployment_id: str
    token: str
    mac: str
    ip: str

    @property
    def base(self) -> str:
        """The path of its build."""
        return f"/boot/{self.token}"

    async def agent(self, **options: Any) -> FakeRamdisk:
        """Its ramdisk, as Served.agent."""
        return await self.served.agent(self.mac, self.id, **options)

    async def set(self, **columns: Any) -> None:
        """Change its row."""
        async with self.served.world.store.write() as session:
            await session.execute(update(Host).where(col(Host.id) == self.id).values(**columns))

    async def set_deployment(self, **columns: Any) -> None:
        """Change its deployment's row."""
        async with self.served.world.store.write() as session:
            await session.execute(
                update(Deployment).where(col(Deployment.id) == self.deployment_id).values(**columns)
            )

    async def deployment(self) -> Deployment:
        """Its deployment as stored."""
        async with self.served.world.store.read() as session:
            return (
                await session.execute(select(Deployment).where(col(Deployment.id) == self.deployment_id))
            ).scalar_one()

    async def events(self) -> list[str]:
        """Kinds of its events, oldest first."""
        async with self.served.world.store.read() as session:
            found = select(Event.kind).where(col(Event.host_id) == self.id).order_by(col(Event.id))
            return list((await session.execute(found)).scalars())

    def boots_again(self) -> None:
        """Let time pass: the next request is another boot."""
        self.served.machines._counted.clear()


def write_image(folder: Path) -> Path:
    """A sparse raw image of 12 MiB with data in MiB 0, 1, 5 and 11, and its map."""
    folder.mkdir(parents=True)
    raw = folder / "debian-0123.raw"
    with raw.open("wb") as file:
        file.truncate(12 * MIB)
        for place in (0, 1, 5, 11):
            file.seek(place * MIB)
            file.write(bytes([place + 1]) * MIB)
    map_path(raw).write_text(BlockMap(12, used_extents(raw)).json())
    return raw


def used_bytes(raw: Path) -> bytes:
    """The stream of an image."""
    content = raw.read_bytes()
    return b"".join(content[first * MIB : (first + count) * MIB] for first, count in used_extents(raw))


async def seed(store: Store, raw: Path) -> dict[str, str]:
    """Operating system, medium, image, subnet and domain; their ids."""
    ids = {name: new_id() for name in ("os", "medium", "image", "subnet", "domain", "spare")}
    files = {
        n: {"path": f"debian-12/{n}", "sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)}
        for n, c in (("kernel", KERNEL), ("initrd", INITRD))
    }
    async with store.write() as session:
        session.add(OperatingSystem(id=ids["os"], name="debian-12", family="debian", version="12"))
        session.add(Domain(id=ids["domain"], name="example.test"))
        await session.flush()
        session.add(
            Medium(
                id=ids["medium"], name="debian-12", operating_system_id=ids["os"], source="x", mirror="http://deb.debian.org/debian",
                files=files, ready=True,
            )
        )  # fmt: skip
        session.add(
            Image(
                id=ids["image"], name="debian", operating_system_id=ids["os"], path=raw.name, format="raw",
                sha256=hashlib.sha256(used_bytes(raw)).hexdigest(), size=12 * MIB,
            )
        )  # fmt: skip
        session.add(
            Subnet(
                id=ids["subnet"], name="lab", cidr="192.0.2.0/24", gateway="192.0.2.1", dns=["192.0.2.1"],
                pools=[["192.0.2.10", "192.0.2.99"]], domain_id=ids["domain"],
            )
        )  # fmt: skip
    return ids


@asynccontextmanager
async def boot_world(store: Store, box: SecretBox, folder: Path, **boot: Any) -> AsyncIterator[Served]:
    """A boot server on a free port of the loopback."""
    ramdisk = folder / "ramdisk"
    media = folder / "state/media/debian-12"
    for place, kernel, initrd in (
        (ramdisk, ("vmlinuz", RAMDISK_KERNEL), ("initrd.img", RAMDISK_INITRD)),
        (media, ("kernel", KERNEL), ("initrd", INITRD)),
    ):
        place.mkdir(parents=True)
        for name, content in (kernel, initrd):
            (place / name).write_bytes(content)
    programs = folder / "loaders"
    programs.mkdir()
    for name in (
        "undionly.kpxe",
        "snponly.efi",
        "ipxe.efi",
        "pxelinux.0",
        "ldlinux.c32",
        "shimx64.efi.signed",
        "grubnetx64.efi.signed",
    ):
        (programs / name).write_bytes(name.encode())
    settings = Settings(
        state=StateSettings(dir=folder / "state"),
        boot=BootSettings(ramdisk_dir=ramdisk, loader_dirs=[programs], **boot),
    )
    raw = write_image(settings.state.image_dir)
    rows = await seed(store, raw)
    world = BootWorld(settings, store, box, await Renderings.open(store, TemplateSettings()))
    machines = Machines(world)
    scripts = Scripts(world, machines)
    loaders = load(settings.boot.loader_dirs)
    runner = web.AppRunner(
        boot_app(world, loaders, machines, scripts, Shares()), access_log_class=BootAccessLogger
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        world.boot_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ClientSession(auto_decompress=False) as client:
            yield Served(world, client, machines, TftpFiles(loaders, machines, scripts), loaders, raw, rows)
    finally:
        await runner.cleanup()


def when(minutes: float) -> datetime:
    """A time from now."""
    return utcnow() + timedelta(minutes=minutes)
