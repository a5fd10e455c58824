"""The whole lab: a namespace, a libvirtd, VirtualBMC, and a real provisiond that knows the network, the image and the hypervisor.

with Lab(Path("/tmp/pvx")) as lab:
    metal = lab.bare_metal("metal1", firmware="uefi")       # blank, off, behind a BMC
    lab.create_metal(metal, "--build")
    lab.wait("metal1", "active")
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.kit.daemon import Daemon
from tests.lab.kit.ipmisim import IpmiSim
from tests.lab.kit.libvirtd import CACHE, Libvirtd
from tests.lab.kit.machines import BareMetal
from tests.lab.kit.netns import Netns
from tests.lab.kit.vbmc import PASSWORD, USER, Bmc, Vbmcd

TOP = Path(__file__).resolve().parents[3]
FIRST_PORT = 6230

# What a fresh installation is told; provisionctl's own words, so that the demo can show them.
CATALOGUE = """\
os create debian-12 --family debian --version 12
subnet create lab 10.77.0.0/24 --gateway 10.77.0.1 --dns 10.77.0.1 --pool 10.77.0.20-10.77.0.99 --dynamic 10.77.0.200-10.77.0.239
image add debian-12 {image} --format raw --os debian-12
flavor create small --vcpus 2 --memory 1024 --disk 6
hypervisor create hv1 {uri} --bridge br-lab
group create web --os debian-12 --image debian-12 --subnet lab --flavor small --handover ansible --params-file {parameters}
"""


class Lab:
    """Everything below ``root`` (a short path: libvirt's socket is below it). ``name`` is the namespace's."""

    def __init__(self, root: Path, name: str | None = None) -> None:
        self.root = root
        self.ns = Netns(name)
        self.libvirtd = Libvirtd(self.ns, root / "lv")
        self.vbmcd = Vbmcd(self.ns, root=root / "vbmc")
        self.daemon = Daemon(
            self.ns, root / "daemon", {"dhcp": {"driver": "dnsmasq", "interfaces": ["br-lab"]}}
        )
        self.metal: list[BareMetal] = []
        self.sims: list[IpmiSim] = []
        self.bmcs: dict[str, Bmc] = {}

    # --- up and down -------------------------------------------------------------------------------------

    def up(self, say: Callable[[str], None] = lambda _: None) -> Lab:
        """Bring it all up; ``say`` hears what is being done. Builds ramdisk and image unless the cache has them."""
        self.root.mkdir(parents=True, exist_ok=True)
        say("ramdisk")
        ramdisk = build("pxe/ramdisk/build", say)
        say("disk image")
        image = build("pxe/image/build", say)
        say("network namespace")
        self.ns.up()
        say("libvirtd")
        self.libvirtd.start()
        say("VirtualBMC")
        self.vbmcd.start()
        say("provisiond")
        self.daemon.set("boot", ramdisk_dir=str(ramdisk), image_encoding="raw")
        self.daemon.start()
        self._fill(image, say)
        return self

    def _fill(self, image: Path, say: Callable[[str], None]) -> None:
        """Tell the daemon of the network, the image and the hypervisor, by provisionctl."""
        parameters = self.root / "web.yaml"
        # quiet, mitigations=off: an emulated processor spends seconds on them
        parameters.write_text(
            "kernel_arguments: [quiet, mitigations=off]\n"
            f"ansible: {{directory: {TOP / 'examples/ansible'}, playbook: site.yml}}\n"
        )
        known = {
            name: str(value) for name, value in (("image", image), ("uri", self.libvirtd.provisiond_uri))
        }
        for line in CATALOGUE.splitlines():
            words = [word.format(**known, parameters=parameters) for word in line.split()]
            say("provisionctl " + " ".join(words))
            self.daemon.ctl(*words, timeout=300)

    def restart(self, table: str, **settings: object) -> None:
        """The daemon once more, with other settings in one table; what it knows stays."""
        self.daemon.stop()
        self.daemon.set(table, **settings)
        self.daemon.start()

    def down(self) -> None:
        """Take it all down: no process, namespace, mount, machine or disk stays."""
        self.daemon.stop()
        for sim in self.sims:
            sim.stop()
        self.vbmcd.stop()
        self.libvirtd.stop()
        self.ns.down()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Lab:
        try:
            return self.up()
        except BaseException:
            self.down()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # --- machines ----------------------------------------------------------------------------------------

    def bare_metal(
        self, name: str, *, firmware: str = "bios", bmc: str = "vbmc", in_band: bool = False, **hardware: Any
    ) -> BareMetal:
        """A blank machine, off, with a BMC that provisiond can reach; ``bmc`` is vbmc or ipmi_sim, ``hardware`` more of BareMetal.

        ``in_band``: the machine reaches its ipmi_sim from the inside too, which answers at an address of its own, port 623.
        """
        port = FIRST_PORT + len(self.metal)
        inside = port + 1000 if in_band else None
        machine = BareMetal(self.libvirtd, name, firmware=firmware, in_band=inside, **hardware).define()
        if bmc == "vbmc":
            self.bmcs[name] = self.vbmcd.add(name, self.libvirtd.uri, port)
        else:
            where: dict[str, Any] = {"port": port}
            if in_band:
                where = {"port": 623, "address": f"10.77.0.{10 + len(self.metal)}", "in_band": inside}
                self.ns.run(["ip", "addr", "add", f"{where['address']}/24", "dev", "br-lab"])
            sim = IpmiSim(self.ns, uri=self.libvirtd.uri, domain=name, **where)
            self.sims.append(sim)
            sim.start()
            sim.follow(machine.console)
            self.bmcs[name] = Bmc(sim.address, sim.port)
        self.metal.append(machine)
        return machine

    def create_metal(self, machine: BareMetal, *options: str) -> str:
        """provisionctl host create, with the machine's MAC and BMC, in group web."""
        bmc = self.bmcs[machine.name]
        url = f"ipmi://{USER}@{bmc.address}:{bmc.port}"
        argv = ["host", "create", machine.name, "--group", "web", "--mac", machine.mac, "--bmc", url]
        if machine.firmware != "bios":
            argv += ["--firmware", "uefi"]
        return self.daemon.ctl(*argv, *options, PROVISIOND_BMC_PASSWORD=PASSWORD)

    def wait(self, name: str, state: str, timeout: float = 420.0) -> dict[str, Any]:
        """Until the host rests in ``state``; AssertionError with its history when it fails or takes too long."""
        until = time.monotonic() + timeout
        while True:
            host = self.daemon.host(name)
            if host["state"] == state and not host["failure"] and not (state == "retired" and host["step"]):
                return host
            failed = host["failure"] and not host["retry_at"]
            if failed or time.monotonic() > until:
                why = host["failure"] if failed else f"not {state} after {timeout:.0f} s"
                raise AssertionError(f"host {name}: {why}\n{self.story(name)}")
            time.sleep(0.5)

    def history(self, name: str, *, after: int = 0) -> list[dict[str, Any]]:
        """Every event of the host later than event ``after``, oldest first."""
        events: list[dict[str, Any]] = []
        while True:
            page = self.daemon.api("GET", f"/hosts/{name}/history", after=after, limit=500)["items"]
            events += page
            if len(page) < 500:
                return events
            after = page[-1]["id"]

    def story(self, name: str) -> str:
        """The history as lines, with the ends of the machine's console and the daemon's log: for a failed test."""
        lines = [
            f"{e['at'][11:23]} {e['kind']:<18} {e['state']}/{e['step']} {e['message'] or e['cause']}"
            for e in self.history(name)
        ]
        console = next((m.said() for m in self.metal if m.name == name), "")
        return "\n".join(lines) + f"\n--- console\n{console[-2500:]}\n--- log\n{self.daemon.log()[-4000:]}"

    def ssh(self, address: str, command: str) -> str:
        """Run a command on a machine, with the daemon's own key."""
        key = self.daemon.state / "ssh" / "id_ed25519"
        return self.ns.run(
            [
                *("ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
                *("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", f"root@{address}", command),
            ]
        ).stdout


def build(script: str, say: Callable[[str], None]) -> Path:
    """Run one of the build scripts and return the path it prints; ``say`` hears its progress."""
    process = subprocess.Popen(
        ["nice", "-n", "5", TOP / script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PROVISIOND_LAB_CACHE": os.fspath(CACHE)},
    )
    assert process.stderr is not None and process.stdout is not None
    said = []
    for line in process.stderr:
        said.append(line)
        say(line.strip())
    path = process.stdout.read().strip()
    if process.wait():
        raise RuntimeError(f"{script} failed:\n{''.join(said[-20:])}")
    return Path(path.splitlines()[-1])
