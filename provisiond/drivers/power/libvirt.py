"""Power of a libvirt domain: ``target.address`` is the URI of its hypervisor, ``target.system`` the domain's UUID.

libvirt blocks, so each hypervisor has a few threads and a connection of its own: one that hangs holds up nobody else.
Sensors, LED and console are not here (the console of a machine on a hypervisor is the compute room's).
"""

from __future__ import annotations

import asyncio
import functools
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import libvirt

from provisiond.drivers.power import BootDevice, PowerAction, PowerState, PowerTarget, Sensor
from provisiond.drivers.power.options import Options
from provisiond.drivers.power.reach import reach
from provisiond.errors import DriverRejected, DriverUnavailable, Unsupported

T = TypeVar("T")

OPTIONS = ("timeout",)
THREADS = 4  # per hypervisor
ORDER = {BootDevice.NETWORK: "network", BootDevice.DISK: "hd", BootDevice.CDROM: "cdrom"}
OFF_STATES = frozenset({libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_NOSTATE})
FINAL = frozenset(
    {libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_AUTH_UNAVAILABLE}
)
FINAL |= {libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_INVALID_ARG}
UNSUPPORTED = frozenset({libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED})

ET.register_namespace(
    "qemu", "http://libvirt.org/schemas/domain/qemu/1.0"
)  # else the prefix is lost at a rewrite


class LibvirtPower:
    """Driver ``libvirt``."""

    def __init__(self) -> None:
        libvirt.registerErrorHandler(
            lambda *_: None, None
        )  # errors are raised; libvirt would print them as well
        self._hypervisors: dict[str, _Hypervisor] = {}

    async def state(self, target: PowerTarget) -> PowerState:
        """The power state of the domain now."""
        return await self._run(target, _state)

    async def set(self, target: PowerTarget, action: PowerAction, *, timeout: float = 60.0) -> PowerState:
        """Do ``action``; off is pulling the plug, cycle and reset of a domain that is off turn it on."""
        read = functools.partial(self.state, target)
        create, destroy = (
            functools.partial(self._run, target, _create),
            functools.partial(self._run, target, _destroy),
        )
        if action is PowerAction.OFF:
            return await reach(target.host, PowerState.OFF, read, destroy, timeout=timeout)
        if action is PowerAction.RESET and await read() is PowerState.ON:
            await self._run(target, _reset)
        elif action is PowerAction.CYCLE:
            await reach(target.host, PowerState.OFF, read, destroy, timeout=timeout)
        return await reach(target.host, PowerState.ON, read, create, timeout=timeout)

    async def set_boot(self, target: PowerTarget, device: BootDevice, *, once: bool = False) -> None:
        """Put ``device`` first in the persistent definition; it counts from the next power-on (not reset) and stays.

        libvirt knows no boot device for one boot: ``once`` is the same.
        """
        await self._run(target, functools.partial(_put_first, device))
        found = await self.boot_device(target)
        if found is not device:
            raise DriverUnavailable(
                f"{target.host}: libvirt took boot device {device} but still names {found}"
            )

    async def boot_device(self, target: PowerTarget) -> BootDevice | None:
        """The first boot device of the persistent definition."""
        return await self._run(target, _first)

    async def sensors(self, target: PowerTarget) -> list[Sensor]:
        """A virtual machine has none."""
        raise Unsupported(f"{target.host} is a virtual machine: it has no sensors")

    async def identify(self, target: PowerTarget, seconds: int = 15) -> None:
        """A virtual machine has no LED."""
        raise Unsupported(f"{target.host} is a virtual machine: it has no identify LED")

    async def console(self, target: PowerTarget) -> AsyncIterator[bytes]:
        """Not by this room."""
        raise Unsupported(
            f"{target.host} is a virtual machine: its console comes from its hypervisor's driver"
        )
        yield b""  # makes this an iterator like the others

    async def close(self) -> None:
        """Close the connections and end the threads."""
        for hypervisor in self._hypervisors.values():
            await asyncio.to_thread(hypervisor.close)
        self._hypervisors.clear()

    async def _run(self, target: PowerTarget, work: Callable[[Any], T]) -> T:
        limit = Options(target, OPTIONS).number("timeout", 30.0, 1.0, 600.0)
        if not target.system:
            raise DriverRejected(
                f"{target.host}: no domain is named: set the BMC's system to the domain's UUID"
            )
        hypervisor = self._hypervisors.setdefault(target.address, _Hypervisor(target.address))
        future = asyncio.get_running_loop().run_in_executor(
            hypervisor.pool, hypervisor.on_domain, target.system, work
        )
        try:
            async with asyncio.timeout(limit):
                return await future
        except TimeoutError:
            raise DriverUnavailable(
                f"{target.host}: libvirt at {target.address} did not answer in {limit:g} s"
            ) from None
        except libvirt.libvirtError as error:
            raise _judge(target, error) from None


