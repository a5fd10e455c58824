"""The contract of the DHCP room, over every driver: the fake, dnsmasq (the real one, in a namespace) and external."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from provisiond.drivers import load
from provisiond.drivers.dhcp import BootOptions, Dhcp, DhcpOptions, DhcpSubnet, LeaseEvent, Reservation
from provisiond.drivers.dhcp.dnsmasq import DnsmasqDhcp
from provisiond.drivers.dhcp.external import ExternalDhcp
from provisiond.drivers.dhcp.fake import FakeDhcp
from provisiond.errors import DriverRejected, DriverUnavailable
from tests.lab.kit.fixtures import need
from tests.lab.kit.netns import Netns

NET = DhcpSubnet(
    "rack1",
    "10.78.0.0/24",
    "10.78.0.254",
    dns=("10.78.0.2", "10.78.0.3"),
    domain="lab.example.org",
    ranges=(("10.78.0.200", "10.78.0.229"),),
)
BOOT = BootOptions(
    tftp_server="10.78.0.1",
    programs=((0, "undionly.kpxe"), (7, "snponly.efi"), (9, "snponly.efi"), (11, "arm64/snponly.efi")),
    http_programs=((16, "http://10.78.0.1:8421/boot/loader/ipxe.efi"),),
    ipxe_script="http://10.78.0.1:8421/boot/ipxe",
)
A, B, C = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"


def reservation(mac: str, last: int, host: str = "web01") -> Reservation:
    return Reservation(mac=mac, ip=f"10.78.0.{last}", host=host, subnet="rack1")


@dataclass
class Leases:
    """Takes lease events; ``wait`` gives the first that matches."""

    seen: list[LeaseEvent] = field(default_factory=list)

    async def __call__(self, event: LeaseEvent) -> None:
        self.seen.append(event)

    async def wait(self, kind: str, mac: str) -> LeaseEvent:
        for _ in range(3000):
            for event in self.seen:
                if (event.kind, event.mac) == (kind, mac):
                    return event
            await asyncio.sleep(0.01)
        raise AssertionError(f"no {kind} of {mac} in {self.seen}")


class Network:
    """A server's and a machine's namespace on one bridge, and busybox's DHCP client as the machine."""

    def __init__(self, server: Netns, machine: Netns, work: Path) -> None:
        self.server, self.machine, self.work = server, machine, work
        self.dnsmasq = work / "dnsmasq"
        self.dnsmasq.write_text(f'#!/bin/sh\nexec ip netns exec {server.name} dnsmasq "$@"\n')
        self.dnsmasq.chmod(0o755)
        self.script = work / "udhcpc"
        self.script.write_text('#!/bin/sh\n[ "$1" != bound ] || env > "$ANSWER"\n')
        self.script.chmod(0o755)

    def request(self, mac: str, *, tries: int = 3, **options: str) -> dict[str, str]:
        """Ask for an address as ``mac``; options are ``o93="0007"`` (hex). Empty when nobody answers."""
        answer = self.work / f"answer-{time.monotonic_ns()}"
        self.machine.ip("link", "set", "eth0", "down")
        self.machine.ip("link", "set", "eth0", "address", mac, "up")
        argv = ["busybox", "udhcpc", "-f", "-q", "-n", "-t", str(tries), "-T", "1", "-A", "0", "-i", "eth0"]
        argv += ["-s", str(self.script), "-O", "bootfile", "-O", "tftp", "-O", "60"]
        for name, value in options.items():
            argv += ["-V", value] if name == "vendor" else ["-x", f"{name[1:]}:{value}"]
        self.machine.run(argv, check=False, env={"PATH": os.environ["PATH"], "ANSWER": str(answer)})
        if not answer.exists():
            return {}
        return dict(line.split("=", 1) for line in answer.read_text().splitlines() if "=" in line)

    async def ask(self, mac: str, *, tries: int = 3, **options: str) -> dict[str, str]:
        return await asyncio.to_thread(self.request, mac, tries=tries, **options)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    need("ip", "dnsmasq", "busybox", "setpriv")
    with (
        Netns(bridge="br0", addresses=("10.78.0.1/24", "fd78::1/64")) as server,
        Netns(bridge="") as machine,
    ):
        server.plug(machine, "eth0")
        yield Network(server, machine, tmp_path_factory.mktemp("dhcp"))


