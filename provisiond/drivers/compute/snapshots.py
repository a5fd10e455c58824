"""Snapshots of a machine's disks, kept inside its qcow2 files. Everything here blocks and raises libvirtError besides what it names."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from provisiond.drivers.compute import xml
from provisiond.drivers.compute.domains import ours
from provisiond.errors import DriverRejected


def snapshot(connection: Any, uuid: str, name: str) -> None:
    domain = ours(connection, uuid)
    if domain.isActive():
        raise DriverRejected(f"machine {domain.name()} runs; power it off before a snapshot of its disks")
    old = _find(domain, name)
    if old is not None:
        old.delete(0)
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = name
    where = ET.SubElement(root, "disks")
    for disk in ET.fromstring(domain.XMLDesc(0)).findall("devices/disk[@device='disk']"):  # noqa: S314 - from libvirtd
        device, alias, driver = disk.find("target"), disk.find("alias"), disk.find("driver")
        made = alias is not None and alias.get("name", "").startswith(xml.ALIAS)
        keep = made and driver is not None and driver.get("type") == "qcow2"
        assert device is not None
        ET.SubElement(where, "disk", name=device.get("dev", ""), snapshot="internal" if keep else "no")
    domain.snapshotCreateXML(ET.tostring(root, encoding="unicode"), 0)


def revert(connection: Any, uuid: str, name: str) -> None:
    domain = ours(connection, uuid)
    kept = _find(domain, name)
    if kept is None:
        there = ", ".join(sorted(s.getName() for s in domain.listAllSnapshots())) or "none"
        raise DriverRejected(f"machine {domain.name()} has no snapshot {name!r}; there are: {there}")
    if domain.isActive():
        domain.destroy()
    domain.revertToSnapshot(kept, 0)


def _find(domain: Any, name: str) -> Any:
    try:
        return domain.snapshotLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            return None
        raise
