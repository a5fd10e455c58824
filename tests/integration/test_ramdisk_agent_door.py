"""The ramdisk's own agent against the real boot server and a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.media.blockmap import MIB
from ramdisk_agent import client as client_module
from ramdisk_agent import facts, image, seed, stream
from ramdisk_agent.__main__ import Agent
from ramdisk_agent.client import Client, Refused
from ramdisk_agent.device import whole
from ramdisk_agent.work import ACTIONS, Work
from tests.boot_world import Served, boot_world
from tests.fake_ramdisk import FakeRamdisk


@pytest_asyncio.fixture
async def served(store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server, once on each kind of database."""
    async with boot_world(store, box, tmp_path / "world") as running:
        yield running


async def ticket(served: Served, mac: str) -> str:
    """What the boot script gives a machine."""
    machine = FakeRamdisk(served.client, served.world.boot_url, mac)
    assert await machine.boot()
    return machine.ticket


def identity(mac: str) -> dict[str, Any]:
    return {"macs": [mac], "serial": None, "uuid": None}


async def test_image_and_seed(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim, plan, transfer onto a file, the real seed into a tree, log and done; the deployment is built."""
    monkeypatch.setattr(client_module, "EVERY", 0.1)
    host = await served.host("web01")
    disk, root = tmp_path / "disk", tmp_path / "root"
    disk.write_bytes(b"\xee" * (16 * MIB))
    (root / "var/lib/cloud").mkdir(parents=True)

    def action(work: Work) -> dict[str, Any]:
        blocks = stream.read_map(work, work.plan["image"])
        target = whole(str(disk))
        stream.write(work, work.plan["image"], blocks, target)
        target.close()
        seed.write(work, str(root))
        return {"disk": str(disk), "serial": None, "finish": work.plan["finish"]}

    monkeypatch.setitem(ACTIONS, "image", action)
    client = Client(served.world.boot_url)
    given = await ticket(served, host.mac)
    await asyncio.to_thread(client.claim, given, "cd" * 32, identity(host.mac), 30)
    assert client.host == "web01"
    assert await asyncio.to_thread(Agent(client).run) == "kexec"
    assert disk.read_bytes()[: 12 * MIB] == served.image.read_bytes()
    files = root / "var/lib/cloud/seed/nocloud"
    assert 'local-hostname: "web01"' in (files / "user-data").read_text() + (files / "meta-data").read_text()
    assert {oct(path.stat().st_mode & 0o777) for path in files.iterdir()} == {"0o600"}
    assert oct(files.stat().st_mode & 0o777) == "0o700"
    assert (await host.deployment()).built_at is not None
    assert host.token not in client.log.text() and given not in client.log.text()


async def test_failure_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a disk that fits: the deployment fails with the message, and the agent waits for what comes."""
    from ramdisk_agent import disks

    monkeypatch.setattr(disks, "list_disks", list)
    monkeypatch.setattr(image, "APPEAR", 0.2)
    monkeypatch.setattr(facts, "gather", dict)
    host = await served.host("web01")
    client = Client(served.world.boot_url)
    await asyncio.to_thread(client.claim, await ticket(served, host.mac), "cd" * 32, identity(host.mac), 30)
    agent = Agent(client)
    plan = await asyncio.to_thread(client.plan, 30)
    assert await asyncio.to_thread(agent.carry_out, plan) is None
    assert "no fixed disk" in str((await host.deployment()).failure)


async def test_ticket_of_another(served: Served) -> None:
    """A ticket that was used, with another secret: refused in words that a console can show."""
    host = await served.host("web01")
    given = await ticket(served, host.mac)
    await asyncio.to_thread(Client(served.world.boot_url).claim, given, "cd" * 32, identity(host.mac), 30)
    with pytest.raises(Refused, match=r"403 Forbidden: .*ticket"):
        await asyncio.to_thread(
            Client(served.world.boot_url).claim, given, "ee" * 32, identity("02:00:00:00:00:01"), 30
        )
