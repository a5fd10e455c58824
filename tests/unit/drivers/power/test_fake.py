"""The fake fleet: what it records, what it keeps, and the trouble it makes when asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget
from provisiond.drivers.power.fake import FakePower
from provisiond.errors import DriverRejected, DriverUnavailable

TARGET = PowerTarget("web01", "bmc1")


async def test_side_effects_are_counted() -> None:
    """A call that finds everything as wanted is recorded, but is no effect."""
    fleet = FakePower()
    await fleet.set(TARGET, PowerAction.ON)
    await fleet.set(TARGET, PowerAction.ON)
    await fleet.set(TARGET, PowerAction.CYCLE)
    assert [call.what for call in fleet.calls] == ["set"] * 3
    assert [call.argument for call in fleet.effects("set", "web01")] == ["on", "cycle"]
    assert fleet.machine(TARGET).starts == 2 and not fleet.effects("set", "web02")


async def test_state_outlives_the_process(tmp_path: Path) -> None:
    """A second fleet on the same directory sees what the first did, even while that is still there, and half a line is no harm."""
    first = FakePower(directory=tmp_path)
    await first.set(TARGET, PowerAction.ON)
    second = FakePower(directory=tmp_path)
    assert await second.state(TARGET) is PowerState.ON
    await second.set_boot(TARGET, BootDevice.DISK)
    assert await first.boot_device(TARGET) is BootDevice.DISK
    assert [call.what for call in first.calls] == ["set", "state", "set_boot", "boot_device"]
    await first.close()
    await second.close()


async def test_one_time_boot_device_is_used_up() -> None:
    """The next start takes it; another keeps its own."""
    fleet = FakePower()
    await fleet.set_boot(TARGET, BootDevice.NETWORK, once=True)
    await fleet.set(TARGET, PowerAction.ON)
    assert await fleet.boot_device(TARGET) is None


async def test_trouble_by_option() -> None:
    """Dead, lying and busy machines among good ones."""
    fleet = FakePower(password="right")
    good = PowerTarget("web01", "bmc1", password="right")
    assert await fleet.state(good) is PowerState.OFF
    with pytest.raises(DriverRejected, match="web01"):
        await fleet.state(TARGET)
    for option in ("dead", "lies"):
        with pytest.raises(DriverUnavailable, match="web03"):
            await fleet.set(
                PowerTarget("web03", option, password="right", options=((option, "true"),)), PowerAction.ON
            )
    busy = PowerTarget("web04", "busy", password="right", options=(("busy", "2"),))
    for _ in range(2):
        with pytest.raises(DriverUnavailable, match="busy"):
            await fleet.state(busy)
    assert await fleet.state(busy) is PowerState.OFF
    assert [call.failed for call in fleet.calls][-3:] == ["DriverUnavailable", "DriverUnavailable", ""]


async def test_start_is_told() -> None:
    """Each start calls back, once, after the state is kept."""
    started: list[str] = []
    fleet = FakePower(on_start=lambda target: started.append(target.host))
    await fleet.set(TARGET, PowerAction.ON)
    await fleet.set(TARGET, PowerAction.ON)
    await fleet.set(TARGET, PowerAction.RESET)
    await fleet.set(TARGET, PowerAction.OFF)
    assert started == ["web01", "web01"]


async def test_it_is_fast(tmp_path: Path) -> None:
    """Without latency a call costs next to nothing, with the journal little."""
    for fleet, limit in ((FakePower(), 1.0), (FakePower(directory=tmp_path), 2.0)):
        started = time.perf_counter()
        for _ in range(1000):
            await fleet.set(TARGET, PowerAction.CYCLE)
        assert time.perf_counter() - started < limit
        await fleet.close()
