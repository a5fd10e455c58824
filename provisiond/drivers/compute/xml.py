"""A machine's definition in libvirt's XML: made from a MachineSpec, marked as provisiond's, changed without losing what others added.

Formats: https://libvirt.org/formatdomain.html. Our devices carry a user alias ``ua-provisiond-...``; whatever has none was added
by somebody else and stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from xml.etree import ElementTree as ET

from provisiond.drivers.compute import MachineSpec
from provisiond.drivers.compute.connection import Options

NAMESPACE = "urn:provisiond:machine:1"
ALIAS = "ua-provisiond-"
_BOOT = {"disk": "hd", "network": "network", "cdrom": "cdrom"}
ET.register_namespace("provisiond", NAMESPACE)


@dataclasses.dataclass(frozen=True)
class Mark:
    """What is written into the definition of every machine we make.

    ``volumes`` are (pool, volume) of the files made for it, written before the first of them is. ``making`` is true until the
    last is whole. ``digest`` tells whether a later spec differs.
    """

    volumes: tuple[tuple[str, str], ...]
    making: bool
    digest: str

    def element(self, namespace: str = NAMESPACE) -> ET.Element:
        """The metadata element; virDomainSetMetadata adds the namespace itself and wants one without."""
        at = f"{{{namespace}}}" if namespace else ""
        root = ET.Element(f"{at}machine", making="yes" if self.making else "no", digest=self.digest)
        for pool, volume in self.volumes:
            ET.SubElement(root, f"{at}volume", pool=pool, name=volume)
        return root

    @classmethod
    def from_xml(cls, text: str) -> Mark:
        """The mark of a metadata element as libvirt gives it back."""
        root = ET.fromstring(text)  # noqa: S314 - from libvirtd, which parsed it before
        volumes = tuple(
            (v.get("pool", ""), v.get("name", "")) for v in root if v.tag.rpartition("}")[2] == "volume"
        )
        return cls(volumes, root.get("making") == "yes", root.get("digest", ""))


def digest(spec: MachineSpec) -> str:
    """SHA-256 over everything in the spec."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Source:
    """A file attached to the machine: the seed is read-only and raw."""

    path: str
    format: str = "qcow2"
    readonly: bool = False


def define(spec: MachineSpec, kind: str, options: Options, sources: list[Source], mark: Mark) -> str:
    """The whole definition. ``kind`` is kvm or qemu; ``sources`` are the disks in order, then the seed."""
    domain = ET.Element("domain", type=kind)
    _add(domain, "name", spec.name)
    _add(domain, "uuid", spec.uuid)
    _add(domain, "metadata").append(mark.element())
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "currentMemory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(spec.vcpus))
    domain.append(_os(spec))
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if spec.secure_boot:
        _add(features, "smm", state="on")  # without it the guest could write the key variables itself
    domain.append(_cpu(kind, options))
    _add(domain, "clock", offset="utc")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")
    devices = _add(domain, "devices")
    for number, source in enumerate(sources):
        devices.append(_disk(number, source, options))
    for number, nic in enumerate(spec.nics):
        card = ET.SubElement(devices, "interface", type="bridge" if nic.bridge else "network")
        _add(card, "mac", address=nic.mac.lower())
        _add(card, "source", **({"bridge": nic.bridge} if nic.bridge else {"network": nic.network or ""}))
        _add(card, "model", type="virtio")
        if spec.firmware == "uefi":
            # libvirt's default puts an iPXE ROM on the card, which then loads instead of OVMF's own PXE and HTTP boot;
            # shim started from there fails ("Malformed binary"), and so Secure Boot with it
            _add(card, "rom", enabled="no")
        _add(card, "alias", name=f"{ALIAS}nic{number}")
    serial = ET.SubElement(devices, "serial", type="pty")
    if spec.console_log:
        _add(serial, "log", file=spec.console_log, append="on")
    _add(serial, "target", port="0")
    _add(serial, "alias", name=f"{ALIAS}serial")
    rng = ET.SubElement(
        devices, "rng", model="virtio"
    )  # a first boot makes its SSH keys: it must not wait for entropy
    _add(rng, "backend", "/dev/urandom", model="random")
    _add(rng, "alias", name=f"{ALIAS}rng")
    return ET.tostring(domain, encoding="unicode")


