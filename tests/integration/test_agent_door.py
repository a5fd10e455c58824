"""The ramdisk's door through a real server and a real database, with machines that exist only here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from tests.boot_world import Served, boot_world
from tests.fake_ramdisk import FakeRamdisk


@pytest_asyncio.fixture
async def served(store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server, once on each kind of database."""
    async with boot_world(store, box, tmp_path) as running:
        yield running


def machine(served: Served, mac: str, **more: object) -> FakeRamdisk:
    return FakeRamdisk(served.client, served.world.boot_url, mac, **more)  # type: ignore[arg-type]


async def test_image_is_written(served: Served) -> None:
    """From the boot script to done: claim, plan, progress with bytes, the log, and the machine starts what it wrote."""
    host = await served.host("web01")
    one = machine(served, host.mac)
    assert await one.boot()
    assert (await one.claim())["host"] == "web01"
    plan = await one.plan()
    assert (
        plan["id"] == host.deployment_id
        and plan["image"]["url"] == f"{served.world.boot_url}{host.base}/image"
    )
    assert plan["disk"]["first"] and plan["seed"]["user-data"].endswith("/user-data")
    assert await one.run() == "kexec"
    stored = await host.deployment()
    assert stored.built_at is not None and (await one.plan())["action"] == "reboot"
    assert "agent.claimed" in await host.events()
