"""OpenIPMI's ipmi_sim: an IPMI controller independent of pyghmi, with cycle, sensors, identify and serial over LAN.

    with IpmiSim(ns, port=6240, uri=libvirtd.uri, domain="web01") as bmc:      # drives the domain (see chassis.py)
        bmc.follow(Path("/tmp/web01.console"))                             # what SOL says: a file that grows
    with IpmiSim(ns, port=6241) as bmc:                                        # a machine that is two files
        bmc.say(b"hello")

With ``in_band`` it also listens there, on loopback, for the machine's own keyboard controller style interface (QEMU's
ipmi-bmc-extern): the machine reads and sets its controller from the inside.

One bad line of its files and it opens no port, silently: every byte of a command needs its 0x.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.lab.kit import chassis, lanconf
from tests.lab.kit.netns import Netns, end
from tests.lab.kit.part import Part
from tests.lab.kit.vbmc import PASSWORD, USER, wait_for_ipmi

MAC = "02:5e:10:00:00:01"  # of the controller's own card
LAN = """\
name "{name}"
set_working_mc 0x20
  startlan 1
    addr {address} {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid {guid}
    lan_config_program "{lan}"
  endlan
  {in_band}
  chassis_control "{chassis}"
  sol "tcp:127.0.0.1:{sol}" 115200
  startnow false
  user 1 true "" "test" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
  user 3 true "reader" "{password}" user 10 none md2 md5 straight
"""

# one temperature sensor "CPU Temp" read from a file: 40 C is byte 0x28, warning above 60, critical above 70, failed above 80
EMU = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
sensor_add 0x20 0 1 1 1 poll 1000 file "{root}/cpu_temp"
sensor_set_threshold 0x20 0 1 settable 111000 80 70 60 0 0 0
sensor_set_event_support 0x20 0 1 enable scanning per-state 000111000000000 000111000000000 000111000000000 000111000000000
main_sdr_add 0x20 {sdr}
mc_enable 0x20
"""
# full sensor record, IPMI v2.0 table 43-1: owner 0x20, sensor 1, temperature, degrees C, M=1, B=0, "CPU Temp"
SDR = (
    bytes.fromhex(
        "000051013320000103017f680101800a800a3f3f0001000001000000000000283c0aff00"  # to the nominal readings
        "50463c0000000101000000c8"  # thresholds, hysteresis, type and length of the name
    )
    + b"CPU Temp"
)


class IpmiSim(Part):
    """One simulated controller in ``ns``, of ``domain`` at libvirt ``uri`` or of a machine made of files below ``root``."""

    def __init__(
        self,
        ns: Netns,
        *,
        port: int,
        address: str = "10.77.0.1",
        uri: str = "",
        domain: str = "",
        in_band: int | None = None,
    ) -> None:
        self.ns, self.address, self.port, self.in_band = ns, address, port, in_band
        self.uri, self.domain = uri, domain
        self.username, self.password = USER, PASSWORD
        self.root = Path(tempfile.mkdtemp(prefix="pvsim-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._listener = ns.listen("127.0.0.1")
        self._listener.setblocking(True)
        self._lines: list[socket.socket] = []
        self._ready = threading.Condition()
        self._stopping = threading.Event()

    @property
    def calls(self) -> list[str]:
        """What the chassis program was run for, in order."""
        log = self.root / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def start(self, timeout: float = 20.0) -> IpmiSim:
        """Start it and wait until it answers."""
        threading.Thread(target=self._accept, name="ipmisim-serial", daemon=True).start()
        (self.root / "state").mkdir(exist_ok=True)
        self.temperature(41)
        program = f"{sys.executable} -P {chassis.__file__} " + (
            f"{self.uri} {self.domain}" if self.domain else f"{self.root} -"
        )
        values = {
            "name": f"sim{self.port}",
            "address": self.address,
            "port": self.port,
            "guid": hashlib.md5(str(self.root).encode()).hexdigest(),
            "chassis": program,
            "lan": f"{sys.executable} -P {lanconf.__file__} {self.root}/lan",
            "in_band": f"serial kcs 127.0.0.1 {self.in_band} codec VM" if self.in_band else "",
            "sol": self._listener.getsockname()[1],
            "user": self.username,
            "password": self.password,
        }
        (self.root / "lan.conf").write_text(LAN.format(**values))
        (self.root / "lan").write_text(
            f"ip_addr:{self.address}\nip_addr_src:static\nmac_addr:{MAC}\nsubnet_mask:255.255.255.0\n"
            "default_gw_ip_addr:10.77.0.1\ndefault_gw_mac_addr:02:00:00:00:00:01\n"
            "backup_gw_ip_addr:0.0.0.0\nbackup_gw_mac_addr:00:00:00:00:00:00\n"
        )
        record = " ".join(f"0x{byte:02x}" for byte in SDR)
        (self.root / "cmd.emu").write_text(EMU.format(root=self.root, sdr=record))
        with (self.root / "out").open("ab") as out:
            self.process = self.ns.exec(
                [
                    "ipmi_sim",
                    "-c",
                    self.root / "lan.conf",
                    "-f",
                    self.root / "cmd.emu",
                    "-s",
                    self.root / "state",
                    "-n",
                ],
                env={**os.environ, "CHASSIS_LOG": str(self.root / "calls")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            wait_for_ipmi(self.ns, self.address, self.port, timeout)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {(self.root / 'out').read_text()[-1000:]}") from None
        return self

    def temperature(self, celsius: int) -> None:
        """What the sensor reads, from the next second on."""
        (self.root / "cpu_temp").write_text(f"{celsius}\n")

    def say(self, text: bytes, timeout: float = 5.0) -> None:
        """Let the machine write on its serial port."""
        with self._ready:
            if not self._ready.wait_for(lambda: self._lines, timeout):
                raise RuntimeError("ipmi_sim has not opened its serial line")
            self._lines[-1].sendall(text)

    def follow(self, path: Path) -> None:
        """Say whatever is appended to the file, such as the log of a domain's serial port; it need not be there yet."""
        threading.Thread(target=self._follow, args=(path,), name="ipmisim-follow", daemon=True).start()

    def stop(self) -> None:
        """End it and remove its files."""
        self._stopping.set()
        if self.process is not None:
            pid = self.process.pid
            end(lambda: [pid])
            self.process.wait(5)
            self.process = None
        self._listener.close()
        for line in self._lines:
            line.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with self._ready:
                self._lines.append(line)
                self._ready.notify_all()

    def _follow(self, path: Path) -> None:
        offset = 0
        while not self._stopping.wait(0.05):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(offset)
                if text := file.read(1 << 16):
                    offset += len(text)
                    self.say(text)
