"""Bare metal of the lab: blank machines that the lab itself defines, each with an empty disk and a serial console.

provisiond knows nothing of the hypervisor beneath them: it sees a BMC (VirtualBMC, ipmi_sim, sushy-emulator) and
a MAC.

    machine = BareMetal(libvirtd, "metal1", firmware="uefi")
    machine.define()        # off, blank
    ...
    machine.remove()
"""

from __future__ import annotations

import hashlib
import subprocess
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

import libvirt

from tests.lab.kit.libvirtd import Libvirtd, domain_type

OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
SECURE_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.ms.fd")
SECURE_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")


@dataclass
class BareMetal:
    """One machine. ``firmware`` is bios, uefi, uefi-http or uefi-secure; each disk is blank, qcow2, ``disk_gib`` GiB.

    uefi-http is a UEFI that knows no PXE, only HTTP boot: it asks DHCP for a URL. uefi-secure boots what Microsoft signed.
    """

    libvirtd: Libvirtd
    name: str
    firmware: str = "bios"
    memory_mib: int = 1024
    vcpus: int = 2
    disk_gib: int = 6
    disks: int = 1
    bridge: str = "br-lab"
    mac: str = ""
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    vendor: str = "Lab Computers"
    model: str = "Metal 1"
    serial: str = ""
    in_band: int | None = None  # port of an ipmi_sim that is its controller from the inside too

    def __post_init__(self) -> None:
        if not self.mac:
            digest = hashlib.sha256(self.name.encode()).hexdigest()
            self.mac = f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
        self.serial = self.serial or f"LAB-{self.name}"

    @property
    def disk(self) -> Path:
        return self.disk_file(0)

    def disk_file(self, number: int) -> Path:
        """What disk ``number`` (from 0) holds."""
        return self.libvirtd.root / "metal" / f"{self.name}{number or ''}.qcow2"

    def disk_serial(self, number: int = 0) -> str:
        """What the machine reads as that disk's serial number."""
        return f"disk{number or ''}-{self.mac.replace(':', '')[-6:]}"

    @property
    def nvram(self) -> Path:
        return self.libvirtd.root / "metal" / f"{self.name}.vars"

    @property
    def console(self) -> Path:
        """What the machine wrote to its serial port, all boots one after the other."""
        return self.libvirtd.root / "metal" / f"{self.name}.log"

    def define(self) -> BareMetal:
        """Make it, off and with empty disks; one of that name from before is removed."""
        self.remove()
        self.disk.parent.mkdir(exist_ok=True)
        for number in range(self.disks):
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", self.disk_file(number), f"{self.disk_gib}G"],
                check=True,
            )
        with _open(self.libvirtd) as connection:
            connection.defineXML(self.xml())
        return self

    def remove(self) -> None:
        """Pull the plug and take the machine away with its disk. Absent is fine."""
        with _open(self.libvirtd) as connection:
            for domain in connection.listAllDomains():
                if domain.name() == self.name:
                    if domain.isActive():
                        domain.destroy()
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        for path in (*map(self.disk_file, range(self.disks)), self.nvram, self.console):
            path.unlink(missing_ok=True)

    def power(self, on: bool) -> None:
        """Press the button (tests of the lab itself; provisiond goes through the BMC)."""
        with _open(self.libvirtd) as connection:
            domain = connection.lookupByName(self.name)
            if bool(domain.isActive()) != on:
                try:
                    domain.create() if on else domain.destroy()
                except libvirt.libvirtError:  # someone else (provisiond, by the BMC) was quicker
                    if bool(domain.isActive()) != on:
                        raise

    def is_on(self) -> bool:
        with _open(self.libvirtd) as connection:
            return bool(connection.lookupByName(self.name).isActive())

    def pull_disk(self, number: int) -> None:
        """Take a disk out while the machine is off: its firmware starts from the next one."""
        with _open(self.libvirtd) as connection:
            domain = connection.lookupByName(self.name)
            domain.detachDeviceFlags(self._disk(number), libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def type(self, text: str) -> None:
        """Type on its serial console."""
        with _open(self.libvirtd) as connection:
            tree = ET.fromstring(connection.lookupByName(self.name).XMLDesc())
        source = tree.find("devices/serial/source")
        assert source is not None, f"{self.name} is off"
        with Path(source.attrib["path"]).open("w") as terminal:
            terminal.write(text)
            terminal.flush()
            time.sleep(3)  # QEMU looks only once a second whether somebody is there

    def unplug_network(self, unplugged: bool = True) -> None:
        """Pull the cable of its network card, or put it back, while it is off: it will never boot from the network."""
        self._cable(unplugged, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def unplug_live(self, unplugged: bool = True) -> None:
        """The same while it runs."""
        self._cable(unplugged, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _cable(self, unplugged: bool, flags: int) -> None:
        with _open(self.libvirtd) as connection:
            domain = connection.lookupByName(self.name)
            state = "down" if unplugged else "up"
            card = (
                f"<interface type='bridge'><source bridge={quoteattr(self.bridge)}/>"
                f"<mac address='{self.mac}'/><model type='virtio'/>{self._rom()}<link state='{state}'/></interface>"
            )
            domain.updateDeviceFlags(card, flags)

    def said(self) -> str:
        """The console so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def xml(self) -> str:
        """libvirt's description. No ROM under UEFI: OVMF would get QEMU's iPXE instead of its own PXE."""
        uefi = self.firmware != "bios"
        secure = self.firmware == "uefi-secure"
        code, template = (SECURE_CODE, SECURE_VARS) if secure else (OVMF_CODE, OVMF_VARS)
        loader = "<bios useserial='yes'/>"
        if uefi:
            sealed = "secure='yes' " if secure else ""
            loader = (
                f"<loader readonly='yes' {sealed}type='pflash'>{code}</loader>"
                f"<nvram template='{template}'>{self.nvram}</nvram>"
            )
        no_pxe = ""
        if self.firmware == "uefi-http":  # OVMF's own switches (OvmfPkg, PxeBcPcdProducerLib)
            names = ("opt/org.tianocore/IPv4PXESupport", "opt/org.tianocore/IPv6PXESupport")
            entries = "".join(f"<entry name='{name}'>n</entry>" for name in names)
            no_pxe = f"\n  <sysinfo type='fwcfg'>{entries}</sysinfo>"
        system = {
            "manufacturer": self.vendor,
            "product": self.model,
            "serial": self.serial,
            "uuid": self.uuid,
        }
        facts = "".join(f"<entry name='{name}'>{value}</entry>" for name, value in system.items())
        inside = ""
        if self.in_band:
            words = ("-chardev", f"socket,id=ipmi0,host=127.0.0.1,port={self.in_band},reconnect=2",
                     "-device", "ipmi-bmc-extern,chardev=ipmi0,id=bmc0", "-device", "isa-ipmi-kcs,bmc=bmc0")  # fmt: skip
            inside = (
                "\n  <qemu:commandline>"
                + "".join(f"<qemu:arg value='{w}'/>" for w in words)
                + "</qemu:commandline>"
            )
        kind = domain_type()
        cpu = (
            "<cpu mode='host-passthrough'/>"
            if kind == "kvm"
            else "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
        )
        return f"""
<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name><uuid>{self.uuid}</uuid>
  <memory unit='MiB'>{self.memory_mib}</memory><vcpu>{self.vcpus}</vcpu>{no_pxe}
  <sysinfo type='smbios'><system>{facts}</system></sysinfo>
  <os>
    <type arch='x86_64' machine='{"q35" if uefi else "pc"}'>hvm</type>{loader}
    <boot dev='network'/><boot dev='hd'/><smbios mode='sysinfo'/>
  </os>
  <features><acpi/><apic/>{"<smm state='on'/>" if secure else ""}</features>{cpu}<clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {"".join(map(self._disk, range(self.disks)))}
    <interface type='bridge'>
      <source bridge={quoteattr(self.bridge)}/><mac address='{self.mac}'/><model type='virtio'/>{self._rom()}
    </interface>
    <serial type='pty'><log file={quoteattr(str(self.console))} append='on'/><target port='0'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><memballoon model='none'/>
  </devices>{inside}
</domain>"""

    def _disk(self, number: int) -> str:
        return (
            "<disk type='file' device='disk'>"
            "<driver name='qemu' type='qcow2' cache='unsafe' discard='unmap' detect_zeroes='unmap'/>"
            f"<source file={quoteattr(str(self.disk_file(number)))}/><target dev='vd{chr(ord('a') + number)}' bus='virtio'/>"
            f"<serial>{self.disk_serial(number)}</serial></disk>"
        )

    def _rom(self) -> str:
        return "" if self.firmware == "bios" else "<rom enabled='no'/>"


class _open:
    """A connection for the length of a with block."""

    def __init__(self, libvirtd: Libvirtd) -> None:
        self.uri = libvirtd.uri

    def __enter__(self) -> libvirt.virConnect:
        libvirt.registerErrorHandler(lambda *_: None, None)
        self.connection = libvirt.open(self.uri)
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()
