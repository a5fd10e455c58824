"""What a machine says about its own hardware, as the agent reports it: read forgivingly, bounded, and safe to keep.

A report comes from a machine that nobody knows yet, so nothing in it is believed to be of the right kind or size. A value
that is not is dropped (null, or left out of its list) and the rest of the report stands: a wrong DIMM must not hide a new
server. Only a report that is no JSON object at all is refused. Shape: ``Facts.model_dump()``; docs/hardware.md tells where
the agent reads each value. Strings hold no control characters and no lone surrogates, so both databases can keep them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict

from provisiond.inventory.fields import is_placeholder_serial, parse_mac

TEXT_LENGTH = 256  # characters of a value
LIST_LENGTH = 512  # disks, DIMMs, network cards, GPUs; a storage server has some hundred disks
_MAX_INTEGER = 2**63 - 1  # what a BIGINT and a JSON number of both databases hold

_UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def real_serial(text: object) -> str | None:
    """The serial number without blanks around it; None for what a board says when its maker wrote none in ("Default string")."""
    said = _text(text)
    return None if said is None or is_placeholder_serial(said) else said


def real_uuid(text: object) -> str | None:
    """The UUID in lower case with dashes; None for all zeros, all F, those that many boards share, and what is no UUID."""
    said = _text(text)
    if said is None or is_placeholder_serial(said):
        return None
    try:
        return str(UUID(said))
    except ValueError:
        return None


def real_mac(text: object) -> str | None:
    """The MAC in lower case with colons; None for what is no address of one card (zero, multicast, InfiniBand's 20 bytes)."""
    try:
        return parse_mac(text) if isinstance(text, str) and len(text) <= TEXT_LENGTH else None
    except ValueError:
        return None


def _text(value: object) -> str | None:
    """The text without control characters and blanks around it, cut to TEXT_LENGTH; None for nothing and for other types."""
    if type(value) is str and len(value) <= TEXT_LENGTH and value.isprintable():
        return value.strip() or None  # nearly all; there are a thousand in a report of a storage server
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # some sources tell a serial number of digits as a number
    if not isinstance(value, str):
        return None
    return _UNWANTED.sub(" ", value[: 4 * TEXT_LENGTH]).strip()[:TEXT_LENGTH].strip() or None


def _number(value: object) -> int | None:
    """A whole number from 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_INTEGER:
        return None  # NaN compares false, so it ends here too
    return min(int(value), _MAX_INTEGER)


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _objects(value: object) -> list[Any]:
    """The objects of a list, at most LIST_LENGTH."""
    return [v for v in value if isinstance(v, dict)][:LIST_LENGTH] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    said = [_text(v) for v in value[:LIST_LENGTH]] if isinstance(value, list) else []
    return [s for s in said if s is not None][:64]


Text = Annotated[str | None, BeforeValidator(_text)]
Number = Annotated[int | None, BeforeValidator(_number)]
Flag = Annotated[bool | None, BeforeValidator(_flag)]
Mac = Annotated[str | None, BeforeValidator(real_mac)]
Texts = Annotated[list[str], BeforeValidator(_texts)]
_Object = BeforeValidator(lambda value: value if isinstance(value, dict) else {})
_Maybe = BeforeValidator(lambda value: value if isinstance(value, dict) and value else None)
_List = BeforeValidator(_objects)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Board(_Part):
    vendor: Text = None
    model: Text = None
    serial: Text = None


class Chassis(_Part):
    """``type`` is a word of DSP0134 table 17 in lower case ("rack mount chassis"); ``asset`` the asset tag."""

    type: Text = None
    serial: Text = None
    asset: Text = None


class Firmware(_Part):
    """``mode`` bios or uefi; ``date`` as the firmware writes it (month/day/year); ``secure_boot`` null where there is none."""

    mode: Text = None
    vendor: Text = None
    version: Text = None
    date: Text = None
    secure_boot: Flag = None


class Cpu(_Part):
    """``cores`` and ``threads`` of the whole machine; ``mhz`` the highest speed that it says."""

    model: Text = None
    vendor: Text = None
    sockets: Number = None
    cores: Number = None
    threads: Number = None
    mhz: Number = None


class Dimm(_Part):
    """One module that is there; ``mts`` is its speed in million transfers a second."""

    slot: Text = None
    mib: Number = None
    type: Text = None
    mts: Number = None
    vendor: Text = None
    serial: Text = None
    part: Text = None


class Memory(_Part):
    """``mib`` is what the modules have together, or what the kernel sees where the firmware tells of none."""

    mib: Number = None
    dimms: Annotated[list[Dimm], _List] = []


class DiskFacts(_Part):
    """``size`` in bytes; ``by_id`` and ``by_path`` are names below /dev/disk."""

    name: Text = None
    path: Text = None
    model: Text = None
    serial: Text = None
    size: Number = None
    rotational: Flag = None
    wwn: Text = None
    by_id: Texts = []
    by_path: Text = None
    transport: Text = None
    removable: Flag = None
    read_only: Flag = None


class Neighbour(_Part):
    """What the switch says of itself (IEEE 802.1AB): ``chassis`` and ``port`` its identifiers, ``system`` its name, ``vlan`` the port's."""

    chassis: Text = None
    port: Text = None
    port_description: Text = None
    system: Text = None
    vlan: Number = None


class Nic(_Part):
    """``boot`` is the card that the ramdisk came in by; ``mac`` null where the card has none of Ethernet's."""

    name: Text = None
    mac: Mac = None
    driver: Text = None
    pci: Text = None
    link: Flag = None
    mbps: Number = None
    boot: Flag = None
    lldp: Annotated[Neighbour | None, _Maybe] = None


class BmcFacts(_Part):
    address: Text = None
    mac: Mac = None
    version: Text = None


class Gpu(_Part):
    vendor: Text = None
    model: Text = None
    pci: Text = None


class Facts(_Part):
    """One report. ``serial`` and ``uuid`` are as the machine says them: ask ``real_serial`` and ``real_uuid`` before comparing."""

    version: Number = 1
    vendor: Text = None
    model: Text = None
    serial: Text = None
    uuid: Text = None
    sku: Text = None
    board: Annotated[Board, _Object] = Board()
    chassis: Annotated[Chassis, _Object] = Chassis()
    firmware: Annotated[Firmware, _Object] = Firmware()
    architecture: Text = None
    cpu: Annotated[Cpu, _Object] = Cpu()
    memory: Annotated[Memory, _Object] = Memory()
    disks: Annotated[list[DiskFacts], _List] = []
    nics: Annotated[list[Nic], _List] = []
    bmc: Annotated[BmcFacts | None, _Maybe] = None
    gpus: Annotated[list[Gpu], _List] = []
    tpm: Text = None
    virtual: Text = None