class _Hypervisor:
    """One URI: its connection, opened when first needed and again when it broke, and its threads."""

    def __init__(self, uri: str) -> None:
        self.uri = _plain(uri)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt-power")
        self._connection: Any = None

    def on_domain(self, uuid: str, work: Callable[[Any], T]) -> T:
        try:
            return work(self._open().lookupByUUIDString(uuid))
        except libvirt.libvirtError:
            if self._connection is not None and _alive(self._connection):
                raise
            self._connection = None  # libvirtd was restarted: once more on a new connection
            return work(self._open().lookupByUUIDString(uuid))

    def _open(self) -> Any:
        if self._connection is None:
            self._connection = libvirt.open(self.uri)
        return self._connection

    def close(self) -> None:
        self.pool.shutdown(
            wait=False, cancel_futures=True
        )  # a thread may hang in a connection to a dead machine
        if self._connection is not None and _alive(self._connection):
            self._connection.close()


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _plain(uri: str) -> str:
    """The URI without the parameters that are provisiond's own (``provisiond_...``), which libvirt does not know."""
    parts = urlsplit(uri)
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not name.startswith("provisiond_")
    ]
    return (
        uri
        if "provisiond_" not in parts.query
        else urlunsplit(parts._replace(query=urlencode(query, safe="/:")))
    )


def _state(domain: Any) -> PowerState:
    return PowerState.OFF if domain.state()[0] in OFF_STATES else PowerState.ON


def _create(domain: Any) -> None:
    _unless(libvirt.VIR_ERR_OPERATION_INVALID, domain.create)


def _destroy(domain: Any) -> None:
    _unless(libvirt.VIR_ERR_OPERATION_INVALID, domain.destroy)


def _reset(domain: Any) -> None:
    _unless(libvirt.VIR_ERR_OPERATION_INVALID, domain.reset)


def _unless(code: int, order: Callable[[], Any]) -> None:
    """Give the order; that the machine is there already (``code``) is seen by reading back."""
    try:
        order()
    except libvirt.libvirtError as error:
        if error.get_error_code() != code:
            raise


def _definition(domain: Any) -> ET.Element:
    """The persistent definition with its secrets: without them a rewrite would drop the passwords (GHSA-5pj3-6fqm-8m7m)."""
    return ET.fromstring(  # noqa: S314 - libvirt's own document
        domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    )


def _first(domain: Any) -> BootDevice | None:
    tree = _definition(domain)
    names = {name: device for device, name in ORDER.items()}
    ordered = sorted(
        (int(order.get("order", "0")), element.tag, element.get("device"))
        for element in tree.findall("devices/*")
        if (order := element.find("boot")) is not None
    )
    if ordered:
        _, tag, kind = ordered[0]
        if tag == "interface":
            return BootDevice.NETWORK
        return BootDevice.CDROM if kind == "cdrom" else BootDevice.DISK if tag == "disk" else None
    boot = tree.find("os/boot")
    return names.get(boot.get("dev", "")) if boot is not None else None


def _put_first(device: BootDevice, domain: Any) -> None:
    """Rewrite the boot order; nothing is written when it is as wanted."""
    if _first(domain) is device:
        return
    tree = _definition(domain)
    for element in tree.findall("devices/*"):  # an order by device and one by kind exclude each other
        for order in element.findall("boot"):
            element.remove(order)
    system = tree.find("os")
    if system is None:
        raise DriverRejected(f"domain {domain.name()} has no <os> element: it cannot be told what to boot")
    for order in system.findall("boot"):
        system.remove(order)
    for name in sorted(ORDER.values(), key=lambda name: (name != ORDER[device], name == "cdrom")):
        ET.SubElement(system, "boot", dev=name)
    domain.connect().defineXML(ET.tostring(tree, encoding="unicode"))


def _judge(target: PowerTarget, error: Any) -> Exception:
    code, said = error.get_error_code(), error.get_error_message() or "no reason given"
    where = f"{target.host}: libvirt at {target.address}"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DriverRejected(
            f"{where} has no domain {target.system}; it was removed, or is on another hypervisor"
        )
    if code in FINAL:
        return DriverRejected(f"{where} refuses: {said}")
    if code in UNSUPPORTED:
        return Unsupported(f"{where} cannot do this: {said}")
    return DriverUnavailable(f"{where}: {said}")
