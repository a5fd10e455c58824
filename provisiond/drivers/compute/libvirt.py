"""Virtual machines on QEMU through libvirt.

A machine is made in three steps, each of which may be the last before a crash: its definition, marked as "making" and naming
the volumes it will have; the volumes; the mark "made". What is found marked as "making" is made again from its volumes up.
Without the mark a domain is somebody else's and is never touched.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from provisiond.drivers.compute import HypervisorTarget, Machine, MachineEvent, MachineSpec, disks, xml
from provisiond.drivers.compute.connection import Connections, Options, split_uri
from provisiond.drivers.compute.domains import list_machines, lookup, machine, machine_if_ours, mark_of
from provisiond.drivers.compute.seed import seed_image
from provisiond.drivers.compute.snapshots import revert, snapshot
from provisiond.drivers.compute.watch import console, lifecycle
from provisiond.errors import DriverRejected

_SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class LibvirtCompute:
    """The driver. Targets are libvirt URIs; options of this driver stand in their query (see connection.Options)."""

    def __init__(self) -> None:
        self._connections = Connections()
        # one worker at a time per machine, also when the task that asked was cancelled and its thread still works
        self._locks = [threading.Lock() for _ in range(64)]

    async def ensure(self, target: HypervisorTarget, spec: MachineSpec, *, fresh: bool = False) -> Machine:
        _, options = split_uri(target.uri)
        _check(spec)

        def work(connection: Any) -> Machine:
            with self._locks[hash(spec.uuid) % 64]:
                return _ensure(connection, target, options, spec, fresh)

        return await self._connections.run(target, f"cannot make machine {spec.name}", work)

    async def destroy(self, target: HypervisorTarget, uuid: str) -> None:
        def work(connection: Any) -> None:
            with self._locks[hash(uuid) % 64]:
                _destroy(connection, target, uuid)

        await self._connections.run(target, f"cannot remove machine {uuid}", work)

    async def find(self, target: HypervisorTarget, uuid: str) -> Machine | None:
        def work(connection: Any) -> Machine | None:
            domain = lookup(connection, uuid)
            return None if domain is None else machine_if_ours(domain)

        return await self._connections.run(target, f"cannot find machine {uuid}", work)

    async def list(self, target: HypervisorTarget) -> list[Machine]:
        return await self._connections.run(target, "cannot list machines", list_machines)

    async def snapshot(self, target: HypervisorTarget, uuid: str, name: str) -> None:
        """As an internal snapshot of each qcow2 disk. The machine must be stopped, since QEMU cannot do it running with UEFI.

        A snapshot of that name is replaced.
        """

        def work(connection: Any) -> None:
            with self._locks[hash(uuid) % 64]:
                snapshot(connection, uuid, name)

        await self._connections.run(target, f"cannot keep snapshot {name} of machine {uuid}", work)

    async def revert(self, target: HypervisorTarget, uuid: str, name: str) -> None:
        """Stops the machine first if it runs; it stays stopped."""

        def work(connection: Any) -> None:
            with self._locks[hash(uuid) % 64]:
                revert(connection, uuid, name)

        await self._connections.run(target, f"cannot go back to snapshot {name} of machine {uuid}", work)

    def console(self, target: HypervisorTarget, uuid: str) -> AsyncIterator[bytes]:
        """What the machine says from now until it stops; DriverRejected when it does not run. Takes over from an earlier reader."""
        return console(self._connections, target, uuid)

    def events(self, target: HypervisorTarget) -> AsyncIterator[MachineEvent]:
        """Survives a lost connection: on the first connection and on each later one every machine's state is told anew."""
        return lifecycle(self._connections, target)

    async def close(self) -> None:
        await self._connections.close()


# --- making and removing -----------------------------------------------------------------------------------------


def _check(spec: MachineSpec) -> None:
    if spec.firmware not in ("bios", "uefi"):
        raise DriverRejected(f"machine {spec.name}: firmware {spec.firmware!r} is neither bios nor uefi")
    if spec.secure_boot and spec.firmware != "uefi":
        raise DriverRejected(f"machine {spec.name}: Secure Boot needs firmware uefi")
    if unknown := set(spec.boot) - {"disk", "network", "cdrom"}:
        raise DriverRejected(
            f"machine {spec.name}: boot device {unknown.pop()!r} is none of disk, network, cdrom"
        )
    if not 1 <= len(spec.disks) <= 20:
        raise DriverRejected(f"machine {spec.name}: has {len(spec.disks)} disks; it may have 1 to 20")
    for nic in spec.nics:
        if bool(nic.bridge) == bool(nic.network):
            raise DriverRejected(
                f"machine {spec.name}: card {nic.mac} needs a network or a bridge, one of them; "
                "set it with 'provisionctl hypervisor update'"
            )


def _ensure(
    connection: Any, target: HypervisorTarget, options: Options, spec: MachineSpec, fresh: bool
) -> Machine:
    domain = lookup(connection, spec.uuid)
    mark = None
    if domain is None:
        _check_name(connection, target, spec)
    else:
        mark = mark_of(domain)
        if mark is None:
            raise DriverRejected(
                f"hypervisor {target.name} has a machine {domain.name()!r} with the UUID of {spec.name} ({spec.uuid}) that "
                "provisiond did not make; it is left alone: remove it there, or retire the host and create it anew"
            )
        as_wanted = not mark.making and mark.digest == xml.digest(spec)
        if (fresh and spec.build and as_wanted) or (not fresh and (domain.isActive() or as_wanted)):
            return machine(domain)
    remake = fresh or mark is None or mark.making
    _check_networks(connection, target, spec)
    pool = disks.open_pool(connection, target)
    if remake:
        for disk in spec.disks:
            if disk.image is not None:
                disks.check_image(connection, target, disk)
    if domain is not None and domain.isActive():
        domain.destroy()
    domain = _define(connection, pool, target, options, spec, domain, mark, remake)
    _fill(connection, pool, spec, mark, remake)
    done = xml.Mark(
        tuple((target.pool, name) for name in _volumes(spec)), making=False, digest=xml.digest(spec)
    )
    _write_mark(domain, done)
    return machine(domain)


