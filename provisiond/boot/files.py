"""What the TFTP server gives for a path: network boot programs, per-host loader files rendered on request, kernels and initrds."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from provisiond.boot.loader import Loaders
from provisiond.boot.machines import Machine, Machines, TokenRefused, normal_mac
from provisiond.boot.scripts import INITRD, KERNEL, BootPair, Loader, NotServable, Scripts, boot_pair, ramdisk
from provisiond.boot.target import Boot

_BUILD = re.compile(r"boot/([A-Za-z0-9_-]{20,128}|ramdisk(?:-aarch64)?)/(kernel|initrd)")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
MAX_PATH = 512


class TftpFiles:
    """Answers lookups of the TFTP server; every answer comes from the same decision as HTTP's."""

    def __init__(self, loaders: Loaders, machines: Machines, scripts: Scripts) -> None:
        self._loaders, self._machines, self._scripts = loaders, machines, scripts

    async def lookup(self, path: str, client_ip: str) -> bytes | Path | None:
        """The content of ``path`` for the client at ``client_ip``: bytes, a file on disk, or None when there is none.

        Paths are matched, never joined to a directory. Leading slashes and the prefix `grub/` (that of Debian's signed
        GRUB) make no difference.
        """
        if len(path) > MAX_PATH or not path.isascii() or not path.isprintable():
            return None
        path = re.sub(r"/+", "/", path.replace("\\", "/")).removeprefix("/")
        if found := _BUILD.fullmatch(path):
            return await self._boot_file(found[1], found[2])
        path = path.removeprefix("boot/").removeprefix("grub/")
        if (program := self._loaders.get(path)) is not None:
            return program.content
        if path == "autoexec.ipxe":
            return (await self._scripts.entry("ipxe")).encode()
        if path.startswith("pxelinux.cfg/"):
            return await self._pxelinux(path.removeprefix("pxelinux.cfg/"), client_ip)
        if path == "grub.cfg":
            machine = await self._machines.by_ip(client_ip)
            if machine.host is None:  # asks again by its MAC, which GRUB knows
                return (await self._scripts.entry("grub")).encode()
            return await self._script(machine, "grub")
        if path.startswith("grub.cfg-"):
            return await self._grub(path.removeprefix("grub.cfg-"), client_ip)
        return None

    async def _grub(self, name: str, client_ip: str) -> bytes | None:
        """`01-aa-bb-..`, `aa:bb:..`, or the address in hex cut digit by digit (GRUB manual, "Network"); only whole ones count."""
        if mac := normal_mac(name):
            return await self._script(await self._machines.by_mac(mac, client_ip), "grub")
        return await self._by_hex(name, "grub")

    async def _pxelinux(self, name: str, client_ip: str) -> bytes | None:
        """Its order: UUID, `01-mac`, the address in hex cut digit by digit, `default` (PXELINUX wiki, "Configuration")."""
        if _UUID.fullmatch(name):
            machine = await self._machines.by_uuid(name)
            return await self._script(machine, "pxelinux") if machine else None
        if mac := normal_mac(name):
            return await self._script(await self._machines.by_mac(mac, client_ip), "pxelinux")
        if name == "default":
            return await self._script(await self._machines.by_ip(client_ip), "pxelinux")
        return await self._by_hex(name, "pxelinux")

    async def _by_hex(self, name: str, loader: Loader) -> bytes | None:
        if not re.fullmatch(r"[0-9A-Fa-f]{8}", name):
            return None
        machine = await self._machines.by_ip(str(ipaddress.IPv4Address(int(name, 16))))
        return await self._script(machine, loader) if machine.host else None

    async def _script(self, machine: Machine, loader: Loader) -> bytes:
        return (await self._scripts.script(machine, loader, by_http=False)).encode()

    async def _boot_file(self, token: str, what: str) -> Path | None:
        """Kernel or initrd for loaders without HTTP. Nothing for a build that has nothing to boot any more."""
        settings = self._machines.world.settings
        try:
            pair: BootPair
            if token in {"ramdisk", "ramdisk-aarch64"}:
                pair = ramdisk(settings, token.partition("-")[2] or "x86_64")
            else:
                machine = await self._machines.by_token(token)
                if machine.target.boot is Boot.LOCAL:
                    return None
                pair = boot_pair(settings, machine)
        except (TokenRefused, NotServable):
            return None
        return {KERNEL: pair.kernel, INITRD: pair.initrd}[what]
