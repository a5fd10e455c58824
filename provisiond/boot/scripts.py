"""The text a boot loader is given for a machine: one decision, four languages (iPXE, GRUB, PXELINUX, and a shell script that uses kexec).

The texts are templates (templates/ipxe, grub, pxelinux, kexec), whose filters keep every value in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog

from provisiond.boot import tickets
from provisiond.boot.machines import BootWorld, Machine, Machines
from provisiond.boot.target import Boot, Target
from provisiond.config import Settings
from provisiond.errors import ProvisiondError, RenderError
from provisiond.inventory.tables import utcnow
from provisiond.media.ramdisk import folder as ramdisk_folder
from provisiond.templating.context import BootFiles, BuildUrls

log = structlog.get_logger(__name__)

Loader = Literal["ipxe", "grub", "pxelinux", "kexec"]
KERNEL, INITRD = "kernel", "initrd"
TICKET = "TICKET-OF-THIS-BOOT"


class NotServable(ProvisiondError):
    """What the machine is to boot is not there: says what is missing and how to get it."""


@dataclass(frozen=True)
class BootPair:
    """Kernel and initrd on this machine's disk."""

    kernel: Path
    initrd: Path


def ramdisk(settings: Settings, architecture: str = "x86_64") -> BootPair:
    """provisiond's own, for machines of an architecture. Raises NotServable."""
    folder = ramdisk_folder(settings, architecture)
    pair = BootPair(folder / "vmlinuz", folder / "initrd.img")
    if not (pair.kernel.is_file() and pair.initrd.is_file()):
        raise NotServable(
            f"there is no ramdisk for {architecture} in {settings.boot.ramdisk_dir}: make it with "
            f"'provisionctl ramdisk build --arch {architecture}' or pxe/ramdisk/build, or set boot.ramdisk_dir"
        )
    return pair


def architecture_of(machine: Machine) -> str:
    """The machine's, as its image or medium says; else x86_64."""
    host = machine.host
    media = (host.image, host.medium) if host else ()
    return next((medium.architecture for medium in media if medium is not None), "x86_64")


def boot_pair(settings: Settings, machine: Machine) -> BootPair:
    """What the machine's target boots. Raises NotServable."""
    if machine.target.boot is not Boot.INSTALLER:
        return ramdisk(settings, architecture_of(machine))
    medium = machine.host.medium if machine.host else None
    if medium is None or not medium.ready:
        name = medium.name if medium else "(none)"
        raise NotServable(f"medium {name} of host {machine.name} is not ready: provisionctl media add {name}")
    pair = BootPair(*(settings.state.media_dir / str(medium.files[f]["path"]) for f in (KERNEL, INITRD)))
    if not (pair.kernel.is_file() and pair.initrd.is_file()):
        raise NotServable(
            f"files of medium {medium.name} are gone from {settings.state.media_dir}: provisionctl media add {medium.name}"
        )
    return pair


def live_iso(settings: Settings, machine: Machine) -> Path:
    """The ISO that the medium's live system fetches whole. Raises NotServable."""
    boot_pair(settings, machine)
    medium = machine.host.medium if machine.host else None
    if medium is None or "iso" not in medium.files:
        raise NotServable(f"the medium of host {machine.name} has no ISO that a machine could fetch")
    path = settings.state.media_dir / str(medium.files["iso"]["path"])
    if not path.is_file():
        raise NotServable(
            f"the ISO of medium {medium.name} is gone from {settings.state.media_dir}: provisionctl media add {medium.name}"
        )
    return path


class Scripts:
    """Makes loader scripts. ``machines`` counts the boots they start."""

    def __init__(self, world: BootWorld, machines: Machines) -> None:
        self._world, self._machines = world, machines

    async def entry(self, loader: Literal["ipxe", "grub"]) -> str:
        """The script for any machine, which asks again with its MAC."""
        return await self._world.renderings.render_machine(f"{loader}-entry", f"{self._world.boot_url}/boot")

    async def script(self, machine: Machine, loader: Loader, *, by_http: bool) -> str:
        """What ``machine`` is to boot, for ``loader``; PXELINUX is given URLs or TFTP paths as it came ``by_http``.

        What cannot be served ends the build with the reason, and the machine boots its own disk.
        """
        if machine.target.boot is Boot.LOCAL:
            return await self._local(machine, loader)
        try:
            boot_pair(self._world.settings, machine)
            machine = await self._machines.hand_out(machine)
            if machine.target.boot is Boot.LOCAL:
                return await self._local(machine, loader)
            return await self._render(machine, loader, by_http)
        except (NotServable, RenderError) as error:
            await self._give_up(machine, error)
            return await self._local(
                replace(machine, target=Target(Boot.LOCAL, str(error))), loader, "message"
            )

    async def _render(self, machine: Machine, loader: Loader, by_http: bool) -> str:
        if machine.target.boot is Boot.INSTALLER:
            assert machine.host is not None
            urls = self._machines.urls_of(machine)
            files = self._files(machine, loader, by_http, urls.base, urls.base)
            return await self._world.renderings.serve(machine.host, f"{loader}-installer", urls, files)
        text = await self._ramdisk(machine, loader, by_http)
        host_id = machine.host.id if machine.host else None
        keys = self._world.box.derived(tickets.PURPOSE)
        return text.replace(TICKET, tickets.issue(keys, machine.mac, host_id, utcnow()))

    async def _ramdisk(self, machine: Machine, loader: Loader, by_http: bool) -> str:
        """The script that starts the ramdisk, with TICKET in its ticket's place, which so is in no record of what was served."""
        world, host, building = self._world, machine.host, machine.target.builds
        base = f"{world.boot_url}/boot"
        urls = self._machines.urls_of(machine) if building else BuildUrls.of(world.boot_url, "none")
        architecture = architecture_of(machine)
        place = (
            urls.base
            if building
            else f"{base}/ramdisk{'' if architecture == 'x86_64' else f'-{architecture}'}"
        )
        files = replace(self._files(machine, loader, by_http, place, world.boot_url), ticket=TICKET)
        if host is not None:
            return await world.renderings.serve(host, f"{loader}-ramdisk", urls, files, noted=building)
        # a kexec script is piped into a shell by somebody who wants the ramdisk
        kind = "menu" if machine.target.boot is Boot.MENU and loader != "kexec" else "ramdisk"
        return await world.renderings.render_machine(f"{loader}-{kind}", base, files)

    def _files(self, machine: Machine, loader: Loader, by_http: bool, base: str, url: str) -> BootFiles:
        path = base.removeprefix(self._world.boot_url)
        if loader == "grub":  # GRUB reads a bare path from the server its configuration came from
            base = path
        elif loader == "pxelinux" and not by_http:
            base = path.removeprefix("/")
        return BootFiles(machine.mac, machine.target.why, f"{base}/{KERNEL}", f"{base}/{INITRD}", url)

    async def _local(self, machine: Machine, loader: Loader, kind: str = "local") -> str:
        files = BootFiles(machine.mac, machine.target.why)
        return await self._world.renderings.render_machine(
            f"{loader}-{kind}", f"{self._world.boot_url}/boot", files
        )

    async def _give_up(self, machine: Machine, error: ProvisiondError) -> None:
        log.error("boot.not_servable", host=machine.name, error=str(error))
        await self._machines.give_up(machine, str(error))
