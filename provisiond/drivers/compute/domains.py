"""The domains of a hypervisor, and which of them are ours. Everything here blocks and raises libvirtError besides what it names."""

from __future__ import annotations

from typing import Any

import libvirt

from provisiond.drivers.compute import Machine, MachineState, xml
from provisiond.errors import DriverRejected


def mark_of(domain: Any) -> xml.Mark | None:
    """Our mark in the domain's definition; None where there is none, which makes it somebody else's."""
    try:
        return xml.Mark.from_xml(
            domain.metadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
            )
        )
    except libvirt.libvirtError as error:
        # a transient domain has no stored definition and so is not ours either; one may also go while we look
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_DOMAIN_METADATA,
            libvirt.VIR_ERR_OPERATION_INVALID,
            libvirt.VIR_ERR_NO_DOMAIN,
        ):
            return None
        raise


def list_machines(connection: Any) -> list[Machine]:
    """Every machine of ours on this hypervisor."""
    found = (machine_if_ours(domain) for domain in connection.listAllDomains(0))
    return [machine for machine in found if machine is not None]


def machine_if_ours(domain: Any) -> Machine | None:
    """The machine; None for somebody else's, and for one that was removed a moment ago."""
    if mark_of(domain) is None:
        return None
    try:
        return machine(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def lookup(connection: Any, uuid: str) -> Any:
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def ours(connection: Any, uuid: str) -> Any:
    domain = lookup(connection, uuid)
    if domain is None or mark_of(domain) is None:
        raise DriverRejected(
            f"there is no machine {uuid} of provisiond's on this hypervisor; build the host first"
        )
    return domain


def machine(domain: Any) -> Machine:
    return Machine(
        domain.UUIDString(),
        domain.name(),
        MachineState.RUNNING if domain.isActive() else MachineState.STOPPED,
    )