def _define(
    connection: Any,
    pool: Any,
    target: HypervisorTarget,
    options: Options,
    spec: MachineSpec,
    domain: Any,
    mark: xml.Mark | None,
    remake: bool,
) -> Any:
    """Define the machine, or change its definition; the mark names every volume it has or will have."""
    volumes = tuple((target.pool, name) for name in _volumes(spec))
    kept = tuple(volume for volume in mark.volumes if volume not in volumes) if mark else ()
    # not remade, it may stay marked as made: its disks are whole, and the old digest brings the next call here again
    now = xml.Mark(volumes + kept, making=remake, digest=mark.digest if mark else "")
    where = disks.pool_path(pool)
    sources = [xml.Source(str(where / name)) for name in _volumes(spec)]
    if spec.seed:
        sources[-1] = xml.Source(sources[-1].path, "raw", readonly=True)
    text = xml.define(spec, _kind(connection, target, options), options, sources, now)
    if domain is not None:
        text = xml.amend(domain.XMLDesc(_SECURE), text)
        if remake:
            connection.defineXML(text)  # refused, it leaves the old definition in place
            # the old system's boot entries, snapshots and saved memory go with its disks
            domain.undefineFlags(_UNDEFINE)
    return connection.defineXML(text)


def _fill(connection: Any, pool: Any, spec: MachineSpec, mark: xml.Mark | None, remake: bool) -> None:
    """Make the volumes that are to be made, and remove those the machine has no more."""
    wanted = _volumes(spec)
    there = disks.names(pool, spec.uuid)
    for name in there - set(wanted):
        disks.remove(pool, name)
    for name, disk in zip(wanted, spec.disks, strict=False):
        if remake or name not in there:
            disks.make_disk(pool, name, disk)
    if spec.seed:
        disks.make_seed(connection, pool, wanted[-1], seed_image(spec.seed))
    if mark is not None:
        elsewhere = [volume for volume in mark.volumes if volume[0] != pool.name()]
        _remove_volumes(connection, spec.uuid, elsewhere)


def _volumes(spec: MachineSpec) -> list[str]:
    """The names of the machine's volumes: its disks in order, then the seed if it has one."""
    made = [f"{disks.prefix(spec.uuid)}disk{number}.qcow2" for number in range(len(spec.disks))]
    return [*made, f"{disks.prefix(spec.uuid)}seed.iso"] if spec.seed else made


def _destroy(connection: Any, target: HypervisorTarget, uuid: str) -> None:
    domain = lookup(connection, uuid)
    if domain is not None:
        mark = mark_of(domain)
        if mark is None:
            raise DriverRejected(
                f"hypervisor {target.name}: machine {domain.name()!r} ({uuid}) was not made by provisiond and is left alone"
            )
        if domain.isActive():
            domain.destroy()
        # first what the definition names, then the definition: a crash between leaves the names
        _remove_volumes(connection, uuid, list(mark.volumes))
        domain.undefineFlags(_UNDEFINE)
    # and what is left of a machine whose definition somebody took away
    pool = disks.find_pool(connection, target.pool)
    for name in disks.names(pool, uuid) if pool else ():
        disks.remove(pool, name)


def _remove_volumes(connection: Any, uuid: str, volumes: list[tuple[str, str]]) -> None:
    for pool_name, name in volumes:
        pool = disks.find_pool(connection, pool_name)
        if pool and name.startswith(
            disks.prefix(uuid)
        ):  # a definition edited by hand makes us delete nothing else
            disks.remove(pool, name)


def _check_name(connection: Any, target: HypervisorTarget, spec: MachineSpec) -> None:
    try:
        other = connection.lookupByName(spec.name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return
        raise
    raise DriverRejected(
        f"hypervisor {target.name} has another machine named {spec.name!r} (UUID {other.UUIDString()}), which is left alone; "
        "rename or remove it there, or give the host another name"
    )


def _check_networks(connection: Any, target: HypervisorTarget, spec: MachineSpec) -> None:
    for nic in spec.nics:
        if nic.network is None:
            continue
        try:
            network = connection.networkLookupByName(nic.network)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
            there = ", ".join(sorted(n.name() for n in connection.listAllNetworks())) or "none"
            raise DriverRejected(
                f"hypervisor {target.name} has no network {nic.network!r} for card {nic.mac} of {spec.name}; there are: {there}"
            ) from error
        if not network.isActive():
            raise DriverRejected(
                f"network {nic.network!r} of hypervisor {target.name} is not active; start it: virsh net-start {nic.network}"
            )


def _kind(connection: Any, target: HypervisorTarget, options: Options) -> str:
    """kvm or qemu: as the URI says, else by what the hypervisor offers for x86-64."""
    capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314 - from libvirtd
    offered = {d.get("type", "") for d in capabilities.findall("guest/arch[@name='x86_64']/domain")}
    kind = options.type or ("kvm" if "kvm" in offered else "qemu")
    if kind not in offered:
        raise DriverRejected(
            f"hypervisor {target.name} offers no {kind} machines for x86-64 (it has: {', '.join(sorted(offered)) or 'none'})"
        )
    return kind


def _write_mark(domain: Any, mark: xml.Mark) -> None:
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        ET.tostring(mark.element(namespace=""), encoding="unicode"),
        "provisiond",
        xml.NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
