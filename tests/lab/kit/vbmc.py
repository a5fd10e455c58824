"""VirtualBMC as it is: an IPMI controller per libvirt domain (power and boot device; no cycle, sensors or console).

    with Vbmcd(ns) as vbmcd:
        bmc = vbmcd.add("web01", uri, port=6230)     # at bmc.address, bmc.port

Its own configuration stands in a temporary directory; each controller is a process of about 30 MB.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.kit.netns import Netns, end
from tests.lab.kit.part import Part

USER, PASSWORD = "admin", "labpass"


@dataclass(frozen=True)
class Bmc:
    """Where a simulated controller listens, and as whom to log in."""

    address: str
    port: int
    username: str = USER
    password: str = PASSWORD


class Vbmcd(Part):
    """One vbmcd in ``ns``; its controllers listen on ``address``. ``root`` is its directory (default: a temporary one)."""

    def __init__(self, ns: Netns, address: str = "10.77.0.1", root: Path | None = None) -> None:
        self.ns, self.address = ns, address
        self.root = root or Path(tempfile.mkdtemp(prefix="pvbmc-"))
        self.config = self.root / "cfg"
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, domain: str, uri: str, port: int) -> Bmc:
        """The configuration of one controller, for a daemon that is started after."""
        folder = self.config / domain
        folder.mkdir(parents=True, exist_ok=True)
        lines = {
            "username": USER,
            "password": PASSWORD,
            "address": self.address,
            "port": port,
            "domain_name": domain,
            "libvirt_uri": uri,
            "active": True,
        }
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        (folder / "config").write_text(f"[VirtualBMC]\n{text}")
        return Bmc(self.address, port)

    def start(self, timeout: float = 30.0) -> Vbmcd:
        """Start the daemon and wait until each controller written before answers."""
        self.config.mkdir(parents=True, exist_ok=True)
        control = self._free_port()
        (self.root / "virtualbmc.conf").write_text(
            f"[default]\nconfig_dir={self.config}\npid_file={self.root}/vbmcd.pid\nserver_port={control}\n"
            f"[log]\nlogfile={self.root}/vbmcd.log\n[ipmi]\nsession_timeout=20\n"
        )
        with (self.root / "out").open("ab") as out:
            self.process = self.ns.exec(
                [Path(sys.executable).with_name("vbmcd"), "--foreground"],
                env={**os.environ, "VIRTUALBMC_CONFIG": str(self.root / "virtualbmc.conf")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        for config in self.config.glob("*/config"):
            port = next(
                int(line.split("=")[1]) for line in config.read_text().splitlines() if line.startswith("port")
            )
            wait_for_ipmi(self.ns, self.address, port, timeout)
        return self

    def add(self, domain: str, uri: str, port: int) -> Bmc:
        """One controller more, while the daemon runs (it looks at its configuration every 3 s)."""
        bmc = self.write(domain, uri, port)
        wait_for_ipmi(self.ns, self.address, port)
        return bmc

    def stop(self) -> None:
        """End the daemon and its controllers, and remove the configuration."""
        if self.process is not None:
            end(self._pids)
            self.process.wait(5)
            self.process = None
        shutil.rmtree(self.root, ignore_errors=True)

    def _pids(self) -> list[int]:
        """The daemon and its children: all of its process group."""
        assert self.process is not None
        group = str(self.process.pid)
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if words[2] == group:
                found.append(int(stat.parent.name))
        return found

    def _free_port(self) -> int:
        with self.ns.enter(), socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        return port


# Get Channel Authentication Capabilities outside of a session (IPMI v2.0, 13.6 and 22.13)
_PROBE = bytes.fromhex("0600ff07000000000000000000092018c88100388e04b5")


def wait_for_ipmi(ns: Netns, address: str, port: int, timeout: float = 30.0) -> None:
    """Until something answers IPMI at ``address``:``port`` inside ``ns``; RuntimeError after ``timeout`` seconds."""
    with ns.enter():
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    until = time.monotonic() + timeout
    with probe:
        probe.settimeout(0.1)
        probe.connect((address, port))
        while time.monotonic() < until:
            try:
                probe.send(_PROBE)
                probe.recv(512)
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
            except TimeoutError:
                pass
    raise RuntimeError(f"no IPMI controller answers at {address}:{port} after {timeout:g} s")
