"""Redfish services with bad manners: error after success, redirects, links to elsewhere. On loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget
from provisiond.drivers.power.redfish import RedfishPower
from provisiond.errors import DriverRejected, DriverUnavailable

SYSTEM = "/redfish/v1/Systems/1"


@dataclass
class Service:
    """A Redfish service of one system; ``reset_status`` is what it answers to an order it carries out."""

    port: int = 0
    power: str = "Off"
    reset_status: list[int] = field(default_factory=list)
    obeys: list[bool] = field(default_factory=list)
    boot: dict[str, Any] = field(default_factory=lambda: {"BootSourceOverrideEnabled": "Disabled"})
    systems: str = "/redfish/v1/Systems"
    redirect: str = ""
    patches: list[dict[str, Any]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/redfish/v1/", self._root)
        app.router.add_get("/redfish/v1/Systems", self._list)
        app.router.add_get(SYSTEM, self._get)
        app.router.add_patch(SYSTEM, self._patch)
        app.router.add_post(f"{SYSTEM}/Actions/ComputerSystem.Reset", self._reset)
        return app

    async def _root(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"Id": "Root", "RedfishVersion": "1.6.0", "Systems": {"@odata.id": self.systems}}
        )

    async def _list(self, request: web.Request) -> web.Response:
        self.seen.append(request.headers.get("Authorization", ""))
        if self.redirect:
            raise web.HTTPTemporaryRedirect(self.redirect)
        return web.json_response(
            {"Name": "Systems", "Members": [{"@odata.id": SYSTEM}], "Members@odata.count": 1}
        )

    async def _get(self, _: web.Request) -> web.Response:
        reset = {"target": f"{SYSTEM}/Actions/ComputerSystem.Reset"}
        reset["ResetType@Redfish.AllowableValues"] = ["On", "ForceOff", "ForceRestart"]  # type: ignore[assignment]
        body = {"@odata.id": SYSTEM, "Id": "1", "Name": "one", "PowerState": self.power, "Boot": self.boot}
        return web.json_response({**body, "Actions": {"#ComputerSystem.Reset": reset}})

    async def _patch(self, request: web.Request) -> web.Response:
        self.patches.append(await request.json())
        self.boot.update(self.patches[-1]["Boot"])
        return web.json_response({})

    async def _reset(self, request: web.Request) -> web.Response:
        order = (await request.json())["ResetType"]
        if not self.obeys or self.obeys.pop(0):
            self.power = "Off" if order == "ForceOff" else "On"
        return web.json_response({}, status=self.reset_status.pop(0) if self.reset_status else 204)


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    """One on a free port of the loopback."""
    made = Service()
    runner = web.AppRunner(made.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[RedfishPower]:
    """A driver of this test alone."""
    made = RedfishPower()
    yield made
    await made.close()


def target(service: Service, **options: str) -> PowerTarget:
    given = {"scheme": "http", "auth": "basic", **options}
    return PowerTarget("web01", "127.0.0.1", service.port, "admin", "labpass", options=tuple(given.items()))


@pytest.mark.parametrize("status", [400, 409, 500])
async def test_error_after_success_is_success(service: Service, driver: RedfishPower, status: int) -> None:
    """The state is the wanted one: done."""
    service.reset_status = [status]
    assert await driver.set(target(service), PowerAction.ON) is PowerState.ON


async def test_refused_at_first(
    service: Service, driver: RedfishPower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """iDRAC takes no 'On' for a while after 'Off': the order is given again."""
    monkeypatch.setattr("provisiond.drivers.power.reach.ASK_AGAIN", 0.1)
    service.reset_status, service.obeys = [409, 409], [False, False, True]
    assert await driver.set(target(service), PowerAction.ON) is PowerState.ON


async def test_redirect_is_not_followed(service: Service, driver: RedfishPower) -> None:
    """Credentials are sent to the address that was given and nowhere else."""
    service.redirect = f"http://localhost:{service.port}{SYSTEM}"
    with pytest.raises(DriverRejected, match="redirects to http://localhost") as caught:
        await driver.state(target(service))
    assert "labpass" not in str(caught.value) and len(service.seen) == 1


async def test_link_to_elsewhere_is_not_followed(service: Service, driver: RedfishPower) -> None:
    """A resource that names another origin is not asked."""
    service.systems = f"http://localhost:{service.port}/redfish/v1/Systems"
    with pytest.raises(DriverRejected, match="another address"):
        await driver.state(target(service))
    assert service.seen == []


async def test_boot_mode_is_left_alone(service: Service, driver: RedfishPower) -> None:
    """The mode is written only where it differs; what is set already is not set again."""
    service.boot["BootSourceOverrideMode"] = "Legacy"
    for _ in range(2):
        await driver.set_boot(target(service), BootDevice.NETWORK, once=True)
    assert service.patches == [
        {"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}}
    ]
    uefi = PowerTarget(**{**target(service).__dict__, "uefi": True})
    await driver.set_boot(uefi, BootDevice.NETWORK, once=True)
    assert service.patches[-1]["Boot"]["BootSourceOverrideMode"] == "UEFI"


async def test_disk_without_a_name(service: Service, driver: RedfishPower) -> None:
    """A service that cannot name the disk gets its override switched off."""
    service.boot["BootSourceOverrideTarget@Redfish.AllowableValues"] = ["None", "Pxe", "Cd"]
    await driver.set_boot(target(service), BootDevice.NETWORK)
    await driver.set_boot(target(service), BootDevice.DISK)
    assert service.boot["BootSourceOverrideEnabled"] == "Disabled"
    assert await driver.boot_device(target(service)) is None


async def test_read_timeout(service: Service, driver: RedfishPower) -> None:
    """Connected but silent: the time to read is its own limit."""

    async def silent(_: Any, writer: Any) -> None:
        await asyncio.sleep(5)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    with pytest.raises(DriverUnavailable, match="no answer in time"):
        await driver.state(target(service, read_timeout="0.3"))
    server.close()
