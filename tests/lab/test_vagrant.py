"""The Vagrantfile, as far as it goes without a box from outside: it is valid, and its blank machine is made, boots, and is removed.

On demand (`make lab-full`), where vagrant and vagrant-libvirt are installed: apt-get install vagrant vagrant-libvirt.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from tests.lab.kit.fixtures import libvirtd, need, netns  # noqa: F401 - fixtures
from tests.lab.kit.libvirtd import Libvirtd
from tests.lab.kit.netns import Netns

pytestmark = [pytest.mark.lab_full, pytest.mark.timeout(600)]
VAGRANT = Path(__file__).resolve().parents[2] / "vagrant"


def vagrant(ns: Netns, hypervisor: Libvirtd, home: Path, *argv: str) -> str:
    """Run vagrant inside the namespace, with a home and a state of this test alone; what it printed."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "VAGRANT_HOME": str(home / ".vagrant.d"),
        "VAGRANT_CWD": str(VAGRANT),
        "VAGRANT_DOTFILE_PATH": str(home / ".vagrant"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "LIBVIRT_DEFAULT_URI": hypervisor.uri,
        "PROVISIOND_DRIVER": "qemu",
    }
    done = ns.run(["vagrant", *argv], check=False, timeout=300, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"vagrant {' '.join(argv)}: {done.stdout}{done.stderr}"
    return f"{done.stdout}{done.stderr}"


def test_a_blank_machine_by_vagrant(netns: Netns, libvirtd: Libvirtd, tmp_path: Path) -> None:  # noqa: F811
    """`vagrant up client-bios` makes a machine with the MAC that the README names, an empty disk, and the network first."""
    need("vagrant")
    assert "successfully" in vagrant(netns, libvirtd, tmp_path, "validate")
    try:
        vagrant(netns, libvirtd, tmp_path, "up", "client-bios")
        connection = libvirt.open(libvirtd.uri)
        try:
            [domain] = connection.listAllDomains()
            machine = ET.fromstring(domain.XMLDesc())
            assert domain.isActive()
        finally:
            connection.close()
        assert [mac.get("address") for mac in machine.iter("mac")] == ["52:54:00:77:0a:01"]
        order = [boot.get("dev") for boot in machine.iter("boot") if boot.get("dev")]
        if not order:  # by device instead of by kind
            devices = [d for d in machine.find("devices") or () if d.find("boot") is not None]
            order = [d.tag for d in sorted(devices, key=lambda d: int(d.find("boot").get("order")))]
        assert order in (["network", "hd"], ["interface", "disk"])
    finally:
        vagrant(netns, libvirtd, tmp_path, "destroy", "-f", "client-bios")
    connection = libvirt.open(libvirtd.uri)
    try:
        assert connection.listAllDomains() == []
    finally:
        connection.close()
