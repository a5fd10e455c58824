"""The power contract, one suite over the fake and every real driver against a real simulator.

This process moves into the lab's namespace for the module: the drivers' sockets are made inside.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest
import pytest_asyncio

from provisiond.drivers.power import BootDevice, Power, PowerAction, PowerState, PowerTarget
from provisiond.drivers.power.fake import FakePower
from provisiond.drivers.power.ipmi import IpmiPower
from provisiond.drivers.power.libvirt import LibvirtPower
from provisiond.drivers.power.redfish import RedfishPower
from provisiond.errors import DriverError, DriverRejected, DriverUnavailable, Unsupported
from tests.lab.kit.fixtures import libvirtd, need, netns  # noqa: F401 - fixtures
from tests.lab.kit.ipmisim import IpmiSim
from tests.lab.kit.libvirtd import Libvirtd
from tests.lab.kit.netns import Netns
from tests.lab.kit.oddbmc import OddBmcs
from tests.lab.kit.proxies import bad_udp, slow_tcp
from tests.lab.kit.sushy import SushyEmulator
from tests.lab.kit.vbmc import PASSWORD, USER, Vbmcd

pytestmark = [pytest.mark.xdist_group("power"), pytest.mark.timeout(120)]

HERE, DEAD = "10.77.0.1", "10.77.0.99"  # nobody has the second: not even ARP is answered
ON, OFF = PowerState.ON, PowerState.OFF
DOMAIN = """\
<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64'>hvm</type><boot dev='hd'/></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<interface type='bridge'><mac address='{mac}'/><source bridge='br-lab'/><model type='virtio'/></interface>
<graphics type='vnc' passwd='keepme'/></devices></domain>"""


@dataclass(frozen=True)
class Rig:
    """One driver and two machines of it. ``can`` lists what the simulator offers beyond power and boot device."""

    name: str
    make: Callable[[], Power]
    target: PowerTarget
    other: PowerTarget
    can: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def inside(netns: Netns) -> Iterator[Netns]:  # noqa: F811
    """The thread of the tests, and so those of the drivers, inside the namespace."""
    with netns.enter():
        yield netns


@pytest.fixture(scope="module")
def domains(inside: Netns, libvirtd: Libvirtd) -> Callable[[str], str]:  # noqa: F811
    """Defines a machine that may be started; returns its UUID."""

    def define(name: str) -> str:
        connection = libvirt.open(libvirtd.uri)  # each time: a test restarts the daemon
        disk = libvirtd.pool / f"{name}.raw"
        disk.write_bytes(bytes(1 << 20))
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in name.encode()[-3:])
        uuid: str = connection.defineXML(DOMAIN.format(name=name, disk=disk, mac=mac)).UUIDString()
        return uuid

    return define


@pytest.fixture(scope="module")
def fake_rig() -> Rig:
    """The fleet in memory."""
    target = PowerTarget("web01", "bmc1", username=USER, password=PASSWORD)
    return Rig(
        "fake",
        lambda: FakePower(password=PASSWORD, dead=[DEAD]),
        target,
        dataclasses.replace(target, host="web02", address="bmc2"),
        frozenset({"boot", "sensors", "identify", "password", "cycle"}),
    )


@pytest.fixture(scope="module")
def vbmc_rig(inside: Netns, libvirtd: Libvirtd, domains: Callable[[str], str]) -> Iterator[Rig]:  # noqa: F811
    """IPMI against VirtualBMC as it is, which answers SHA-1 to SHA-256."""
    vbmcd = Vbmcd(inside)
    for number, port in ((1, 6230), (2, 6231)):
        domains(f"vbmc-{number}")
        vbmcd.write(f"vbmc-{number}", libvirtd.uri, port)
    with vbmcd:
        target = PowerTarget("web01", HERE, 6230, USER, PASSWORD)
        yield Rig(
            "vbmc",
            IpmiPower,
            target,
            dataclasses.replace(target, port=6231),
            frozenset({"boot", "password", "udp"}),
        )


@pytest.fixture(scope="module")
def sim(inside: Netns, libvirtd: Libvirtd, domains: Callable[[str], str]) -> Iterator[IpmiSim]:  # noqa: F811
    """ipmi_sim with a libvirt domain behind it."""
    need("ipmi_sim")
    with IpmiSim(inside, port=6240, uri=libvirtd.uri, domain=domains("sim-1")) as made:
        yield made


@pytest.fixture(scope="module")
def sim_rig(inside: Netns, sim: IpmiSim) -> Iterator[Rig]:
    """IPMI against OpenIPMI's ipmi_sim, which reads the boot device back as 'default'."""
    with IpmiSim(inside, port=6241):
        target = PowerTarget("web01", HERE, 6240, USER, PASSWORD)
        can = frozenset({"sensors", "identify", "console", "password", "udp", "cycle"})
        yield Rig("sim", IpmiPower, target, dataclasses.replace(target, port=6241), can)


