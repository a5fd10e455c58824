"""What the daemon costs between power-on and service: a virtual machine by provisiond, and the same image booted by hand.

By hand means: the same definition, disk overlay and NoCloud seed, started directly, until cloud-init phones home. Handover is
left out on both sides. Needs root; runs in a namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from provisiond.drivers.compute import DiskSpec, HypervisorTarget, MachineSpec, NicSpec
from provisiond.drivers.compute.libvirt import LibvirtCompute
from provisiond.drivers.power import PowerAction, PowerTarget
from provisiond.drivers.power.libvirt import LibvirtPower
from tests.lab.kit.lab import Lab

ROUNDS = 2
ADDRESS = "10.77.0.1"


class Phone:
    """Waits for the call home of one machine."""

    def __init__(self, lab: Lab) -> None:
        self.rang = threading.Event()
        phone = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                phone.rang.set()

            def log_message(self, *_: object) -> None:
                pass

        with lab.ns.enter():
            self.server = http.server.ThreadingHTTPServer((ADDRESS, 0), Handler)
        self.url = f"http://{ADDRESS}:{self.server.server_port}/home"

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            self.server.server_close()


def by_hand(lab: Lab, number: int) -> float:
    """Seconds from the start of the machine to its call home."""
    image = lab.daemon.api("GET", "/images/debian-12")
    phone, ip = Phone(lab), f"10.77.0.{150 + number}"
    mac = f"52:54:00:77:77:{number:02x}"
    network = (
        "version: 2\nethernets:\n  nic0:\n    match: {macaddress: '" + mac + "'}\n    set-name: eth0\n"
        f"    addresses: [{ip}/24]\n"
    )  # fmt: skip
    user = f"#cloud-config\nphone_home: {{url: '{phone.url}', post: [hostname], tries: 30}}\n"
    spec = MachineSpec(
        uuid=str(uuid.uuid4()), name=f"hand{number}", vcpus=2, memory_mib=1024,
        disks=(DiskSpec(6, str(lab.daemon.state / "images" / image["path"]), image["format"]),), nics=(NicSpec(mac, "br-lab"),),
        seed=(("user-data", user), ("meta-data", f"instance-id: {uuid.uuid4()}\nlocal-hostname: hand{number}\n"), ("network-config", network)),
    )  # fmt: skip
    target = HypervisorTarget("hv1", lab.libvirtd.provisiond_uri)

    async def work() -> float:
        compute, power = LibvirtCompute(), LibvirtPower()
        try:
            await compute.ensure(target, spec)
            begun = time.monotonic()
            await power.set(PowerTarget(spec.name, target.uri, system=spec.uuid), PowerAction.ON)
            rang = await asyncio.to_thread(phone.rang.wait, 400)
            assert rang, "the machine started by hand never phoned home"
            return time.monotonic() - begun
        finally:
            await compute.destroy(target, spec.uuid)
            await compute.close()
            await power.close()

    with phone.answering():
        return asyncio.run(work())


def by_provisiond(lab: Lab, number: int) -> tuple[float, float]:
    """Seconds from power-on, and from ``host create``, to in service."""
    name = f"auto{number}"
    lab.daemon.ctl("host", "create", name, "--group", "web", "--on", "hv1", "--handover", "none", "--build")
    lab.wait(name, "active")
    at = {
        (event["kind"], event["step"] or event["data"].get("to", "")): datetime.fromisoformat(event["at"])
        for event in lab.history(name)
    }
    active = next(
        datetime.fromisoformat(e["at"])
        for e in lab.history(name)
        if e["kind"] == "state.changed" and e["data"]["to"] == "active"
    )
    created = min(at.values())
    lab.daemon.ctl("host", "retire", name, "--yes")
    lab.wait(name, "retired")
    return (active - at["step.started", "boot"]).total_seconds(), (active - created).total_seconds()


def main() -> None:
    with Lab(Path(tempfile.mkdtemp(prefix="pvb-", dir="/tmp"))) as lab:
        hand = min(by_hand(lab, number) for number in range(ROUNDS))
        runs = [by_provisiond(lab, number) for number in range(ROUNDS)]
    power_on, create = min(run[0] for run in runs), min(run[1] for run in runs)
    print(f"vm_power_on_to_service {power_on:.1f} s by_hand={hand:.1f}")
    print(f"vm_create_to_service {create:.1f} s by_hand={hand:.1f}")
    print(f"vm_overhead_of_the_daemon {power_on - hand:.1f} s by_hand=0")


if __name__ == "__main__":
    main()
