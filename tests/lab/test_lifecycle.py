"""From nothing to service and back, on machines that boot for real: their firmware, our ramdisk, their own kernel, Ansible.

No part is simulated but the hardware: QEMU is the machine, VirtualBMC or ipmi_sim its controller. One machine at a time,
since two cores emulate no more. Each test prints when each leg of the way was done.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.kit.lab import Lab
from tests.lab.kit.machines import BareMetal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture
def metal(lab: Lab, request: pytest.FixtureRequest) -> BareMetal:
    """A blank machine as the test asks for it; it is switched off when the test is over."""
    options: dict[str, Any] = request.param
    machine = lab.bare_metal(**options)
    request.addfinalizer(lambda: machine.power(False))
    return machine


@pytest.mark.parametrize("metal", [{"name": "metal-sim", "bmc": "ipmi_sim"}], indirect=True)
def test_machine_behind_ipmi_sim(lab: Lab, metal: BareMetal) -> None:
    """The same behind OpenIPMI's controller, whose serial over LAN ends in the host's console log."""
    lab.create_metal(metal, "--build")
    _went_into_service(lab, metal)
    assert "provisiond" in lab.daemon.ctl("host", "console", metal.name)


def test_virtual_machine_from_image_to_nothing(lab: Lab) -> None:
    """A virtual machine is made from the image and goes into service, is rebuilt as new, and is retired without a trace."""
    lab.daemon.ctl("host", "create", "vm1", "--group", "web", "--on", "hv1", "--build")
    host = lab.wait("vm1", "active")
    _print_legs(lab, "vm1")
    address, mac = host["interfaces"][0]["ip"], host["interfaces"][0]["mac"]
    assert lab.ssh(address, "hostname; cat /etc/motd; touch /root/first-life").startswith("vm1\n")
    assert _domains(lab).keys() >= {"vm1"}

    lab.daemon.ctl("host", "rebuild", "vm1", "--yes")
    _until(lambda: lab.daemon.host("vm1")["state"] != "active", "the rebuild to begin")
    again = lab.wait("vm1", "active")
    _print_legs(lab, "vm1", deployment=again["deployment"]["id"])
    assert again["deployment"]["number"] == host["deployment"]["number"] + 1
    assert again["interfaces"][0]["ip"] == address
    assert lab.ssh(address, "ls -A /root").find("first-life") < 0, "the disk was not made anew"

    lab.daemon.ctl("host", "retire", "vm1", "--yes")
    lab.wait("vm1", "retired")
    assert "vm1" not in _domains(lab)
    assert again["id"] not in "".join(map(str, lab.libvirtd.root.rglob("*"))), (
        "a disk, seed or log is left over"
    )
    assert not list((lab.libvirtd.pool).iterdir()), "the pool is not empty"
    left = _files_naming(lab.daemon.state / "run", mac)
    assert not left, f"a reservation or lease is left over in {left}"


@pytest.mark.parametrize("metal", [{"name": "metal-dark"}], indirect=True)
def test_host_that_never_boots(lab: Lab, metal: BareMetal) -> None:
    """A machine without a cable ends in a failure that says so, and goes into service once it is plugged in and retried."""
    metal.unplug_network()
    lab.create_metal(metal, "--build", "--param", "boot_minutes=0.4")
    _until(lambda: lab.daemon.host(metal.name)["failure"], "the failure to be recorded", 180)
    host = lab.daemon.host(metal.name)
    assert host["state"] == "building"
    assert host["failure_kind"] == "no-boot"
    assert metal.mac in host["failure"] and f"provisionctl host retry {metal.name}" in host["failure"]
    assert "step.failed" in [event["kind"] for event in lab.history(metal.name)]
    print(f"  {metal.name}: {host['failure']}", flush=True)


# --- what has to be so when a machine is in service --------------------------------------------------------------


def _went_into_service(lab: Lab, metal: BareMetal) -> None:
    host = lab.wait(metal.name, "active")
    _print_legs(lab, metal.name)
    kinds = [event["kind"] for event in lab.history(metal.name)]
    for kind in (
        "host.created",
        "callback.progress",
        "callback.built",
        "callback.phone-home",
        "handover.output",
    ):
        assert kind in kinds, f"the history has no {kind}:\n{lab.story(metal.name)}"
    assert host["power"] == "on" and host["deployment"]["outcome"] == "active"
    address = host["interfaces"][0]["ip"]
    said = lab.ssh(
        address,
        "hostname; cat /etc/motd; id -un deploy; cat /etc/ssh/ssh_host_ed25519_key.pub; ls /sys/firmware",
    )
    lines = said.splitlines()
    assert lines[0] == metal.name
    assert lines[1] == f"{metal.name} is managed by Ansible, handed over by provisiond."
    assert lines[2] == "deploy"
    assert ("efi" in lines) == (metal.firmware != "bios")
    [build] = lab.daemon.api("GET", f"/hosts/{metal.name}/deployments")["items"]
    assert build["boots"] == 1
    assert _domains(lab)[metal.name] != "network", "it would boot from the network again"


def _print_legs(lab: Lab, name: str, deployment: str = "") -> None:
    """When each leg was done, in seconds since the first."""
    events = [e for e in lab.history(name) if not deployment or e["deployment_id"] == deployment]
    begin = datetime.fromisoformat(events[0]["at"])
    seen = set()
    print(flush=True)
    for event in events:
        what = f"{event['kind']} {event['step']}".strip()
        if event["kind"] in ("step.ended", "state.changed") or (
            event["kind"].startswith("callback.") and what not in seen
        ):
            seen.add(what)
            at = (datetime.fromisoformat(event["at"]) - begin).total_seconds()
            to = event["data"].get("to", "")
            print(f"  {name:<11} {at:7.1f} s  {what} {to}".rstrip(), flush=True)


def _domains(lab: Lab) -> dict[str, str]:
    """Name -> boot device of the next start, of every domain of the lab's hypervisor."""
    connection = libvirt.open(lab.libvirtd.uri)
    try:
        domains = connection.listAllDomains()
        return {
            d.name(): d.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).partition("<boot dev='")[2].partition("'")[0]
            for d in domains
        }
    finally:
        connection.close()


def _files_naming(directory: Path, text: str) -> list[Path]:
    return [
        p
        for p in directory.rglob("*")
        if p.is_file() and text in p.read_text(errors="replace") and p.suffix != ".log"
    ]


def _until(condition: Any, what: str, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.3)