def amend(old: str, new: str) -> str:
    """``old`` (with its secrets, VIR_DOMAIN_XML_SECURE) changed to what ``new`` says.

    Devices of ours that did not change keep their place on the bus, and with it the names the guest gave them. Others' devices
    and their passwords stay. When the firmware changes the machine is another one: only its graphics are kept.
    """
    then, now = ET.fromstring(old), ET.fromstring(new)  # noqa: S314 - from libvirtd, and made above
    before, after = _need(then, "devices"), _need(now, "devices")
    if _firmware(then) != _firmware(now):
        after.extend(before.findall("graphics"))
        return ET.tostring(now, encoding="unicode")
    for tag in ("name", "memory", "currentMemory", "vcpu", "cpu"):
        _replace(then, _need(now, tag))
    then.set("type", now.get("type", ""))
    _amend_boot(_need(then, "os"), _need(now, "os"))
    metadata = then.find("metadata")
    if metadata is None:
        metadata = _add(then, "metadata")
    for element in metadata.findall(f"{{{NAMESPACE}}}machine"):
        metadata.remove(element)
    metadata.extend(_need(now, "metadata"))
    wanted = {_alias(device): device for device in after}
    for device in list(before):
        if not _alias(device).startswith(ALIAS):
            continue
        if _alias(device) in wanted and _covers(device, wanted[_alias(device)]):
            del wanted[_alias(device)]
            continue
        before.remove(device)
        if device.tag == "serial":  # libvirt mirrors the first serial port as <console>, and wants them alike
            for console in before.findall("console"):
                before.remove(console)
    before.extend(wanted.values())
    return ET.tostring(then, encoding="unicode")


def _os(spec: MachineSpec) -> ET.Element:
    root = ET.Element("os")
    _add(root, "type", "hvm", arch="x86_64", machine="q35")
    if spec.firmware == "uefi":
        # libvirt picks the OVMF build by the descriptors the distribution ships, and makes an NVRAM file for this machine
        root.set("firmware", "efi")
        firmware = _add(root, "firmware")
        wanted = "yes" if spec.secure_boot else "no"
        _add(firmware, "feature", enabled=wanted, name="secure-boot")
        if spec.secure_boot:
            _add(firmware, "feature", enabled="yes", name="enrolled-keys")
    else:
        _add(root, "bios", useserial="yes")
    for device in spec.boot:
        _add(root, "boot", dev=_BOOT[device])
    return root


def _cpu(kind: str, options: Options) -> ET.Element:
    model = options.cpu or ("host-model" if kind == "kvm" else "Nehalem")
    if model in ("host-model", "host-passthrough", "maximum"):
        return ET.Element("cpu", mode=model)
    # Nehalem is x86-64-v2, the least that RHEL 9 runs on; more (AVX) costs time when emulated
    cpu = ET.Element("cpu", mode="custom", match="exact", check="none")
    _add(cpu, "model", model, fallback="forbid")
    return cpu


def _disk(number: int, source: Source, options: Options) -> ET.Element:
    disk = ET.Element("disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type=source.format, cache=options.cache, discard="unmap")
    _add(disk, "source", file=source.path)
    _add(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")
    if source.readonly:
        _add(disk, "readonly")
    _add(disk, "alias", name=f"{ALIAS}disk{number}")
    return disk


def _firmware(domain: ET.Element) -> tuple[str | None, bool]:
    root = _need(domain, "os")
    secure = root.find("firmware/feature[@name='secure-boot']")
    return root.get("firmware"), secure is not None and secure.get("enabled") == "yes"


def _amend_boot(then: ET.Element, now: ET.Element) -> None:
    for boot in then.findall("boot"):
        then.remove(boot)
    then.extend(now.findall("boot"))


def _alias(device: ET.Element) -> str:
    alias = device.find("alias")
    return "" if alias is None else alias.get("name", "")


def _covers(old: ET.Element, new: ET.Element) -> bool:
    """Whether everything ``new`` says stands in ``old`` already (which has more: addresses and defaults)."""
    if old.tag != new.tag or (old.text or "").strip() != (new.text or "").strip():
        return False
    if any(old.get(key) != value for key, value in new.attrib.items()):
        return False
    return all(any(_covers(o, n) for o in old) for n in new)


def _replace(parent: ET.Element, new: ET.Element) -> None:
    old = parent.find(new.tag)
    if old is None:
        parent.append(new)
    else:
        parent[list(parent).index(old)] = new


def _need(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    if found is None:
        raise ValueError(f"<{parent.tag}> without <{tag}>")
    return found


def _add(parent: ET.Element, tag: str, text: str | None = None, /, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text
    return child
