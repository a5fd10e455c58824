"""A blank machine that nobody announced: power-on to its facts, and to SSH, beside the same image booted straight from its disk.

The floor is what no provisioning can beat: the same machine, firmware and image, a disk that holds it already and a NoCloud seed,
until sshd says who it is. Needs root; runs in a namespace of its own, one machine at a time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from provisiond.drivers.compute import DiskSpec, HypervisorTarget, MachineSpec, NicSpec
from provisiond.drivers.compute.libvirt import LibvirtCompute
from provisiond.drivers.power import PowerAction, PowerTarget
from provisiond.drivers.power.libvirt import LibvirtPower
from tests.lab.kit.lab import Lab

PATIENCE = 400.0
FIRMWARE = ("bios", "uefi")


def floor(lab: Lab, firmware: str) -> float:
    """Seconds from the start of a machine whose disk is the image to the banner of its sshd."""
    image = lab.daemon.api("GET", "/images/debian-12")
    number = FIRMWARE.index(firmware)
    ip, mac = f"10.77.0.{150 + number}", f"52:54:00:77:78:{number:02x}"
    network = (
        "version: 2\nethernets:\n  nic0:\n    match: {macaddress: '" + mac + "'}\n    set-name: eth0\n"
        f"    addresses: [{ip}/24]\n"
    )  # fmt: skip
    meta = f"instance-id: floor-{firmware}\nlocal-hostname: floor-{firmware}\n"
    spec = MachineSpec(
        uuid=str(uuid.uuid4()), name=f"floor-{firmware}", vcpus=2, memory_mib=1024, firmware=firmware,
        disks=(DiskSpec(6, str(lab.daemon.state / "images" / image["path"]), image["format"]),), nics=(NicSpec(mac, "br-lab"),),
        seed=(("user-data", "#cloud-config\n{}\n"), ("meta-data", meta), ("network-config", network)),
        console_log=str(lab.root / f"floor-{firmware}.log"), boot=("disk",),
    )  # fmt: skip
    target = HypervisorTarget("hv1", lab.libvirtd.provisiond_uri, "default")

    async def work() -> float:
        compute, power = LibvirtCompute(), LibvirtPower()
        try:
            await compute.ensure(target, spec)
            begun = time.monotonic()
            await power.set(PowerTarget(spec.name, target.uri, system=spec.uuid), PowerAction.ON)
            await asyncio.to_thread(_until, lambda: _banner(lab, ip), f"sshd of {spec.name}")
            return time.monotonic() - begun
        finally:
            await compute.destroy(target, spec.uuid)
            await compute.close()
            await power.close()

    return asyncio.run(work())


def racked(lab: Lab, firmware: str) -> tuple[float, float]:
    """Seconds from power-on of a blank, unknown machine to its facts in the inventory, and to the banner of its sshd."""
    machine = lab.bare_metal(f"rk-{firmware}", firmware=firmware)
    name = f"rack-{machine.serial.lower()}"
    begun, wall = time.monotonic(), datetime.now().astimezone()
    machine.power(True)
    try:
        host: dict[str, Any] = {}

        def has_address() -> bool:
            if name not in [found["name"] for found in lab.daemon.api("GET", "/hosts")["items"]]:
                return False
            host.update(lab.daemon.host(name))
            return bool(host["interfaces"][0]["ip"])

        _until(has_address, f"{name} to be taken in")
        _until(lambda: _banner(lab, host["interfaces"][0]["ip"]), f"sshd of {name}")
        ssh = time.monotonic() - begun
        found = next(e for e in lab.history(name) if e["kind"] == "host.discovered")
        facts = (datetime.fromisoformat(found["at"]) - wall).total_seconds()
        lab.daemon.ctl("host", "retire", name, "--yes")
        return facts, ssh
    finally:
        machine.power(False)


def _banner(lab: Lab, address: str) -> bool:
    try:
        with lab.ns.connect(address, 22) as line:
            line.settimeout(5)
            return line.recv(4) == b"SSH-"
    except OSError:
        return False


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.1)


def main() -> None:
    with Lab(Path(tempfile.mkdtemp(prefix="pvb-", dir="/tmp"))) as lab:
        lab.daemon.ctl("group", "create", "racked", "--parent", "web", "--handover", "none")
        lab.daemon.ctl("subnet", "update", "lab", "--unknown", "discover")
        lab.daemon.ctl("discovery", "rule", "create", "racked", "vendor == 'Lab Computers'", "--group", "racked",
                       "--name-pattern", "rack-{{ serial | lower }}", "--approve", "--build")  # fmt: skip
        for firmware in FIRMWARE:
            least = floor(lab, firmware)
            facts, ssh = racked(lab, firmware)
            print(f"{firmware}_power_on_to_facts {facts:.1f} s -", flush=True)
            print(
                f"{firmware}_power_on_to_ssh {ssh:.1f} s image_booted_directly={least:.1f} ratio={ssh / least:.2f}"
            )


if __name__ == "__main__":
    main()
