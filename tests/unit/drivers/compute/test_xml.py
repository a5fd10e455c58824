"""Definitions of machines."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

from provisiond.drivers.compute import DiskSpec, MachineSpec, NicSpec
from provisiond.drivers.compute.connection import Options
from provisiond.drivers.compute.xml import Mark, Source, amend, define, digest

SPEC = MachineSpec(
    uuid="11111111-2222-3333-4444-555555555555",
    name="web01",
    vcpus=2,
    memory_mib=1024,
    disks=(DiskSpec(10),),
    nics=(NicSpec("52:54:00:AA:BB:01", bridge="br0"),),
    boot=("network", "disk"),
    seed=(("user-data", "secret"),),
)
MARK = Mark((("default", "a.qcow2"),), making=True, digest="d1")
SOURCES = [Source("/pool/a.qcow2"), Source("/pool/seed.iso", "raw", readonly=True)]


def domain(spec: MachineSpec = SPEC, kind: str = "qemu", options: Options | None = None) -> ET.Element:
    """The definition, parsed."""
    return ET.fromstring(define(spec, kind, options or Options(), SOURCES, MARK))


def test_bios_boots_by_the_cards_own_rom() -> None:
    """Boot order, iPXE left in the card, serial output of SeaBIOS."""
    root = domain()
    assert [boot.get("dev") for boot in root.findall("os/boot")] == ["network", "hd"]
    assert root.find("devices/interface/rom") is None
    assert root.find("os").get("firmware") is None  # type: ignore[union-attr]
    assert root.findtext("cpu/model") == "Nehalem"


def test_uefi_boots_by_ovmf() -> None:
    """The card's ROM is off; Secure Boot asks for enrolled keys and SMM."""
    root = domain(replace(SPEC, firmware="uefi", secure_boot=True), kind="kvm")
    assert root.find("devices/interface/rom").attrib == {"enabled": "no"}  # type: ignore[union-attr]
    assert [f.attrib for f in root.findall("os/firmware/feature")] == [
        {"enabled": "yes", "name": "secure-boot"},
        {"enabled": "yes", "name": "enrolled-keys"},
    ]
    assert root.find("features/smm") is not None
    assert root.find("cpu").get("mode") == "host-model"  # type: ignore[union-attr]


def test_names_cannot_break_out() -> None:
    """What an operator typed is text, never markup."""
    root = domain(replace(SPEC, name="a</name><os>", nics=(NicSpec("52:54:00:00:00:01", network="x'/><y"),)))
    assert root.findtext("name") == "a</name><os>"
    assert root.find("devices/interface/source").get("network") == "x'/><y"  # type: ignore[union-attr]


def test_the_mark_survives() -> None:
    """What was written is what is read, with the namespace and without."""
    assert Mark.from_xml(ET.tostring(MARK.element(), encoding="unicode")) == MARK
    assert Mark.from_xml(ET.tostring(MARK.element(namespace=""), encoding="unicode")) == MARK


def test_the_digest_covers_the_seed() -> None:
    """A changed seed is a changed machine."""
    assert digest(SPEC) == digest(replace(SPEC))
    assert digest(SPEC) != digest(replace(SPEC, seed=(("user-data", "other"),)))


def test_amend_keeps_addresses_and_what_others_added() -> None:
    """Only what differs is replaced: the disk keeps its place, the hand-made device and its password stay, a moved card is new."""
    old = domain()
    old.find("devices/disk").append(ET.Element("address", slot="0x07"))  # type: ignore[union-attr]
    old.find("devices/interface").append(ET.Element("address", slot="0x01"))  # type: ignore[union-attr]
    ET.SubElement(old.find("devices"), "graphics", type="vnc", passwd="pa55")  # type: ignore[arg-type]
    ET.SubElement(old.find("metadata"), "{urn:other}note").text = "mine"  # type: ignore[arg-type]
    wanted = replace(
        SPEC, memory_mib=2048, boot=("disk",), nics=(NicSpec("52:54:00:aa:bb:01", bridge="br1"),)
    )
    mark = replace(MARK, making=False, digest="d2")
    new = ET.fromstring(
        amend(ET.tostring(old, encoding="unicode"), define(wanted, "qemu", Options(), SOURCES, mark))
    )
    assert new.find("devices/disk/address").get("slot") == "0x07"  # type: ignore[union-attr]
    assert new.find("devices/interface/address") is None
    assert [i.find("source").get("bridge") for i in new.findall("devices/interface")] == ["br1"]  # type: ignore[union-attr]
    assert new.find("devices/graphics").get("passwd") == "pa55"  # type: ignore[union-attr]
    assert new.findtext("memory") == "2048"
    assert [boot.get("dev") for boot in new.findall("os/boot")] == ["hd"]
    assert new.findtext("metadata/{urn:other}note") == "mine"
    assert [m.get("digest") for m in new.findall("metadata/{urn:provisiond:machine:1}machine")] == ["d2"]


def test_amend_with_another_firmware_keeps_the_graphics_only() -> None:
    """Addresses of a BIOS machine mean nothing to a UEFI one."""
    old = domain()
    ET.SubElement(old.find("devices"), "graphics", type="vnc", passwd="pa55")  # type: ignore[arg-type]
    ET.SubElement(old.find("devices"), "watchdog", model="itco")  # type: ignore[arg-type]
    wanted = define(replace(SPEC, firmware="uefi"), "qemu", Options(), SOURCES, MARK)
    new = ET.fromstring(amend(ET.tostring(old, encoding="unicode"), wanted))
    assert new.find("os").get("firmware") == "efi"  # type: ignore[union-attr]
    assert new.find("devices/graphics") is not None
    assert new.find("devices/watchdog") is None
