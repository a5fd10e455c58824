"""The machine's controller (BMC), asked in band by ipmitool: its address, MAC, firmware, and what it knows of the machine."""

import os
import re
from collections.abc import Sequence
from typing import Any

from ramdisk_agent.facts.text import mac, names, said

IPMITOOL = ("ipmitool",)  # by the machine's own interface; tests put -I lanplus and an address behind it
CHANNELS = range(1, 9)  # where a LAN channel may be (IPMI 2.0, 6.3: 1-7; 8 is used by some blades)
_DEVICES = ("/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0")


def parse_fields(text: str) -> dict[str, str]:
    """`Name : value` lines of ipmitool; a line without a name belongs to the one above and is left out."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip():
            fields.setdefault(name.strip(), value.strip())
    return fields


def parse_lan(text: str) -> dict[str, str | None]:
    """address and mac of `ipmitool lan print`; None for what is not set (0.0.0.0)."""
    import ipaddress

    fields = parse_fields(text)
    try:
        address = ipaddress.ip_address(fields.get("IP Address", ""))
    except ValueError:
        address = None
    return {
        "address": str(address) if address and not address.is_unspecified else None,
        "mac": mac(fields.get("MAC Address")),
    }


def parse_info(text: str) -> str | None:
    """The firmware's version of `ipmitool mc info`, such as 2.61; some makers put two more digits behind it."""
    return said(parse_fields(text).get("Firmware Revision"))


def parse_fru(text: str) -> dict[str, str | None]:
    """vendor, model and serial of the machine out of `ipmitool fru print 0`: the product's, or else the board's."""
    fields = parse_fields(text)

    def of(product: str, board: str) -> str | None:
        return said(fields.get(product)) or said(fields.get(board))

    return {
        "vendor": of("Product Manufacturer", "Board Mfg"),
        "model": of("Product Name", "Board Product"),
        "serial": of("Product Serial", "Board Serial"),
    }


def lan(ipmitool: Sequence[str] = IPMITOOL) -> tuple[int | None, dict[str, str | None]]:
    """The first channel that has an address, or else the first that has a MAC; (None, {}) where there is no LAN channel."""
    second: tuple[int | None, dict[str, str | None]] = (None, {})
    for channel in CHANNELS:
        seen = parse_lan(_ask(ipmitool, "lan", "print", str(channel)))
        if seen["address"]:
            return channel, seen
        if seen["mac"] and second[0] is None:
            second = channel, seen
    return second


def present(told: bool, acpi: str = "/sys/bus/acpi/devices") -> bool:
    """Whether there is an interface to a controller; its drivers are loaded when firmware tells of one (`told`: SMBIOS type 38)."""
    from ramdisk_agent.run import run

    if any(map(os.path.exists, _DEVICES)):
        return True
    if not told and not _acpi_tells(acpi):
        return False
    run(["modprobe", "-a", "ipmi_si", "ipmi_ssif", "ipmi_devintf"], timeout=30, check=False)
    return any(map(os.path.exists, _DEVICES))


def _acpi_tells(root: str) -> bool:
    return any(re.match(r"IPI0001|APMC0D8A", name) for name in names(root))


def gather(ipmitool: Sequence[str] = IPMITOOL) -> dict[str, Any]:
    """{"bmc": facts["bmc"], "fru": parse_fru()} of a machine that has a controller."""
    version = parse_info(_ask(ipmitool, "mc", "info"))
    if version is None:
        return {"bmc": None, "fru": {}}  # the interface is there, but nobody answers behind it
    _, seen = lan(ipmitool)
    return {
        "bmc": {"address": seen.get("address"), "mac": seen.get("mac"), "version": version},
        "fru": parse_fru(_ask(ipmitool, "fru", "print", "0")),
    }


def _ask(ipmitool: Sequence[str], *arguments: str) -> str:
    """What it says; "" when it failed. A controller that is busy answers after seconds, or never."""
    from ramdisk_agent.run import run

    return run([*ipmitool, *arguments], timeout=15, check=False)
