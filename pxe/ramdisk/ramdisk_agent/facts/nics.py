"""Network cards: everything on a bus that the kernel has a driver for, by sysfs and two ioctls."""

import fcntl
import os
import re
import socket
import struct
from typing import Any

from ramdisk_agent.facts.text import mac, names, number, read

# linux/sockios.h, linux/ethtool.h, linux/if.h
_SIOCETHTOOL, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8946, 0x8913, 0x8914
_ETHTOOL_GPERMADDR = 0x20
_IFF_UP = 1
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_ETHERNET = "1"  # ARPHRD_ETHER


def cards(boot: str | None = None, root: str = "/sys/class/net") -> list[str]:
    """Names of the network cards: those with a device below them, so no bridges, tunnels and loopback; and no wireless ones.

    Cards on USB are left out but for the one with the MAC `boot`: management controllers show one, with the same address on
    many machines.
    """

    def wanted(place: str) -> bool:
        return (
            os.path.exists(f"{place}/device")
            and not os.path.isdir(f"{place}/wireless")
            and read(f"{place}/type") in (_ETHERNET, "32")  # 32: InfiniBand
            and (
                "/usb" not in os.path.realpath(f"{place}/device")
                or mac(read(f"{place}/address")) == (boot or "none")
            )
        )

    return [name for name in names(root) if wanted(f"{root}/{name}")]


def describe(name: str, boot: str | None, root: str = "/sys/class/net") -> dict[str, Any]:
    """One of facts["nics"], lldp still None. `boot` is the MAC that the machine booted from."""
    place = f"{root}/{name}"
    device = os.path.realpath(f"{place}/device")
    found = _PCI.findall(device)
    address = permanent_mac(name) or mac(read(f"{place}/address"))
    return {
        "name": name,
        "mac": address if read(f"{place}/type") == _ETHERNET else None,
        "driver": os.path.basename(os.path.realpath(f"{place}/device/driver"))
        if os.path.exists(f"{place}/device/driver")
        else None,
        "pci": found[-1] if found else None,
        "link": {"1": True, "0": False}.get(read(f"{place}/carrier")),
        "mbps": number(read(f"{place}/speed")) or None,  # -1 without link
        "boot": boot is not None and boot in (address, mac(read(f"{place}/address"))),
        "lldp": None,
    }


def permanent_mac(name: str) -> str | None:
    """The MAC burnt into the card, whatever it was set to since; None where the driver does not tell."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            # struct ethtool_perm_addr: command, size, bytes; struct ifreq: name, pointer
            import array

            data = array.array("B", struct.pack("=II", _ETHTOOL_GPERMADDR, 32) + bytes(32))
            fcntl.ioctl(door, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), data.buffer_info()[0]))
    except OSError:
        return None
    size = struct.unpack_from("=I", data, 4)[0]
    return mac(":".join(f"{b:02x}" for b in data[8:14])) if size == 6 else None


def bring_up(cards: list[str]) -> None:
    """Set cards up, so that they have a link and hear their switch. What cannot be set stays as it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        for name in cards:
            try:
                asked = fcntl.ioctl(door, _SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
                flags = struct.unpack_from("16sH", asked)[1]
                if not flags & _IFF_UP:
                    fcntl.ioctl(door, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
            except OSError:
                continue


def boot_mac(cmdline: str) -> str | None:
    """The MAC of the card that the machine booted from, out of the kernel's arguments (BOOTIF=01-..., provisiond.mac=)."""
    found = re.search(
        r"(?:^|\s)(?:BOOTIF=(?:01-)?|provisiond\.mac=)([0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5})(?=\s|$)",
        cmdline,
    )
    return found[1].replace("-", ":").lower() if found else None
