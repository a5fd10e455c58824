"""Two machines that nobody announced: switched on, discovered, accepted by a rule, in service from an image, released, blank again.

One starts by BIOS and has a controller that it reaches from the inside (a real IPMI system interface); the other starts by UEFI.
Both at once, with one processor each. Each leg is printed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.lab.kit.lab import Lab
from tests.lab.kit.machines import BareMetal
from tests.lab.kit.vbmc import PASSWORD, USER

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

PATIENCE = 400.0
NAMES = {"bios": "rack-lab-r1", "uefi": "rack-lab-r2"}


@pytest.fixture
def rack(lab: Lab) -> Iterator[dict[str, BareMetal]]:
    """Two blank machines, off, of which the daemon knows nothing; its subnet discovers, and one rule takes them in."""
    daemon = lab.daemon
    daemon.ctl("group", "create", "racked", "--parent", "web", "--handover", "none")
    daemon.ctl("subnet", "update", "lab", "--unknown", "discover")
    daemon.ctl("discovery", "rule", "create", "racked", "vendor == 'Lab Computers' and memory.mib >= 900", "--group", "racked",
               "--name-pattern", "rack-{{ serial | lower }}", "--approve", "--build", "--bmc-user", "provisiond")  # fmt: skip
    machines = {
        "bios": lab.bare_metal("r1", bmc="ipmi_sim", in_band=True, vcpus=1),
        "uefi": lab.bare_metal("r2", firmware="uefi", vcpus=1),
    }
    yield machines
    for machine in machines.values():
        machine.power(False)


def test_from_the_rack_to_service_and_back(lab: Lab, rack: dict[str, BareMetal]) -> None:
    """The whole way, and the same once more up to the discovery."""
    begun = datetime.now().astimezone()
    for machine in rack.values():
        machine.power(True)
    for which, machine in rack.items():
        name = NAMES[which]
        _until(lambda name=name: _known(lab, name), f"{name} to be discovered", lab)
        _has_right_facts(lab, name, machine)
    _has_a_controller(lab, NAMES["bios"])
    address = lab.bmcs["r2"]
    lab.daemon.ctl("host", "update", NAMES["uefi"], "--bmc", f"ipmi://{USER}@{address.address}:{address.port}",
                   PROVISIOND_BMC_PASSWORD=PASSWORD)  # fmt: skip
    for which, machine in rack.items():
        host = lab.wait(NAMES[which], "active", PATIENCE)
        _print_legs(lab, NAMES[which], begun)
        said = lab.ssh(
            host["interfaces"][0]["ip"], "hostname; ls /sys/firmware; cat /proc/sys/kernel/random/boot_id"
        )
        assert said.splitlines()[0] == NAMES[which]
        assert ("efi" in said.splitlines()) == (machine.firmware != "bios")
        assert not _blank(machine)

    lab.daemon.ctl("discovery", "rule", "delete", "racked")
    for name in NAMES.values():
        lab.daemon.ctl("host", "release", name, "--yes")
    for which, machine in rack.items():
        lab.wait(NAMES[which], "ready", PATIENCE)
        _print_legs(lab, NAMES[which], begun)
        assert not machine.is_on()
        assert _blank(machine), "something is left on the disk"
        _has_a_certificate(lab, NAMES[which], machine)

    for which, machine in rack.items():
        lab.daemon.ctl("host", "delete", NAMES[which], "--yes")
        machine.power(True)
    again = time.monotonic()
    for machine in rack.values():
        name = f"new-{machine.mac.replace(':', '')}"
        _until(lambda name=name: _known(lab, name), f"{name} to be discovered again", lab)
        assert lab.daemon.host(name)["state"] == "discovered"
    print(f"  both discovered again {time.monotonic() - again:.1f} s after power-on", flush=True)


def _known(lab: Lab, name: str) -> bool:
    return name in {host["name"] for host in lab.daemon.api("GET", "/hosts")["items"]}


def _has_right_facts(lab: Lab, name: str, machine: BareMetal) -> None:
    facts: dict[str, Any] = lab.daemon.api("GET", f"/hosts/{name}/hardware")["facts"]
    assert (facts["vendor"], facts["model"], facts["serial"]) == (
        machine.vendor,
        machine.model,
        machine.serial,
    )
    assert facts["uuid"] == machine.uuid
    assert facts["firmware"]["mode"] == ("bios" if machine.firmware == "bios" else "uefi")
    assert facts["cpu"]["threads"] == machine.vcpus
    assert machine.memory_mib * 0.85 < facts["memory"]["mib"] <= machine.memory_mib
    [disk] = facts["disks"]
    assert disk["size"] == machine.disk_gib << 30 and disk["serial"].startswith("disk-")
    [card] = facts["nics"]
    assert card["mac"] == machine.mac and card["driver"] == "virtio_net" and card["link"] and card["boot"]


def _has_a_controller(lab: Lab, name: str) -> None:
    """Found from the inside, and made our own: the user that the rule asked for logs in over the network."""
    _until(lambda: lab.daemon.host(name)["bmc"], f"{name} to get its controller", lab)
    bmc = lab.daemon.host(name)["bmc"]
    assert bmc["username"] == "provisiond" and "10.77.0." in bmc["address"], bmc
    facts = lab.daemon.api("GET", f"/hosts/{name}/hardware")["facts"]
    assert facts["bmc"]["mac"] == "02:5e:10:00:00:01"


def _has_a_certificate(lab: Lab, name: str, machine: BareMetal) -> None:
    [record] = lab.daemon.api("GET", "/erasures", host=name)["items"]
    assert record["verified"] and record["disk_size"] == machine.disk_gib << 30, record
    assert record["host_serial"] == machine.serial
    text = lab.daemon.ctl("host", "certificate", name)
    assert record["disk_serial"] in text and record["method"] in text
    print(f"  {name}: disk {record['disk_serial']} erased by {record['method']}", flush=True)


def _blank(machine: BareMetal) -> bool:
    """Whether its disk reads as an empty one does, to the last byte."""
    empty = machine.disk.with_suffix(".empty")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", empty, f"{machine.disk_gib}G"], check=True, timeout=60
    )
    try:
        compared = subprocess.run(
            ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", machine.disk, empty],
            check=False, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        empty.unlink()
    assert compared.returncode in (0, 1), compared.stderr
    return compared.returncode == 0


def _print_legs(lab: Lab, name: str, begun: datetime) -> None:
    """When each leg was done, in seconds since the machines were switched on."""
    seen: set[str] = set()
    print(flush=True)
    for event in lab.history(name):
        what = f"{event['kind']} {event['step']}".strip()
        telling = event["kind"] in ("state.changed", "host.discovered", "step.ended") or (
            event["kind"].startswith(("callback.", "discovery.", "hardware.", "task.")) and what not in seen
        )
        if telling:
            seen.add(what)
            at = (datetime.fromisoformat(event["at"]) - begun).total_seconds()
            print(f"  {name:<12} {at:7.1f} s  {what} {event['data'].get('to', '')}".rstrip(), flush=True)


def _until(condition: Any, what: str, lab: Lab, timeout: float = 240.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            hosts = json.dumps(lab.daemon.api("GET", "/hosts")["items"], indent=1)[:3000]
            consoles = "\n".join(f"--- {m.name}\n{m.said()[-2000:]}" for m in lab.metal)
            raise AssertionError(
                f"waited {timeout:.0f} s for {what}\n{hosts}\n{consoles}\n--- log\n{lab.daemon.log()[-4000:]}"
            )
        time.sleep(0.3)
