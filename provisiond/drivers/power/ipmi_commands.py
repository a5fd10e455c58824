"""The IPMI commands provisiond uses, each one function on a session; they block and run in a thread.

Source: IPMI v2.0 rev. 1.1, chapter 28 (chassis), 20.1 (device id), 33 and 35 (sensors, read by pyghmi).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyghmi.constants import Health
from pyghmi.exceptions import IpmiException
from pyghmi.ipmi.command import Command
from pyghmi.ipmi.oem.generic import OEMHandler

from provisiond.drivers.power import BootDevice, Sensor
from provisiond.drivers.power.ipmi_links import BUSY, NO_PRIVILEGE, NOT_NOW, Completion, Link, ask
from provisiond.drivers.power.ipmi_session import Session

CHASSIS, APP = 0x00, 0x06
OFF, ON, CYCLE, RESET = 0, 1, 2, 3  # table 28-4
SUPERMICRO = frozenset({10876, 47488})  # IANA enterprise numbers its BMCs give

_SELECTOR = {
    BootDevice.NETWORK: 0x04,
    BootDevice.DISK: 0x08,
    BootDevice.CDROM: 0x14,
}  # table 28-14, parameter 5, byte 2
_SUPERMICRO_UEFI_DISK = 0x24
_DEVICE = {
    0x04: BootDevice.NETWORK,
    0x08: BootDevice.DISK,
    0x0C: BootDevice.DISK,  # in safe mode
    0x14: BootDevice.CDROM,
    0x20: BootDevice.CDROM,  # remote medium
    0x24: BootDevice.DISK,  # remote disk; on Supermicro the UEFI disk
    0x2C: BootDevice.DISK,
}


@dataclass(frozen=True)
class BootFlags:
    """What the controller says of the next boot; ``device`` None: it gives no order, or one we have no name for."""

    device: BootDevice | None
    persistent: bool = False
    uefi: bool = False


def read_power(session: Session, _link: Link) -> bool:
    """Whether the machine is on."""
    return bool(ask(session, CHASSIS, 0x01)[0] & 1)


def control(session: Session, order: int) -> None:
    """Give a power order. 'Not in this state' is no error here (off when it is off): the state is read back by the caller."""
    try:
        ask(session, CHASSIS, 0x02, (order,))
    except Completion as error:
        if error.code != NOT_NOW:
            raise


def cycle(session: Session, _link: Link) -> bool:
    """Power cycle by the controller itself; False where it knows no such order."""
    try:
        ask(session, CHASSIS, 0x02, (CYCLE,))
    except Completion as error:
        if error.code in BUSY or error.code == NO_PRIVILEGE:
            raise
        return False
    return True


def read_boot(session: Session, _link: Link) -> BootFlags:
    """The boot flags (parameter 5)."""
    answer = ask(session, CHASSIS, 0x09, (5, 0, 0))
    if len(answer) < 4 or answer[1] & 0x80 or not answer[2] & 0x80:  # parameter or flags not valid
        return BootFlags(None)
    return BootFlags(_DEVICE.get(answer[3] & 0x3C), bool(answer[2] & 0x40), bool(answer[2] & 0x20))


def write_boot(session: Session, device: BootDevice, *, once: bool, uefi: bool, supermicro: bool) -> bool:
    """Set the boot flags; False when the controller would not switch off their 60 s time-out (OpenBMC).

    With that time-out the flags lapse when the power order comes later than a minute after.
    """
    kept = True
    try:
        ask(session, CHASSIS, 0x08, (3, 0x08))  # parameter 3, bit 3: no time-out
    except Completion as error:
        if error.code in BUSY or error.code == NO_PRIVILEGE:
            raise
        kept = False
    selector = _SELECTOR[device]
    if supermicro and uefi and device is BootDevice.DISK:
        selector = _SUPERMICRO_UEFI_DISK
    flags = 0x80 | (0 if once else 0x40) | (0x20 if uefi else 0)
    ask(session, CHASSIS, 0x08, (5, flags, selector, 0, 0, 0))
    return kept


def is_supermicro(session: Session, link: Link) -> bool:
    """Whether the controller says so, asked once."""
    if "manufacturer" not in link.memory:
        try:
            answer = ask(session, APP, 0x01)
            link.memory["manufacturer"] = int.from_bytes(answer[6:9], "little") & 0x0FFFFF
        except Completion as error:
            if error.code in BUSY:
                raise
            link.memory["manufacturer"] = 0
    return link.memory["manufacturer"] in SUPERMICRO


def identify(session: Session, seconds: int) -> None:
    """Light the identify LED; 0 turns it off. The spec's longest time is 255 s."""
    ask(session, CHASSIS, 0x04, (min(max(seconds, 0), 255),))


def sensors(session: Session, link: Link) -> list[Sensor]:
    """Every sensor of the sensor data records, which are read once per controller."""
    command = link.memory.get("sdr")
    if command is None:
        command = _Sdr()
    command.ipmi_session = session
    found = []
    try:
        for reading in command.get_sensor_data():
            value = None if reading.unavailable else reading.value
            unit = (reading.units or "").strip()
            found.append(
                Sensor(reading.name, None if value is None else float(value), unit, _health(reading))
            )
    except IpmiException as error:
        if session.broken:
            raise
        code = getattr(error, "ipmicode", 0)
        raise Completion(code or _code_of(error), f"the sensors cannot be read: {error}") from None
    link.memory["sdr"] = command
    return found


class _Sdr(Command):  # type: ignore[misc]
    """pyghmi's reader of sensor records, on a session of ours and without vendor extensions (some open web sessions)."""

    def __init__(self) -> None:
        self.ipmi_session: Any = None
        self._sdr = self._sdrcachedir = None
        self._oem, self._oemknown = OEMHandler(None, None), True
        self._netchannel = self._ipv6support = self.certverify = self.onlogon = None


def _health(reading: Any) -> str:
    if reading.health & Health.Failed:
        return "failed"
    if reading.health & Health.Critical:
        return "critical"
    return "warning" if reading.health & Health.Warning else "ok"


def _code_of(error: IpmiException) -> int:
    """pyghmi gives some refusals as text only."""
    return 0xC1 if "nvalid command" in str(error) else 0xFF
