"""What a template sees: plain texts, numbers, lists and mappings made from one resolved host, and nothing that can be called.

The names are listed in docs/templates/index.md. A name that a host has no value for is left out where a template cannot do
without it (``medium.mirror``, ``os.family``), so that its use is an error with that name in it, and is None where a template
is expected to ask (``host.ip``, ``host.gateway``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from provisiond.inventory.masking import MASK
from provisiond.inventory.network import Network
from provisiond.inventory.resolve import ResolvedHost, ResolvedInterface
from provisiond.inventory.storage import Storage
from provisiond.templating.disks import DEFAULT_SWAP, needs_layout, plan_storage
from provisiond.templating.links import LayoutError, plan_network
from provisiond.templating.sandbox import unusable


@dataclass(frozen=True)
class BuildUrls:
    """The addresses of one build on the daemon's boot server. ``base`` ends in the build's token, so it is a secret."""

    base: str = field(repr=False)

    @classmethod
    def of(cls, boot_url: str, token: str) -> BuildUrls:
        """``boot_url`` is where machines reach HTTP boot, such as http://10.0.0.1:8421."""
        return cls(f"{boot_url.rstrip('/')}/boot/{token}")

    @property
    def token(self) -> str:
        return self.base.rpartition("/")[2]

    def masked(self) -> BuildUrls:
        """The same with the token masked."""
        return BuildUrls(f"{self.base.rpartition('/')[0]}/{MASK}")

    def names(self) -> dict[str, str]:
        """Name in templates -> URL: seed/ and installer.iso are read; progress, built, failed and phone_home are posted to."""
        paths = {
            "progress": "progress", "built": "built", "failed": "failed", "phone_home": "phone-home",
            "unattended": "unattended", "seed": "seed/", "iso": "installer.iso",
        }  # fmt: skip
        return {"base": self.base, **{name: f"{self.base}/{path}" for name, path in paths.items()}}


@dataclass(frozen=True)
class BootFiles:
    """What a boot loader is to fetch, as that loader reads it (URL or path), for the machine with ``mac``.

    ``url`` is the root that the ramdisk asks below, ``ticket`` what it proves itself with; ``why`` is the sentence
    on the boot screen.
    """

    mac: str = ""
    why: str = ""
    kernel: str = ""
    initrd: str = ""
    url: str = field(default="", repr=False)
    ticket: str = field(default="", repr=False)

    def names(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value}

    def masked(self, token: str) -> BootFiles:
        """The same with the build's token masked."""
        return BootFiles(**{name: value.replace(token, MASK) for name, value in vars(self).items()})


def build_context(
    host: ResolvedHost,
    urls: BuildUrls,
    *,
    authorized_keys: Sequence[str] = (),
    boot: BootFiles | None = None,
    next_build: bool = False,
) -> dict[str, Any]:
    """Everything a template of one host may use. ``authorized_keys`` are the daemon's own public SSH keys (handover).

    ``flags`` are the feature flags its build began with; for its ``next_build``, and where none has begun, those of now.
    """
    pinned = None if next_build else getattr(host.deployment, "flags", None)
    interfaces = [_interface(i, host) for i in host.interfaces]
    primary: Mapping[str, Any] = interfaces[0] if interfaces else _NO_INTERFACE
    context: dict[str, Any] = {
        "host": {
            "id": host.id,
            "name": host.name,
            "fqdn": host.fqdn,
            "domain": host.domain.name if host.domain else None,
            "firmware": host.row.firmware,
            "architecture": host.row.architecture,
            "groups": list(host.groups),
            **{
                name: primary[name]
                for name in ("mac", "ip", "version", "prefix", "netmask", "gateway", "dns")
            },
        },
        "interfaces": interfaces,
        "os": _present(host.operating_system, "name", "family", "version"),
        "medium": _medium(host),
        "image": _present(host.image, "name", "format", "sha256", "size", "user"),
        "deployment": _present(host.deployment, "id", "number"),
        "parameters": _plain(host.parameters),
        "storage": _storage(host),
        "network": _network(host),
        "ssh_authorized_keys": _keys(host.parameters.get("ssh_authorized_keys"), authorized_keys),
        "urls": urls.names(),
        "flags": dict(host.flags if pinned is None else pinned),
    }
    if boot is not None:
        context["boot"] = {"mac": primary["mac"], **boot.names()}
    return context