@pytest.fixture
def options(tmp_path: Path) -> DhcpOptions:
    return DhcpOptions(run_dir=tmp_path / "dhcp", interfaces=("br0",), lease_seconds=600)


@pytest.fixture
def served(options: DhcpOptions, network: Network) -> DhcpOptions:
    """Options of a dnsmasq that is started inside the namespace."""
    return replace(options, dnsmasq=str(network.dnsmasq))


@pytest.fixture(params=["fake", "external", "dnsmasq"])
async def dhcp(request: pytest.FixtureRequest, options: DhcpOptions) -> AsyncIterator[Dhcp]:
    """Each driver, as the daemon loads it."""
    if request.param == "dnsmasq":
        options = request.getfixturevalue("served")
    driver: Dhcp = load("dhcp", request.param)(options)
    yield driver
    await driver.close()


@pytest.fixture
async def dnsmasq(served: DhcpOptions) -> AsyncIterator[DnsmasqDhcp]:
    driver = DnsmasqDhcp(served)
    yield driver
    await driver.close()


@pytest.fixture
def leases() -> Leases:
    return Leases()


# --- every driver ---------------------------------------------------------------------------------------


async def test_a_reservation_is_kept_once(dhcp: Dhcp, leases: Leases) -> None:
    """Reserving twice is reserving once, and the list shows what was asked."""
    await dhcp.start([NET], BOOT, leases)
    await dhcp.reserve(reservation(A, 11))
    await dhcp.reserve(reservation(A, 11))
    assert await dhcp.reservations() == [reservation(A, 11)]


async def test_a_macs_reservation_is_replaced(dhcp: Dhcp, leases: Leases) -> None:
    """The latest address of a MAC is the one that holds."""
    await dhcp.start([NET], BOOT, leases)
    await dhcp.reserve(reservation(A, 11))
    await dhcp.reserve(reservation(A, 12))
    assert await dhcp.reservations() == [reservation(A, 12)]


async def test_an_address_moves_to_another_mac(dhcp: Dhcp, leases: Leases) -> None:
    """A replaced network card: the new MAC takes the old one's address."""
    await dhcp.start([NET], BOOT, leases)
    await dhcp.reserve(reservation(A, 11))
    await dhcp.reserve(reservation(B, 11))
    assert await dhcp.reservations() == [reservation(B, 11)]


async def test_release_forgets_and_absent_is_fine(dhcp: Dhcp, leases: Leases) -> None:
    """Released MACs are gone, twice is no error, and nobody else is touched."""
    await dhcp.start([NET], BOOT, leases)
    await dhcp.reserve(reservation(A, 11))
    await dhcp.reserve(reservation(B, 12))
    await dhcp.release(A.upper().replace(":", "-"))
    await dhcp.release(A)
    assert await dhcp.reservations() == [reservation(B, 12)]


async def test_reservations_before_start_and_after_a_restart(dhcp: Dhcp, leases: Leases) -> None:
    """What was reserved stays reserved for the next driver on the same files."""
    await dhcp.reserve(reservation(A, 11))
    await dhcp.start([NET], BOOT, leases)
    await dhcp.close()
    again = type(dhcp)(dhcp.settings) if hasattr(dhcp, "settings") else dhcp  # type: ignore[call-arg]
    assert await again.reservations() == [reservation(A, 11)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (replace(reservation(A, 11), mac="52:54:00:aa:00"), "not a MAC address"),
        (replace(reservation(A, 11), ip="10.78.0.256"), "web01: '10.78.0.256' is not an IPv4 address"),
        (replace(reservation(A, 11), ip="10.79.0.1"), "in none of the subnets that DHCP serves"),
    ],
)
async def test_bad_reservations_are_rejected(
    dhcp: Dhcp, leases: Leases, wrong: Reservation, words: str
) -> None:
    """A wrong MAC or address is an error that names it, and nothing is kept."""
    await dhcp.start([NET], BOOT, leases)
    with pytest.raises(DriverRejected, match=words):
        await dhcp.reserve(wrong)
    assert await dhcp.reservations() == []


