"""Serial consoles into files: kept while a host is built, cut when long, taken up again when they break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from provisiond.drivers.power import PowerTarget
from provisiond.drivers.power.fake import FakePower
from provisiond.errors import Unsupported
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Bmc
from provisiond.lifecycle import consoles as module
from provisiond.lifecycle.consoles import Consoles
from tests.unit.lifecycle.hosts import a_host

TARGET = PowerTarget(host="web01", address="web01")


@pytest_asyncio.fixture
async def consoles(tmp_path: Path) -> AsyncIterator[Consoles]:
    """In a directory that does not exist yet."""
    made = Consoles(tmp_path / "console")
    yield made
    await made.close()


def physical(**options: bool) -> ResolvedHost:
    return replace(a_host(), bmc=Bmc(host_id="h1", driver="fake", address="web01", options=dict(options)))


async def writes(consoles: Consoles, power: FakePower, text: bytes) -> None:
    """Write until it is in the file: following begins in the background."""
    path = consoles.path("h1")
    async with asyncio.timeout(30):
        while not (path.exists() and text in path.read_bytes()):
            power.write_console(TARGET, text)
            await asyncio.sleep(0.01)


async def test_what_a_machine_writes_is_kept(consoles: Consoles) -> None:
    """Until it is left; what was kept stays."""
    power = FakePower()
    consoles.follow(physical(), power, TARGET)
    await writes(consoles, power, b"Booting\r\n")
    consoles.leave("h1")
    await asyncio.sleep(0.02)
    kept = consoles.path("h1").read_bytes()
    power.write_console(TARGET, b"later")
    await asyncio.sleep(0.02)
    assert consoles.path("h1").read_bytes() == kept


async def test_followed_once(consoles: Consoles) -> None:
    """A step that runs again does not open a second console: many controllers have only one."""
    power = FakePower()
    for _ in range(3):
        consoles.follow(physical(), power, TARGET)
    await writes(consoles, power, b"x")
    assert [call.what for call in power.calls] == ["console"]


async def test_what_is_not_wanted_or_not_there_is_not_followed(consoles: Consoles) -> None:
    """A virtual machine's console is written by its hypervisor; a controller's may be switched off."""
    power = FakePower()
    consoles.follow(a_host(), power, TARGET)
    consoles.follow(physical(console=False), power, TARGET)
    await asyncio.sleep(0.02)
    assert not power.calls and not consoles.directory.exists()


async def test_a_long_console_is_cut(consoles: Consoles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is full is put aside, and one is kept of those."""
    monkeypatch.setattr(module, "KEEP_BYTES", 1000)
    power = FakePower()
    consoles.follow(physical(), power, TARGET)
    for letter in (b"a", b"b", b"c"):
        await writes(consoles, power, letter * 1001)
    files = sorted(path.name for path in consoles.directory.iterdir())
    assert files == ["h1.log", "h1.log.1"]
    assert all(path.stat().st_size < 4000 for path in consoles.directory.iterdir())


async def test_a_broken_console_is_taken_up_again(
    consoles: Consoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller was away: after a pause it is asked again."""
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.01)
    power = FakePower(dead=["web01"])
    consoles.follow(physical(), power, TARGET)
    async with asyncio.timeout(30):
        while len(power.calls) < 3:
            await asyncio.sleep(0.01)
    power.dead.clear()
    await writes(consoles, power, b"back")


async def test_a_controller_without_a_console_is_left(consoles: Consoles) -> None:
    """It is not asked for ever."""

    class Mute(FakePower):
        asked = 0

        async def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
            self.asked += 1
            raise Unsupported("no console")
            yield b""

    power = Mute()
    consoles.follow(physical(), power, TARGET)
    async with asyncio.timeout(30):
        while not (consoles._tasks["h1"].done()):
            await asyncio.sleep(0.01)
    assert power.asked == 1
