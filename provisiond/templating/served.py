"""Which files a build of a host is served: the kinds of its method and family. Pure."""

from __future__ import annotations

from provisiond.errors import RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.templating.catalogue import Catalogue

UNATTENDED: dict[str, tuple[str, ...]] = {
    "redhat": ("kickstart",),
    "fedora": ("kickstart",),
    "debian": ("preseed",),
    "ubuntu": ("autoinstall",),
    "suse": ("autoyast", "agama"),
    "coreos": ("ignition",),
    "flatcar": ("ignition",),
    "talos": ("talos",),
    "esxi": ("esxi-kickstart",),
}
"""The kinds of an installer's unattended file, by family: the first one with a template for the host's version is taken."""
CONTENT_TYPES = {
    "autoyast": "application/xml",
    "agama": "application/json",
    "ignition": "application/json",
    "talos": "application/yaml",
}
"""What an unattended file is told to be over HTTP; the others are plain text."""
SCRIPTS = ("finish", "first-boot")
"""What an unattended file of an operator's own may fetch and run in the new system."""
SEED = ("user-data", "meta-data", "network-config", "vendor-data")
"""The NoCloud files of an image's first boot."""
SEEDED = {"autoinstall": {"user-data": "autoinstall", "meta-data": "meta-data"}}
"""Installers that look for their unattended file as a NoCloud seed: its kind -> file of the seed -> kind."""
LOADERS = ("ipxe", "grub", "pxelinux")
KEXEC = "kexec"
"""A script that starts the same from a running Linux; not rendered ahead, as only an operator asks for it."""


def kinds_served(host: ResolvedHost, catalogue: Catalogue) -> tuple[str, ...]:
    """The installer's unattended file or the files of an image's first boot, then what each loader is given.

    Raises RenderError where no installer is known for the host's family.
    """
    if host.row.method != "installer":
        return (*SEED, *(f"{loader}-ramdisk" for loader in LOADERS))
    kind = unattended_kind(host, catalogue)
    files = (kind, *(k for k in SEEDED.get(kind, {}).values() if k != kind))
    return (*files, *(f"{loader}-installer" for loader in LOADERS))


def seed_kind(host: ResolvedHost, catalogue: Catalogue, file: str) -> str | None:
    """The kind behind ``file`` (of SEED) of the host's seed; None where its build has no such file. Raises RenderError."""
    if host.row.method != "installer":
        return file
    return SEEDED.get(unattended_kind(host, catalogue), {}).get(file)


def unattended_kind(host: ResolvedHost, catalogue: Catalogue) -> str:
    """The kind of the installer's unattended file: the family's first one with a template for the version. Raises RenderError."""
    system = host.operating_system
    kinds = UNATTENDED.get(system.family, ()) if system else ()
    if system is None or not kinds:
        family = (system.family if system else "") or "(none)"
        raise RenderError("unattended", f"host {host.name}: no installer is known for the family {family!r}")
    return next((k for k in kinds if catalogue.has(k, system.family, system.version)), kinds[0])


def needs_boot_files(kind: str) -> bool:
    """Whether the kind is a loader's script, which names the files that the loader is to fetch (``boot``)."""
    return kind.partition("-")[0] in (*LOADERS, KEXEC)