async def test_500_reservations_at_once(dhcp: Dhcp, leases: Leases) -> None:
    """Half a thousand are taken in a moment and let go again in another."""
    await dhcp.start([replace(NET, cidr="10.78.0.0/16")], BOOT, leases)
    many = [
        replace(
            reservation(f"52:54:00:bb:{i >> 8:02x}:{i & 255:02x}", 0, f"n{i}"),
            ip=f"10.78.{i >> 7}.{i & 127 | 1}",
        )
        for i in range(1000)
        if i & 1
    ]
    began = time.monotonic()
    await asyncio.gather(*(dhcp.reserve(r) for r in many))
    taken = time.monotonic()
    assert {r.mac for r in await dhcp.reservations()} == {r.mac for r in many}
    await asyncio.gather(*(dhcp.release(r.mac) for r in many))
    assert await dhcp.reservations() == []
    assert taken - began < 30 and time.monotonic() - taken < 30


async def test_no_subnets_yet_then_some(dhcp: Dhcp, leases: Leases) -> None:
    """A new installation has no subnet: that is no error, and nothing can be reserved until there is one."""
    await dhcp.start([replace(NET, cidr="fd78::/64", ranges=(), gateway=None)], BOOT, leases)
    assert dhcp.problem == ""
    with pytest.raises(DriverRejected, match="there are none"):
        await dhcp.reserve(reservation(A, 11))
    await dhcp.release(A)
    await dhcp.start([NET], BOOT, leases)
    await dhcp.reserve(reservation(A, 11))
    await dhcp.start([], BOOT, leases)
    await dhcp.release(A)
    assert await dhcp.reservations() == []


# --- the fake -------------------------------------------------------------------------------------------


async def test_fake_leases_failures_and_calls(leases: Leases) -> None:
    """The fake gives leases, fails when told to, and says what it was asked."""
    fake = FakeDhcp()
    fake.fail("reserve", DriverUnavailable("busy"))
    await fake.start([NET], BOOT, leases)
    with pytest.raises(DriverUnavailable):
        await fake.reserve(reservation(A, 11))
    await fake.reserve(reservation(A, 11))
    assert await fake.request(A) == "10.78.0.11"
    await fake.release(A)
    assert [e.kind for e in leases.seen] == ["added", "removed"]
    assert fake.calls == [("start", ""), ("reserve", A), ("reserve", A), ("release", A)]


# --- external -------------------------------------------------------------------------------------------


async def test_external_says_what_to_set(options: DhcpOptions, leases: Leases) -> None:
    """The instructions hold the real addresses for each kind of server."""
    driver = ExternalDhcp(options)
    assert driver.instructions() == {}
    await driver.start([NET], BOOT, leases)
    await driver.reserve(reservation(A, 11))
    said = driver.instructions()
    assert set(said) == {"isc", "kea", "dnsmasq"}
    for text in said.values():
        assert all(
            word in text for word in (A, "10.78.0.11", "10.78.0.254", BOOT.ipxe_script, "undionly.kpxe")
        )