@pytest.fixture(scope="module")
def sushy_rig(inside: Netns, libvirtd: Libvirtd, domains: Callable[[str], str]) -> Iterator[Rig]:  # noqa: F811
    """Redfish against sushy-emulator: all machines of the hypervisor behind one address."""
    one, two = domains("sushy-1"), domains("sushy-2")
    with SushyEmulator(inside, libvirtd.uri, port=8000):
        target = PowerTarget("web01", HERE, 8000, USER, PASSWORD, one, options=(("scheme", "http"),))
        can = frozenset({"boot", "sensors", "identify", "password", "tcp"})
        yield Rig("sushy", RedfishPower, target, dataclasses.replace(target, system=two), can)


@pytest.fixture(scope="module")
def libvirt_rig(libvirtd: Libvirtd, domains: Callable[[str], str]) -> Rig:  # noqa: F811
    """libvirt itself."""
    target = PowerTarget("web01", libvirtd.provisiond_uri, system=domains("virt-1"))
    return Rig(
        "libvirt",
        LibvirtPower,
        target,
        dataclasses.replace(target, system=domains("virt-2")),
        frozenset({"boot"}),
    )


@pytest.fixture(params=["fake", "vbmc", "sim", "sushy", "libvirt"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Each driver with its simulator."""
    found: Rig = request.getfixturevalue(f"{request.param}_rig")
    return found


@pytest_asyncio.fixture
async def power(rig: Rig) -> AsyncIterator[Power]:
    """A driver of this test alone; its machine is off."""
    driver = rig.make()
    await driver.set(rig.target, PowerAction.OFF)
    yield driver
    await driver.close()


def needs(rig: Rig, what: str) -> None:
    if what not in rig.can:
        pytest.skip(f"{rig.name} has no {what}")


def variant(target: PowerTarget, **changes: Any) -> PowerTarget:
    return dataclasses.replace(target, **changes)


async def refused(call: Awaitable[Any], kind: type[DriverError]) -> str:
    """What the error says; it must name the host and hold no password."""
    with pytest.raises(kind) as caught:
        await call
    said = str(caught.value)
    assert "web01" in said and PASSWORD not in said and "wrong!" not in said
    return said


# --- every driver -----------------------------------------------------------------------------------------------


async def test_on_and_off(rig: Rig, power: Power) -> None:
    """On is on, off is off, and either asked twice is done at once."""
    assert await power.state(rig.target) is OFF
    assert await power.set(rig.target, PowerAction.ON) is ON
    assert await power.state(rig.target) is ON
    started = time.monotonic()
    assert await power.set(rig.target, PowerAction.ON) is ON
    assert time.monotonic() - started < 10
    assert await power.set(rig.target, PowerAction.OFF) is OFF
    assert await power.set(rig.target, PowerAction.OFF) is OFF
    assert await power.state(rig.target) is OFF


@pytest.mark.parametrize("action", [PowerAction.CYCLE, PowerAction.RESET])
async def test_cycle_and_reset(rig: Rig, power: Power, action: PowerAction) -> None:
    """They turn a machine on that is off, and leave one on that is on."""
    assert await power.set(rig.target, action) is ON
    assert await power.set(rig.target, action) is ON
    assert await power.state(rig.target) is ON


@pytest.mark.parametrize("once", [False, True])
async def test_boot_device(rig: Rig, power: Power, once: bool) -> None:
    """What was set is read back, or the controller cannot tell; setting it twice is fine."""
    for device in (BootDevice.NETWORK, BootDevice.CDROM, BootDevice.CDROM, BootDevice.DISK):
        await power.set_boot(rig.target, device, once=once)
        assert await power.boot_device(rig.target) is (device if "boot" in rig.can else None)


async def test_two_machines_are_two(rig: Rig, power: Power) -> None:
    """What is done to one does not happen to the other."""
    await power.set(rig.other, PowerAction.OFF)
    await power.set(rig.target, PowerAction.ON)
    assert await power.state(rig.other) is OFF
    await power.set(rig.target, PowerAction.OFF)


async def test_concurrent_calls(rig: Rig, power: Power) -> None:
    """Many at once on one controller all succeed: it is asked one thing at a time."""
    calls: list[Any] = [power.state(rig.target) for _ in range(10)]
    calls += [power.set(rig.target, PowerAction.ON) for _ in range(3)]
    calls += [power.boot_device(rig.target) for _ in range(3)]
    answers = await asyncio.gather(*calls)
    assert answers[10:13] == [ON, ON, ON]


async def test_cancelled_call_leaves_no_harm(rig: Rig, power: Power) -> None:
    """A call that is cancelled half way does not hinder the next."""
    for pause in (0.0, 0.002, 0.02):
        call = asyncio.ensure_future(power.set(rig.target, PowerAction.ON))
        await asyncio.sleep(pause)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert await power.set(rig.target, PowerAction.OFF) is OFF


async def test_sensors(rig: Rig, power: Power) -> None:
    """Readings with name, unit and health, or Unsupported."""
    if "sensors" not in rig.can:
        await refused(power.sensors(rig.target), Unsupported)
        return
    found = await power.sensors(rig.target)
    assert found == await power.sensors(rig.target)
    assert all(sensor.name and sensor.health in ("ok", "warning", "critical", "failed") for sensor in found)
    assert any(sensor.value is not None and sensor.unit for sensor in found)


async def test_identify(rig: Rig, power: Power) -> None:
    """The LED goes on and off, or Unsupported."""
    if "identify" not in rig.can:
        await refused(power.identify(rig.target), Unsupported)
        return
    await power.identify(rig.target, 1)
    await power.identify(rig.target, 0)


async def test_console_or_unsupported(rig: Rig, power: Power) -> None:
    """A driver without a console says so when it is listened to."""
    if "console" in rig.can or rig.name == "fake":
        pytest.skip("has one; tested below")
    await refused(anext(power.console(rig.target)), Unsupported)


async def test_wrong_password(rig: Rig, power: Power) -> None:
    """Refused for good, and the right one works after it."""
    needs(rig, "password")
    said = await refused(power.state(variant(rig.target, password="wrong!")), DriverRejected)
    assert USER in said
    assert await power.state(rig.target) is OFF


async def test_unknown_option(rig: Rig, power: Power) -> None:
    """Named, with those there are, before anything is sent."""
    assert "colour" in await refused(
        power.state(variant(rig.target, options=(("colour", "blue"),))), DriverRejected
    )


async def test_dead_endpoint_does_not_block_the_loop(rig: Rig, power: Power) -> None:
    """An address without a machine is DriverUnavailable within seconds, while the event loop goes on and another machine answers."""
    nowhere = "qemu+unix:///system?socket=/nowhere" if rig.name == "libvirt" else DEAD
    dead = variant(rig.target, address=nowhere)
    lag = 0.0

    async def tick() -> None:
        nonlocal lag
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            lag = max(lag, time.monotonic() - before - 0.02)

    ticking = asyncio.create_task(tick())
    started = time.monotonic()
    asked = asyncio.ensure_future(refused(power.state(dead), DriverUnavailable))
    assert await power.state(rig.target) is OFF
    answered = time.monotonic() - started
    await asked
    ticking.cancel()
    assert answered < 4 and time.monotonic() - started < 30 and lag < 3


async def test_closed_port(rig: Rig, power: Power) -> None:
    """Nothing listens: known at once, not after a time-out."""
    if not {"udp", "tcp"} & rig.can:
        pytest.skip(f"{rig.name} is not asked over a network port")
    started = time.monotonic()
    assert "refused" in await refused(power.state(variant(rig.target, port=6999)), DriverUnavailable)
    assert time.monotonic() - started < 4


async def test_slow_endpoint(rig: Rig, power: Power, inside: Netns) -> None:
    """A controller that takes more than a second for each answer is served, not declared dead."""
    if "udp" in rig.can:
        async with bad_udp(inside, rig.target.port or 0, delay=0.6) as (port, _):
            assert await power.state(variant(rig.target, port=port)) is OFF
            assert await power.state(variant(rig.target, port=port)) is OFF
    elif "tcp" in rig.can:
        async with slow_tcp(inside, rig.target.port or 0, delay=0.6) as port:
            assert await power.state(variant(rig.target, port=port)) is OFF
    elif rig.name == "fake":
        assert await power.state(variant(rig.target, options=(("latency", "0.2"),))) is OFF
    else:
        pytest.skip(f"{rig.name} is not asked over a network port")


async def test_lost_packets(rig: Rig, power: Power, inside: Netns) -> None:
    """Every fifth packet each way is lost, and what was asked is done all the same."""
    needs(rig, "udp")
    async with bad_udp(inside, rig.target.port or 0, loss=0.2) as (port, front):
        lossy = variant(rig.target, port=port)
        for _ in range(10):
            assert await power.state(lossy) is OFF
        assert await power.set(lossy, PowerAction.ON) is ON
        assert await power.set(lossy, PowerAction.OFF) is OFF
        print(f"{rig.name}: {front.lost} of {front.lost + front.passed} packets lost")
        assert front.lost > 5


# --- IPMI ---------------------------------------------------------------------------------------------------------


async def test_ipmi_password_too_long(vbmc_rig: Rig) -> None:
    """Refused before it is cut silently."""
    driver = vbmc_rig.make()
    said = await refused(driver.state(variant(vbmc_rig.target, password="x" * 21)), DriverRejected)
    assert "20" in said and "xxx" not in said
    await driver.close()


async def test_ipmi_unknown_user_of_a_silent_controller(vbmc_rig: Rig) -> None:
    """VirtualBMC answers an unknown user with silence; the message says that this may be it."""
    driver = vbmc_rig.make()
    assert "user is unknown" in await refused(
        driver.state(variant(vbmc_rig.target, username="nobody")), DriverUnavailable
    )
    await driver.close()


async def test_ipmi_session_is_kept_and_renewed(inside: Netns) -> None:
    """Many questions cost one log-in; a controller that restarted and forgot it is logged in to again."""
    driver = IpmiPower()
    target = PowerTarget("web01", HERE, 7106, USER, PASSWORD, options=(("timeout", "2"),))
    with OddBmcs(inside, [7106]):
        async with bad_udp(inside, 7106) as (port, front):
            through = variant(target, port=port)
            await driver.state(through)
            login = front.passed
            for _ in range(5):
                await driver.state(through)
            assert 10 <= front.passed - login < 20  # two packets each; a log-in takes 14
        assert await driver.state(target) is OFF
    with OddBmcs(inside, [7106]):
        assert await driver.state(target) is OFF
    await driver.close()


async def test_ipmi_console_brings_what_the_machine_writes(sim: IpmiSim, sim_rig: Rig) -> None:
    """Serial over LAN gives every byte once and in order, and gives the console back when it is closed."""
    driver = sim_rig.make()
    text = b"".join(b"line %04d of the console\r\n" % number for number in range(400))
    for _ in range(2):
        console, got = driver.console(sim_rig.target), b""
        first = asyncio.ensure_future(anext(console))
        await asyncio.sleep(1.0)
        await asyncio.to_thread(sim.say, text)
        async with asyncio.timeout(60):
            got += await first
            while len(got) < len(text):
                got += await anext(console)
        assert got == text
        await console.aclose()  # type: ignore[attr-defined]
    await driver.close()


async def test_ipmi_console_comes_back(inside: Netns) -> None:
    """The controller restarts; the console logs in again and goes on."""
    driver = IpmiPower()
    target = PowerTarget("web01", HERE, 6246, USER, PASSWORD, options=(("timeout", "1"),))
    console = driver.console(target)
    for text in (b"before", b"after"):
        with IpmiSim(inside, port=6246) as sim:
            waiting = asyncio.ensure_future(anext(console))
            for _ in range(60):
                await asyncio.to_thread(sim.say, text)
                done, _ = await asyncio.wait([waiting], timeout=0.5)
                if done:
                    break
            assert (await waiting).startswith(text)
    await console.aclose()  # type: ignore[attr-defined]
    await driver.close()


async def test_ipmi_supermicro_uefi_disk(inside: Netns) -> None:
    """Supermicro's UEFI disk is 0x24; all others', and its BIOS disk, 0x08."""
    selectors = []
    for number, uefi in ((10876, True), (10876, False), (674, True)):
        with OddBmcs(inside, [7100], manufacturer=number) as odd:
            driver = IpmiPower()
            await driver.set_boot(
                PowerTarget("web01", HERE, 7100, USER, PASSWORD, uefi=uefi), BootDevice.DISK
            )
            selectors += [
                data[1:3]
                for netfn, command, data in odd.requests
                if (netfn, command, data[:1]) == (0, 8, [5])
            ]
            await driver.close()
    assert selectors == [[0xE0, 0x24], [0xC0, 0x08], [0xE0, 0x08]]


async def test_ipmi_boot_device_is_set_again_when_forgotten(inside: Netns) -> None:
    """Set until it sticks; one that never keeps it names no device, which is 'cannot tell'."""
    with OddBmcs(inside, [7101], forgets=2, no_timeout=True) as odd:
        driver = IpmiPower()
        target = PowerTarget("web01", HERE, 7101, USER, PASSWORD)
        await driver.set_boot(target, BootDevice.NETWORK, once=True)
        assert await driver.boot_device(target) is BootDevice.NETWORK
        assert [
            data for netfn, command, data in odd.requests if (netfn, command, data[:1]) == (0, 8, [5])
        ] == [[5, 0x80, 0x04, 0, 0, 0]] * 3
        await driver.close()
    with OddBmcs(inside, [7102], forgets=99):
        driver = IpmiPower()
        await driver.set_boot(variant(target, port=7102), BootDevice.DISK)
        await driver.close()


@pytest.mark.parametrize(
    "odd", [{"busy": 3}, {"lag": 2.0}, {"picky": True}, {"ignores": 1}], ids=lambda odd: next(iter(odd))
)
async def test_ipmi_oddities(inside: Netns, odd: dict[str, Any]) -> None:
    """Busy, slow to show, angry at a repeated order, deaf once: the machine gets where it was told all the same."""
    with OddBmcs(inside, [7103], **odd):
        driver = IpmiPower()
        target = PowerTarget("web01", HERE, 7103, USER, PASSWORD)
        assert await driver.set(target, PowerAction.OFF) is OFF
        assert await driver.set(target, PowerAction.ON) is ON
        assert await driver.set(target, PowerAction.CYCLE) is ON
        assert await driver.set(target, PowerAction.OFF) is OFF
        await driver.close()


async def test_ipmi_deaf_machine_is_reported(inside: Netns) -> None:
    """One that never does what it was told ends in DriverUnavailable that says what it reads."""
    with OddBmcs(inside, [7104], ignores=99):
        driver = IpmiPower()
        target = PowerTarget("web01", HERE, 7104, USER, PASSWORD)
        said = await refused(driver.set(target, PowerAction.ON, timeout=2.0), DriverUnavailable)
        assert "still reads off" in said
        await driver.close()


async def test_ipmi_spacing(inside: Netns) -> None:
    """Commands to a sensitive controller keep their distance."""
    with OddBmcs(inside, [7105]):
        driver = IpmiPower()
        target = PowerTarget("web01", HERE, 7105, USER, PASSWORD, options=(("spacing", "0.3"),))
        await driver.state(target)
        started = time.monotonic()
        await asyncio.gather(*[driver.state(target) for _ in range(4)])
        assert time.monotonic() - started >= 1.2
        await driver.close()


async def test_ipmi_five_dead_of_fifty(inside: Netns) -> None:
    """50 controllers polled at once, five of them dead: the 45 living are not delayed."""
    ports = range(7200, 7245)
    with OddBmcs(inside, ports):
        alive = [PowerTarget(f"web{port}", HERE, port, USER, PASSWORD) for port in ports]
        dead = [
            PowerTarget(f"dead{number}", f"10.77.0.{number}", 623, USER, PASSWORD)
            for number in range(240, 245)
        ]

        async def poll(targets: list[PowerTarget]) -> list[float]:
            driver, started = IpmiPower(), time.monotonic()

            async def one(target: PowerTarget) -> float:
                try:
                    await driver.state(target)
                except DriverUnavailable:
                    assert target in dead
                return time.monotonic() - started

            times = await asyncio.gather(*map(one, targets))
            await driver.close()
            return times

        without = await poll(alive)
        times = await poll(dead + alive)
        living, dying = max(times[5:]), max(times[:5])
        print(f"45 living alone {max(without):.2f} s, beside 5 dead {living:.2f} s; the dead {dying:.2f} s")
        assert living < 4.0 and living < dying
        assert dying < 15.0


# --- libvirt ------------------------------------------------------------------------------------------------------


async def test_libvirt_keeps_secrets_and_finds_its_way_back(inside: Netns) -> None:
    """A rewrite of the boot order keeps the VNC password; a restarted libvirtd is connected to again."""
    need("libvirtd", "qemu-system-x86_64", "unshare")
    with Libvirtd(inside, Path(tempfile.mkdtemp(prefix="pvlv-"))) as own:
        text = DOMAIN.format(name="web01", disk=own.pool / "none.raw", mac="52:54:00:00:00:01")
        uuid = libvirt.open(own.uri).defineXML(text).UUIDString()
        target, driver = PowerTarget("web01", own.uri, system=uuid), LibvirtPower()
        await driver.set_boot(target, BootDevice.NETWORK)
        await asyncio.to_thread(own.restart)
        assert await driver.boot_device(target) is BootDevice.NETWORK
        domain = libvirt.open(own.uri).lookupByUUIDString(uuid)
        assert "keepme" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
        missing = variant(target, system="00000000-0000-4000-8000-000000000000")
        assert "no domain" in await refused(driver.state(missing), DriverRejected)
        await driver.close()


# --- Redfish ------------------------------------------------------------------------------------------------------


async def test_redfish_system_by_name_and_mac(sushy_rig: Rig) -> None:
    """Several systems behind one address: by id, name or MAC; without one the choice is listed."""
    driver = sushy_rig.make()
    await driver.set(sushy_rig.target, PowerAction.ON)
    await driver.set(sushy_rig.other, PowerAction.OFF)
    mac = "52-54-00-" + "-".join(f"{byte:02X}" for byte in b"y-1")
    for name in ("sushy-1", mac):
        assert await driver.state(variant(sushy_rig.target, system=name)) is ON
    assert await driver.state(variant(sushy_rig.target, system="sushy-2")) is OFF
    for wrong in ("", "nobody"):
        assert "sushy-2" in await refused(
            driver.state(variant(sushy_rig.target, system=wrong)), DriverRejected
        )
    await driver.set(sushy_rig.target, PowerAction.OFF)
    await driver.close()


async def test_redfish_tls(inside: Netns, libvirtd: Libvirtd, domains: Callable[[str], str]) -> None:  # noqa: F811
    """A certificate nobody vouches for is refused, unless its CA is given or the check is turned off."""
    with SushyEmulator(inside, libvirtd.uri, port=8443, tls=True) as service:
        target = PowerTarget("web01", HERE, 8443, USER, PASSWORD, domains("sushy-tls"))
        driver = RedfishPower()
        assert "ca_file" in await refused(driver.state(target), DriverRejected)
        assert await driver.state(variant(target, options=(("ca_file", str(service.ca_file)),))) is OFF
        assert await driver.state(variant(target, options=(("verify_tls", "false"),))) is OFF
        missing = variant(target, options=(("ca_file", str(Path("/nowhere.pem"))),))
        assert "ca_file" in await refused(driver.state(missing), DriverRejected)
        await driver.close()
