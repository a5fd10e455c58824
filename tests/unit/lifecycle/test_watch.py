"""What happens to machines without our asking is recorded, once, and nothing is switched back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import delete, select, update

from provisiond.drivers.compute import HypervisorTarget, MachineSpec
from provisiond.drivers.dhcp import LeaseEvent
from provisiond.drivers.power import PowerState, PowerTarget
from provisiond.inventory.tables import Bmc, Hypervisor
from provisiond.lifecycle.watch import Watch
from tests.integration.engine.rig import Rig


@pytest_asyncio.fixture
async def watch(rig: Rig) -> AsyncIterator[Watch]:
    """Not started; stopped at the end."""
    made = Watch(rig.world)
    yield made
    await made.stop()


async def kinds(rig: Rig, name: str) -> list[str]:
    return [event.kind for event in await rig.events(name)]


async def power_is(rig: Rig, name: str, power: str, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while (await rig.row(name)).power != power:
            await asyncio.sleep(0.01)


async def test_a_change_is_an_event_and_sameness_is_none(rig: Rig, watch: Watch) -> None:
    """Seen twice, told once; the time of the last look is kept."""
    host_id = await rig.add("web01", 20, state="active")
    await watch.seen(host_id, "on", actor="bmc")
    first = (await rig.row("web01")).power_seen_at
    await watch.seen(host_id, "on", actor="bmc")
    row = await rig.row("web01")
    assert (
        row.power == "on"
        and row.power_seen_at is not None
        and first is not None
        and row.power_seen_at > first
    )
    assert await kinds(rig, "web01") == ["power.seen"]


async def test_a_machine_nobody_knows_is_passed_over(rig: Rig, watch: Watch) -> None:
    """Hypervisors tell of machines that are not ours."""
    await watch.seen("no-such-host", "on", actor="hypervisor")


async def test_polling_records_and_forces_nothing(rig: Rig, watch: Watch) -> None:
    """Somebody pulled the plug: that is written down, and the machine stays off."""
    await rig.add("web01", 20, state="active", power="on")
    await rig.add("busy", 21, state="building")
    await rig.add("kept", 22, state="active", maintenance="a new fan")
    assert await watch.poll() == 1
    row = await rig.row("web01")
    assert (row.power, row.due_at is not None) == ("off", True)
    assert {(call.what, call.host) for call in rig.power.calls} == {("state", "web01")}


async def test_dead_controllers_delay_nobody(rig: Rig, watch: Watch) -> None:
    """Five that hang until they are given up are asked beside the others, not before them."""
    for number in range(25):
        dead = number < 5
        options = {"latency": "1.5", "dead": "true"} if dead else {}
        await rig.add(f"web{number}", 20 + number, state="ready", options=options)
    began = time.monotonic()
    assert await watch.poll() == 20
    assert time.monotonic() - began < 6.0  # one after the other they would take 7.5
    assert (await rig.row("web0")).power is None and (await rig.row("web24")).power == "off"


async def test_failing_hosts_are_asked_first(rig: Rig, watch: Watch) -> None:
    """They are what somebody is waiting for."""
    await rig.add("well", 20, state="ready")
    await rig.add("ill", 21, state="ready", failure="no answer")
    await watch.poll()
    assert [call.host for call in rig.power.calls] == ["ill", "well"]


async def test_a_secret_of_another_key_is_one_hosts_trouble(rig: Rig, watch: Watch) -> None:
    """The controller whose password cannot be read is passed over, the others are asked."""
    broken = await rig.add("web01", 20, state="ready")
    await rig.add("web02", 21, state="ready")
    async with rig.store.write() as session:
        await session.execute(update(Bmc).where(Bmc.host_id == broken).values(secret="nonsense"))
    assert await watch.poll() == 1


async def test_a_hypervisor_tells_of_power(rig: Rig, watch: Watch) -> None:
    """A machine that was stopped behind our back is off, at once; how it stood at the beginning is told too."""
    host_id = await rig.add("vm01", 20, virtual=True, state="active", power="on")
    target = HypervisorTarget("hv1", rig.hypervisor_uri)
    await rig.compute.ensure(target, MachineSpec(host_id, "vm01", 1, 512, (), ()))
    await watch.follow_hypervisors()
    await power_is(rig, "vm01", "off")
    rig.compute.power(target, host_id, on=True)
    await power_is(rig, "vm01", "on")
    assert await kinds(rig, "vm01") == ["power.seen", "power.seen"]


async def test_a_hypervisor_that_moved_is_followed_where_it_is(rig: Rig, watch: Watch) -> None:
    """A changed address takes effect without a restart, and one that was removed is left."""
    await watch.follow_hypervisors()
    await watch.follow_hypervisors()
    assert [target.uri for _, target in watch._followed] == ["fake://memory"]
    async with rig.store.write() as session:
        await session.execute(update(Hypervisor).values(uri="fake://elsewhere"))
    await watch.follow_hypervisors()
    assert [target.uri for _, target in watch._followed] == ["fake://elsewhere"]
    async with rig.store.write() as session:
        await session.execute(delete(Hypervisor))
    await watch.follow_hypervisors()
    assert watch._followed == {}


async def test_leases_are_told_and_renewals_are_not(rig: Rig, watch: Watch) -> None:
    """A lease given or ended is news; a stranger's is nobody's history."""
    await rig.add("web01", 20)
    for kind in ("added", "renewed", "removed"):
        await watch.on_lease(LeaseEvent(kind, "52:54:00:00:00:14", "192.0.2.20", "web01"))
    await watch.on_lease(LeaseEvent("added", "52:54:00:ff:ff:ff", "192.0.2.66", ""))
    assert await kinds(rig, "web01") == ["lease.added", "lease.removed"]
    async with rig.store.read() as session:
        found = (await session.execute(select(Bmc.address))).scalars().all()
    assert found == ["web01"]


async def test_the_fake_machine_is_off_until_told(rig: Rig) -> None:
    """What the tests above take for granted."""
    assert await rig.power.state(PowerTarget(host="x", address="x")) is PowerState.OFF


@pytest.mark.parametrize("stands", ["building/install", "inspecting/tests", "rescue/stay", "releasing/erase"])
async def test_consoles_are_kept_on_after_a_restart(rig: Rig, watch: Watch, stands: str) -> None:
    """Of a host in the middle of its build or of a task in the ramdisk; one that rests is left alone."""
    state, _, step = stands.partition("/")
    building = await rig.add(
        "web01", 20, state=state, step=step, task_id=None if state == "building" else "t1"
    )
    resting = await rig.add("web02", 21, state="ready")
    await watch.start()
    target = PowerTarget("web01", "web01", password="secret")
    path = rig.world.consoles.path(building)
    async with asyncio.timeout(30):
        while not (path.exists() and b"login:" in path.read_bytes()):
            rig.power.write_console(target, b"login:")
            await asyncio.sleep(0.02)
    assert not rig.world.consoles.path(resting).exists()
