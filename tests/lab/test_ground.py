"""The lab's own ground: it comes up, keeps to itself, and leaves nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.lab.kit.fixtures import need
from tests.lab.kit.libvirtd import Libvirtd, domain_type
from tests.lab.kit.netns import Netns, reap

pytestmark = pytest.mark.lab


@pytest.fixture
def ground() -> Iterator[Netns]:
    """A namespace of its own, since these tests take it down."""
    need("ip")
    with Netns() as ns:
        yield ns


def test_a_socket_made_inside_serves_outside(ground: Netns) -> None:
    """This process listens inside, on IPv4 and IPv6, and has itself not moved."""
    home = os.readlink("/proc/thread-self/ns/net")
    for host in ("10.77.0.1", "fd77::1"):
        server = ground.listen(host)
        port = server.getsockname()[1]
        said = ground.run(
            ["python3", "-c", f"import socket; socket.create_connection(('{host}', {port})); print('in')"]
        )
        assert said.stdout == "in\n"
        with pytest.raises(OSError):
            socket.create_connection((host, port), 0.3)
        server.close()
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_there_is_no_way_out(ground: Netns) -> None:
    """No default route."""
    assert "default" not in ground.run(["ip", "route"]).stdout + ground.run(["ip", "-6", "route"]).stdout


def test_a_second_namespace_is_a_client_of_the_first(ground: Netns) -> None:
    """plug() gives it a card on the bridge."""
    with Netns(bridge="") as client:
        ground.plug(client, addresses=["10.77.0.9/24"])
        server = ground.listen("10.77.0.1")
        with client.connect("10.77.0.1", server.getsockname()[1]) as connection:
            assert connection.getsockname()[0] == "10.77.0.9"
        server.close()


def test_down_ends_what_runs_inside_and_no_more(ground: Netns) -> None:
    """A stubborn process inside is killed; one outside lives on."""
    inside = ground.exec(["bash", "-c", "trap '' TERM; while true; do sleep 0.1; done"])
    outside = subprocess.Popen(["sleep", "60"])
    Netns.attach(ground.name).down()
    assert inside.wait(5) != 0
    assert outside.poll() is None
    assert not ground.exists
    outside.kill()
    outside.wait()


def test_reap_removes_what_a_killed_run_left() -> None:
    """The maker is dead: its namespace goes. Others' stay."""
    need("ip")
    maker = subprocess.Popen(["true"])
    maker.wait()
    with Netns() as alive:
        left = Netns(f"pvlab-{maker.pid}-abcdef").up()
        assert left.name in reap()
        assert alive.exists
        assert not left.exists


def test_libvirtd_leaves_nothing(ground: Netns) -> None:
    """A running machine, the daemon, its directory: all gone after stop() from the files alone."""
    need("libvirtd", "qemu-system-x86_64")
    root = Path(tempfile.mkdtemp(prefix="pvlv-"))
    mounts = Path("/proc/mounts").read_text()
    with Libvirtd(ground, root) as hypervisor:
        connection = libvirt.open(hypervisor.uri)
        connection.createXML(
            f"<domain type='{domain_type()}'><name>m</name><memory unit='MiB'>32</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
        connection.close()
        pids = hypervisor.pids()
        assert len(pids) == 2
        assert set(pids) <= set(ground.pids())
        Libvirtd.attach(root).stop()
        assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)
    assert not root.exists()
    assert Path("/proc/mounts").read_text() == mounts
    assert ground.pids() == []
