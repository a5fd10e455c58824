"""The boot room put together: one set of facts behind the HTTP application and the TFTP lookups, and what DHCP has to say of it."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from provisiond.boot import loader
from provisiond.boot.files import TftpFiles
from provisiond.boot.http import boot_app
from provisiond.boot.loader import Loaders
from provisiond.boot.machines import BootWorld, Machines
from provisiond.boot.scripts import Scripts
from provisiond.boot.shares import Shares
from provisiond.drivers.dhcp import BootOptions
from provisiond.errors import ConfigError


@dataclass(frozen=True)
class BootRoom:
    """``app`` is for an AppRunner with access_log_class=BootAccessLogger; ``files.lookup`` for TftpServer; ``shares.figures`` for metrics."""

    app: web.Application
    files: TftpFiles
    loaders: Loaders
    shares: Shares


def open_room(world: BootWorld) -> BootRoom:
    """Read the network boot programs and make the room. ``world.boot_url`` may be set later, before the first request.

    Raises ConfigError when the loader table or a pinned program is wrong.
    """
    loaders = loader.load(world.settings.boot.loader_dirs)
    machines = Machines(world)
    scripts = Scripts(world, machines)
    shares = Shares()
    return BootRoom(
        boot_app(world, loaders, machines, scripts, shares),
        TftpFiles(loaders, machines, scripts),
        loaders,
        shares,
    )


def boot_options(loaders: Loaders, boot_url: str, kind: str = "ipxe") -> BootOptions:
    """What DHCP tells machines; ``kind`` is the loader they get: ipxe, grub (shim and GRUB) or pxelinux.

    TFTP is on the machine that ``boot_url`` names. Raises ConfigError when that name has no IPv4 address: DHCP wants one.
    """
    host = urlsplit(boot_url).hostname or ""
    return BootOptions(
        tftp_server=_address(host, boot_url),
        programs=loaders.by_tftp(kind),
        http_programs=loaders.by_http(boot_url),
        ipxe_script=f"{boot_url}/boot/ipxe",
        over_ipxe=loaders.instead_of_ipxe(kind),
    )


def _address(host: str, boot_url: str) -> str:
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(
            f"boot.url {boot_url}: {host or 'it'} has no IPv4 address; write the address itself"
        ) from error