def machine_context(base: str, boot: BootFiles | None = None) -> dict[str, Any]:
    """What boot templates see of a machine that is no host (yet): ``urls.base`` and ``boot``."""
    context: dict[str, Any] = {"urls": {"base": base}, "parameters": {}}
    if boot is not None:
        context["boot"] = boot.names()
    return context


_ROOT_FILESYSTEM = {
    "redhat": "xfs",
    "fedora": "btrfs",
    "suse": "btrfs",
    "coreos": "xfs",
}  # what each family makes of / unless told otherwise
_NO_SWAP = {"coreos", "flatcar", "talos"}  # families that have none unless told otherwise
_NO_INTERFACE: Mapping[str, Any] = {
    "name": "", "mac": None, "ip": None, "version": 4, "prefix": None, "netmask": None, "gateway": None, "dns": [],
    "domain": None, "vlan": None, "subnet": None, "primary": True,
}  # fmt: skip


def _interface(interface: ResolvedInterface, host: ResolvedHost) -> dict[str, Any]:
    seen: dict[str, Any] = {
        **_NO_INTERFACE,
        "name": interface.name,
        "mac": interface.mac,
        "ip": interface.ip,
        "primary": interface.primary,
        "domain": host.domain.name if host.domain else None,
        "dns": [],
    }
    if interface.subnet is not None:
        network = ipaddress.ip_network(interface.subnet.cidr, strict=False)
        seen |= {
            "subnet": interface.subnet.name,
            "version": network.version,
            "prefix": network.prefixlen,
            "netmask": str(network.netmask),
            "gateway": interface.subnet.gateway,
            "dns": list(interface.subnet.dns),
            "vlan": interface.subnet.vlan,
        }
    return seen


def _storage(host: ResolvedHost) -> Any:
    """The plan of its disks; a description that was stored before a rule became stricter fails where it is used."""
    try:
        described = Storage.model_validate(host.storage) if host.storage is not None else None
        system = host.operating_system.family if host.operating_system else ""
        plan = plan_storage(
            described,
            host.row.firmware,
            _ROOT_FILESYSTEM.get(system),
            None if system in _NO_SWAP else DEFAULT_SWAP,
        )
        # the ramdisk makes the layout before the image starts; a virtual machine's disk is made from its image without it
        tree = host.image is not None and host.image.content == "tree"
        return {**plan, "layout": host.hypervisor is None and (tree or needs_layout(plan))}
    except ValueError as error:
        return unusable("storage", f"the storage description does not fit: {error}", "storage")


def _network(host: ResolvedHost) -> Any:
    try:
        described = Network.model_validate(host.network) if host.network is not None else None
        return plan_network(described, host.interfaces)
    except LayoutError as error:
        return unusable("network", str(error), error.key)
    except ValueError as error:
        return unusable("network", f"the network description does not fit: {error}", "network")


def _medium(host: ResolvedHost) -> dict[str, Any]:
    seen = _present(host.medium, "name")
    if host.medium is not None and host.medium.mirror:
        parts = urlsplit(host.medium.mirror)
        seen |= {
            "mirror": host.medium.mirror,
            "mirror_protocol": parts.scheme,
            "mirror_host": parts.netloc.rpartition("@")[2],
            "mirror_path": parts.path or "/",
        }
    return seen


def _present(row: Any, *names: str) -> dict[str, Any]:
    return {} if row is None else {name: getattr(row, name) for name in names}


def _keys(given: Any, own: Sequence[str]) -> list[Any]:
    """The host's keys and the daemon's own, each once. A wrong type is left for the template's check to name."""
    several = given if isinstance(given, list | tuple) else [given] if isinstance(given, str) else []
    return list(dict.fromkeys([*several, *own]))


def _plain(value: Any) -> Any:
    """A copy in plain lists and mappings, so that no template can reach what the daemon holds."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