async def test_external_dnsmasq_instructions_are_valid(options: DhcpOptions, leases: Leases) -> None:
    """dnsmasq itself takes its form."""
    need("dnsmasq")
    driver = ExternalDhcp(options)
    await driver.start([NET, replace(NET, name="static", cidr="10.80.0.0/24", ranges=())], BOOT, leases)
    await driver.reserve(reservation(A, 11))
    path = options.run_dir / "said"
    path.write_text(driver.instructions()["dnsmasq"])
    done = subprocess.run(["dnsmasq", "--test", f"--conf-file={path}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- dnsmasq, with a machine that asks -------------------------------------------------------------------


async def test_dnsmasq_gives_the_reserved_address_live(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """A machine gets its address, name, router, DNS and domain; a new reservation needs no restart."""
    await dnsmasq.start([NET], BOOT, leases)
    await dnsmasq.reserve(reservation(A, 11))
    got = await network.ask(A)
    assert (got["ip"], got["hostname"], got["router"]) == ("10.78.0.11", "web01", "10.78.0.254")
    assert (got["dns"], got["domain"], got["lease"]) == ("10.78.0.2 10.78.0.3", "lab.example.org", "600")
    assert dnsmasq.child.starts == 1
    event = await leases.wait("added", A)
    assert (event.ip, event.hostname) == ("10.78.0.11", "web01")
    assert [(lease.mac, lease.ip) for lease in await dnsmasq.leases()] == [(A, "10.78.0.11")]


async def test_dnsmasq_changes_swaps_and_reuses_addresses(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """Addresses change hands in every way, although dnsmasq remembers what it once read."""
    await dnsmasq.start([NET], BOOT, leases)
    await dnsmasq.reserve(reservation(A, 11))
    await dnsmasq.reserve(reservation(B, 12))
    assert (await network.ask(A))["ip"] == "10.78.0.11"
    await dnsmasq.reserve(reservation(A, 13))  # changed
    assert (await network.ask(A))["ip"] == "10.78.0.13"
    await dnsmasq.reserve(reservation(C, 11))  # reused, while A's old lease still runs
    assert (await network.ask(C))["ip"] == "10.78.0.11"
    await dnsmasq.reserve(reservation(A, 12))  # taken from B
    assert (await network.ask(A))["ip"] == "10.78.0.12"
    assert (await network.ask(B))["ip"].startswith("10.78.0.2")  # from the range


async def test_dnsmasq_release_drops_reservation_and_lease(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """After a release the MAC is unknown, its address free, others keep theirs: one restart for many."""
    await dnsmasq.start([NET], BOOT, leases)
    await asyncio.gather(*(dnsmasq.reserve(reservation(mac, 11 + i)) for i, mac in enumerate((A, B, C))))
    for mac in (A, B, C):
        await network.ask(mac)
        await leases.wait("added", mac)
    await asyncio.gather(dnsmasq.release(A), dnsmasq.release(B))
    assert dnsmasq.child.starts == 2
    await leases.wait("removed", A)
    assert [lease.mac for lease in await dnsmasq.leases()] == [C]
    assert A not in dnsmasq.paths.leases.read_text() and C in dnsmasq.paths.leases.read_text()
    assert (await network.ask(A))["ip"] != "10.78.0.11"


async def test_dnsmasq_reserves_an_address_leased_to_another(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """An address that a machine without reservation has leased can be reserved for another at once."""
    await dnsmasq.start([replace(NET, ranges=(("10.78.0.200", "10.78.0.200"),))], BOOT, leases)
    assert (await network.ask(A))["ip"] == "10.78.0.200"
    await leases.wait("added", A)
    await dnsmasq.reserve(reservation(B, 200))
    assert (await network.ask(B))["ip"] == "10.78.0.200"


async def test_dnsmasq_static_subnet_knows_no_strangers(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """Without ranges only reserved machines are answered, without a gateway no router is named; then start changes it."""
    await dnsmasq.start([replace(NET, ranges=(), gateway=None, dns=(), domain=None)], BOOT, leases)
    await dnsmasq.reserve(reservation(A, 11))
    assert await network.ask(B, tries=1) == {}
    got = await network.ask(A)
    assert got["ip"] == "10.78.0.11" and "router" not in got and "dns" not in got
    await dnsmasq.start([NET], BOOT, leases)
    assert (await network.ask(B))["ip"].startswith("10.78.0.2")
    assert (await network.ask(A))["router"] == "10.78.0.254"


@pytest.mark.parametrize(
    ("sent", "file", "server"),
    [
        ({}, "undionly.kpxe", "10.78.0.1"),
        ({"o93": "0000", "vendor": "PXEClient:Arch:00000:UNDI:002001"}, "undionly.kpxe", "10.78.0.1"),
        ({"o93": "0007", "vendor": "PXEClient:Arch:00007:UNDI:003016"}, "snponly.efi", "10.78.0.1"),
        ({"o93": "0009"}, "snponly.efi", "10.78.0.1"),
        ({"o93": "000b"}, "arm64/snponly.efi", "10.78.0.1"),
        ({"o93": "0007", "o175": "b105018086100e"}, BOOT.ipxe_script, "10.78.0.1"),
        ({"o93": "0000", "o77": "69505845"}, BOOT.ipxe_script, "10.78.0.1"),
        ({"o93": "0010", "vendor": "HTTPClient:Arch:00016:UNDI:003001"}, BOOT.http_programs[0][1], None),
        ({"o93": "0006"}, None, None),
    ],
)
async def test_dnsmasq_names_the_boot_program_by_architecture(
    dnsmasq: DnsmasqDhcp,
    network: Network,
    leases: Leases,
    sent: dict[str, str],
    file: str | None,
    server: str | None,
) -> None:
    """Option 93 picks the program and its server, option 175 or user class iPXE the script; an unknown one gets none."""
    await dnsmasq.start([NET], BOOT, leases)
    got = await network.ask(A, **sent)
    assert got.get("bootfile", got.get("boot_file")) == file
    if server:
        assert got["siaddr"] == server
    if sent.get("vendor", "").startswith("HTTPClient"):
        assert got["vendor"] == "HTTPClient"


async def test_pxelinux_also_for_firmware_that_is_ipxe(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """An architecture in over_ipxe is given its program whatever it runs; others that run iPXE still get the script."""
    boot = replace(BOOT, programs=((0, "pxelinux.0"), *BOOT.programs[1:]), over_ipxe=(0,))
    await dnsmasq.start([NET], boot, leases)
    for sent, file in (
        ({"o93": "0000", "o175": "b105018086100e"}, "pxelinux.0"),
        ({"o93": "0000"}, "pxelinux.0"),
        ({"o93": "0007", "o175": "b105018086100e"}, boot.ipxe_script),
    ):
        got = await network.ask(A, **sent)
        assert got.get("bootfile", got.get("boot_file")) == file, sent


async def test_external_dnsmasq_comes_to_the_same(options: DhcpOptions, leases: Leases) -> None:
    """The external driver's forms except an architecture in over_ipxe from iPXE's rule."""
    driver = ExternalDhcp(options)
    await driver.start([NET], replace(BOOT, over_ipxe=(0,)), leases)
    said = driver.instructions()
    assert f"dhcp-boot=tag:ipxe,tag:!arch0,{BOOT.ipxe_script}\n" in said["dnsmasq"]
    assert "dhcp-boot=tag:arch0,undionly.kpxe," in said["dnsmasq"]
    assert said["isc"].index('filename "undionly.kpxe"') < said["isc"].index("exists ipxe-encap")
    tests = {c["name"]: c["test"] for c in json.loads(said["kea"])["Dhcp4"]["client-classes"]}
    assert tests["ipxe"] == "option[175].exists and not option[93].hex == 0x0000"
    assert tests["arch-0"] == "option[93].hex == 0x0000"


async def test_dnsmasq_comes_back_when_killed_and_leases_stay(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """Killed, it is started again by itself; reservations and leases are as before, and no event is doubled."""
    await dnsmasq.start([NET], BOOT, leases)
    await dnsmasq.reserve(reservation(A, 11))
    await network.ask(A)
    await leases.wait("added", A)
    first = dnsmasq.child.pid
    assert first
    os.kill(first, signal.SIGKILL)
    for _ in range(3000):
        if dnsmasq.child.pid not in (None, first) and dnsmasq.problem == "":
            break
        await asyncio.sleep(0.01)
    assert dnsmasq.problem == ""
    assert [lease.mac for lease in await dnsmasq.leases()] == [A]
    await asyncio.sleep(1)  # a lease is told in whole seconds
    assert (await network.ask(A))["ip"] == "10.78.0.11"
    await leases.wait("renewed", A)
    assert [e.kind for e in leases.seen].count("added") == 1


async def test_dnsmasq_says_why_it_does_not_start(served: DhcpOptions, leases: Leases) -> None:
    """Its own words are in the error; a missing program too; it is tried again meanwhile."""
    driver = DnsmasqDhcp(replace(served, interfaces=("nosuch0",)))
    with pytest.raises(DriverUnavailable, match="unknown interface nosuch0"):
        await driver.start([NET], BOOT, leases)
    assert driver.problem and "nosuch0" in driver.problem
    for _ in range(3000):
        if driver.child.starts > 1:
            break
        await asyncio.sleep(0.01)
    assert driver.child.starts > 1
    await driver.close()
    driver = DnsmasqDhcp(replace(served, dnsmasq="/nonexistent/dnsmasq"))
    with pytest.raises(DriverUnavailable, match="/nonexistent/dnsmasq"):
        await driver.start([NET], BOOT, leases)
    await driver.close()
    with pytest.raises(DriverRejected, match=r"dhcp\.interfaces is empty"):
        await DnsmasqDhcp(replace(served, interfaces=())).start([NET], BOOT, leases)


DAEMON = """
import asyncio, logging, sys, structlog
from pathlib import Path
from provisiond.drivers.dhcp import *
from provisiond.drivers.dhcp.dnsmasq import DnsmasqDhcp
from tests.contract.test_dhcp import NET, BOOT
async def ignore(event): pass
async def main():
    driver = DnsmasqDhcp(DhcpOptions(run_dir=Path(sys.argv[1]), interfaces=("br0",), dnsmasq=sys.argv[2]))
    await driver.start([NET], BOOT, ignore)
    print(driver.child.pid, flush=True)
    await asyncio.sleep(600)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_dnsmasq_dies_with_a_killed_daemon(served: DhcpOptions) -> None:
    """kill -9 of the daemon leaves no dnsmasq behind."""
    argv = [sys.executable, "-c", DAEMON, str(served.run_dir), served.dnsmasq]
    daemon = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert daemon.stdout
        child = int(await asyncio.to_thread(daemon.stdout.readline))
        assert alive(child)
    finally:
        daemon.kill()
        daemon.wait()
    for _ in range(3000):
        if not alive(child):
            return
        await asyncio.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("dnsmasq outlived its daemon")


async def test_dnsmasq_of_an_earlier_daemon_is_ended(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """One that was left over on our configuration is ended at start; nobody else's is touched."""
    await dnsmasq.start([NET], BOOT, leases)
    await dnsmasq.close()
    other = network.work / "other.conf"
    other.write_text("port=5354\nlisten-address=127.0.0.1\npid-file\nbind-interfaces\n")
    ours, theirs = (
        network.server.exec(
            ["dnsmasq", "--keep-in-foreground", f"--conf-file={path}"], stderr=subprocess.DEVNULL
        )
        for path in (dnsmasq.paths.config, other)
    )
    try:
        await asyncio.sleep(0.3)
        assert ours.poll() is None and theirs.poll() is None
        await dnsmasq.start([NET], BOOT, leases)
        assert ours.wait(30) is not None
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


async def test_dnsmasq_a_failing_listener_stops_nothing(dnsmasq: DnsmasqDhcp, network: Network) -> None:
    """A callback that raises, or that hangs, costs no machine its address."""

    async def broken(event: LeaseEvent) -> None:
        raise RuntimeError("the history is full")

    await dnsmasq.start([NET], BOOT, broken)
    await dnsmasq.reserve(reservation(A, 11))
    await dnsmasq.reserve(reservation(B, 12))
    assert (await network.ask(A))["ip"] == "10.78.0.11"
    assert (await network.ask(B))["ip"] == "10.78.0.12"


ROUTER = """
import socket, struct, sys
card = socket.if_nametoindex("eth0")
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
sock.settimeout(30)
sock.sendto(struct.pack("!BBHI", 133, 0, 0, 0), ("ff02::2", 0, 0, card))
while (data := sock.recv(2000))[0] != 134: pass
print("router advertisement, lifetime", struct.unpack("!H", data[6:8])[0])
"""


async def test_dnsmasq_answers_router_solicitations(
    dnsmasq: DnsmasqDhcp, network: Network, leases: Leases
) -> None:
    """iPXE's question for an IPv6 router is answered at once, by one that offers no route."""
    await dnsmasq.start([NET], BOOT, leases)
    network.machine.ip("link", "set", "eth0", "up")
    for _ in range(300):
        if "tentative" not in network.machine.ip("addr", "show", "dev", "eth0"):
            break
        await asyncio.sleep(0.1)
    done = await asyncio.to_thread(network.machine.run, [sys.executable, "-c", ROUTER], check=False)
    assert done.stdout.strip() == "router advertisement, lifetime 0", done.stderr


PXE_CLIENT = """
import socket, struct, sys
arch, to, port, mac = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), bytes.fromhex("525400aa0001")
extra = bytes.fromhex(sys.argv[4]) if len(sys.argv) > 4 else b""
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for option in (socket.SO_REUSEADDR, socket.SO_BROADCAST): sock.setsockopt(socket.SOL_SOCKET, option, 1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
sock.bind(("", 68)); sock.settimeout(30)
vendor = f"PXEClient:Arch:{arch:05}:UNDI:003016".encode()
kind, address = (1, bytes(4)) if port == 67 else (3, socket.inet_aton("10.78.0.99"))
options = [(53, bytes([kind])), (60, vendor), (93, struct.pack("!H", arch)), (94, b"\\1\\3\\16"), (97, bytes(17)),
           (55, bytes([1, 3, 43, 54, 60, 66, 67]))]
body = b"".join(bytes([n, len(v)]) + v for n, v in options) + extra + b"\\xff"
head = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 7, 0, 0x8000, address, b"", b"", b"", mac, b"", b"")
sock.sendto(head + b"\\x63\\x82\\x53\\x63" + body, (to, port))
answer = sock.recv(2000)
print(socket.inet_ntoa(answer[16:20]), socket.inet_ntoa(answer[20:24]), answer[108:236].rstrip(b"\\0").decode() or "-")
"""


@pytest.mark.parametrize(
    ("arch", "to", "port", "extra", "answer"),
    [
        (0, "255.255.255.255", 67, "", "0.0.0.0 10.78.0.1 undionly.kpxe"),
        (7, "10.78.0.1", 4011, "", "0.0.0.0 10.78.0.1 snponly.efi"),
        (0, "255.255.255.255", 67, "af0101", f"0.0.0.0 10.78.0.1 {BOOT.ipxe_script}"),
    ],
)
async def test_dnsmasq_as_proxy_gives_boot_programs_and_no_addresses(
    served: DhcpOptions,
    network: Network,
    leases: Leases,
    arch: int,
    to: str,
    port: int,
    extra: str,
    answer: str,
) -> None:
    """Beside another DHCP server only the boot program is told: to BIOS at once, to UEFI on port 4011, to iPXE the script."""
    driver = DnsmasqDhcp(replace(served, proxy=True))
    await driver.start([NET], BOOT, leases)
    network.machine.ip("link", "set", "eth0", "up")
    network.machine.ip("addr", "replace", "10.78.0.99/24", "dev", "eth0")
    try:
        await driver.reserve(reservation(A, 11))
        argv = [sys.executable, "-c", PXE_CLIENT, str(arch), to, str(port), extra]
        done = await asyncio.to_thread(network.machine.run, argv, check=False)
        assert done.stdout.strip() == answer, done.stderr
    finally:
        network.machine.ip("addr", "flush", "dev", "eth0")
        await driver.close()
    assert await driver.reservations() == [reservation(A, 11)]
