"""The chassis program of ipmi_sim: what it runs to read and change power, boot device and the rest of "its" machine.

    chassis.py URI UUID-OR-NAME get|set|check PARAMETER [VALUE] ...     drives a libvirt domain
    chassis.py DIRECTORY - get|set|check PARAMETER [VALUE] ...          keeps the state in files

Answers ``parameter:value`` lines. Protocol: ipmi_lan(5), chassis_control. Each run is also a line in DIRECTORY/calls, or in the file
that CHASSIS_LOG names.
"""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

BOOT = {"pxe": "network", "default": "hd", "cdrom": "cdrom"}  # ipmi_sim's word: libvirt's word


class Files:
    """A machine that is two files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, parameter: str) -> str | None:
        defaults = {"power": "0", "boot": "default"}
        if parameter not in defaults:
            return None
        file = self.directory / parameter
        return file.read_text() if file.exists() else defaults[parameter]

    def set(self, parameter: str, value: str) -> bool:
        if parameter in ("power", "boot"):
            (self.directory / parameter).write_text(value)
        elif parameter == "shutdown":
            (self.directory / "power").write_text("0")
        return parameter in ("power", "boot", "reset", "shutdown", "identify")


class Domain:
    """A libvirt domain."""

    def __init__(self, uri: str, name: str) -> None:
        import libvirt

        libvirt.registerErrorHandler(lambda *_: None, None)
        connection = libvirt.open(uri)
        self.secure = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        self.domain = (
            connection.lookupByUUIDString(name) if name.count("-") == 4 else connection.lookupByName(name)
        )
        self.connection = connection

    def get(self, parameter: str) -> str | None:
        if parameter == "power":
            return str(int(self.domain.isActive()))
        if parameter == "boot":
            first = ET.fromstring(self.domain.XMLDesc(self.secure)).find("os/boot")
            words = {libvirt: word for word, libvirt in BOOT.items()}
            return words.get(first.get("dev", "") if first is not None else "hd", "default")
        return None

    def set(self, parameter: str, value: str) -> bool:
        on = bool(self.domain.isActive())
        if parameter == "power":
            if value == "1" and not on:
                self.domain.create()
            elif value == "0" and on:
                self.domain.destroy()
        elif parameter == "reset":
            if on:
                self.domain.reset()
        elif parameter == "shutdown":
            if on:
                self.domain.shutdown()
        elif parameter == "boot":
            self._boot(BOOT.get(value, "hd"))
        else:
            return parameter == "identify"
        return True

    def _boot(self, device: str) -> None:
        tree = ET.fromstring(self.domain.XMLDesc(self.secure))
        for element in tree.findall("devices/*"):
            for order in element.findall("boot"):
                element.remove(order)
        system = tree.find("os")
        assert system is not None
        for order in system.findall("boot"):
            system.remove(order)
        for name in (
            sorted(("network", "hd"), key=lambda name: name != device)
            if device != "cdrom"
            else ("cdrom", "hd")
        ):
            ET.SubElement(system, "boot", dev=name)
        self.connection.defineXML(ET.tostring(tree, encoding="unicode"))


def main(where: str, name: str, verb: str, *words: str) -> int:
    log = os.environ.get("CHASSIS_LOG") or (f"{where}/calls" if name == "-" else "")
    if log:
        with Path(log).open("a") as file:
            file.write(" ".join((verb, *words)) + "\n")
    machine = Files(Path(where)) if name == "-" else Domain(where, name)
    if verb == "get":
        for parameter in words:
            value = machine.get(parameter)
            if value is None:
                print("unsupported")
                return 1
            print(f"{parameter}:{value}")
    elif verb == "set":
        for parameter, value in zip(words[::2], words[1::2], strict=False):
            if not machine.set(parameter, value):
                print("unsupported")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
