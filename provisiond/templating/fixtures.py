"""Host fixtures: made-up hosts, one YAML file each, that templates are rendered for before a machine sees them.

The shipped ones lie in ``templates/fixtures/``; those in ``fixtures/`` of an operator's own directory are laid over them by
name. How a file looks is told in docs/templates/index.md. Everything in them is fixed, so that what is rendered is the same
in every byte whenever it is rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from provisiond.errors import ConfigError
from provisiond.inventory.network import NetworkDescription
from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost, ResolvedInterface
from provisiond.inventory.storage import StorageDescription
from provisiond.inventory.tables import Deployment, Domain, Host, Image, Medium, OperatingSystem, Subnet
from provisiond.templating.context import BootFiles, BuildUrls, build_context, machine_context

DIRECTORY = "fixtures"
_DEPTH = 8  # of fixtures that are like others


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class System(_Strict):
    """An operating system."""

    name: str
    family: str
    version: str


class Mirror(_Strict):
    """An installation medium. ``mirror`` is the URL that the installer takes packages from."""

    name: str
    mirror: str | None = None


class Disk(_Strict):
    """A disk image; ``size`` in bytes."""

    name: str
    format: str = "raw"
    sha256: str = "0" * 64
    size: int = 1 << 30
    user: str = "root"


class Net(_Strict):
    """A subnet: ``cidr`` such as 10.0.0.0/24, ``vlan`` its tag."""

    cidr: str
    gateway: str | None = None
    dns: list[str] = Field(default_factory=list)
    vlan: int | None = None


class Card(_Strict):
    """A network card; ``subnet`` is the name of one in ``subnets``. The first card is the primary one."""

    name: str
    mac: str
    ip: str | None = None
    subnet: str | None = None


class Loader(_Strict):
    """What a boot loader is to fetch; see BootFiles."""

    mac: str = ""
    why: str = ""
    kernel: str = ""
    initrd: str = ""
    url: str = ""
    ticket: str = ""


class Fixture(_Strict):
    """One made-up machine. ``stranger`` is one that is no host: it has only ``urls`` and ``boot``."""

    about: str = Field(min_length=1)
    like: str | None = None
    stranger: bool = False
    name: str = "web01"
    firmware: Literal["bios", "uefi"] = "bios"
    architecture: str = "x86_64"
    method: Literal["installer", "image"] = "installer"
    domain: str | None = "example.org"
    groups: list[str] = Field(default_factory=lambda: ["all", "web"])
    operating_system: System | None = None
    medium: Mirror | None = None
    image: Disk | None = None
    subnets: dict[str, Net] = Field(default_factory=dict)
    interfaces: list[Card] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    flags: dict[str, bool] = Field(default_factory=dict)
    storage: StorageDescription | None = None
    network: NetworkDescription | None = None
    boot: Loader = Loader()
    boot_url: str = "http://10.0.0.1:8421"
    authorized_keys: list[str] = Field(default_factory=list)

    def host(self) -> ResolvedHost:
        """The resolved host, as the database would give it."""
        subnets = {
            name: Subnet(
                id=f"subnet-{name}", name=name, cidr=n.cidr, gateway=n.gateway, dns=n.dns, vlan=n.vlan
            )
            for name, n in self.subnets.items()
        }
        system, medium, image = self.operating_system, self.medium, self.image
        return ResolvedHost(
            row=Host(
                id="11111111-2222-3333-4444-555555555555",
                name=self.name,
                firmware=self.firmware,
                architecture=self.architecture,
                method=self.method,
            ),
            interfaces=tuple(
                ResolvedInterface(
                    f"card-{i}", c.name, c.mac, c.ip, i == 0, subnets[c.subnet] if c.subnet else None
                )
                for i, c in enumerate(self.interfaces)
            ),
            bmc=None,
            hypervisor=None,
            flavor=None,
            image=Image(id="image", path="image", **image.model_dump()) if image else None,
            medium=Medium(id="medium", operating_system_id="os", source="x", **medium.model_dump())
            if medium
            else None,
            operating_system=OperatingSystem(id="os", **system.model_dump()) if system else None,
            domain=Domain(id="domain", name=self.domain) if self.domain else None,
            groups=tuple(self.groups),
            merged=merge([(f"host {self.name}", self.parameters)]),
            flags=self.flags,
            handover=None,
            storage=self.storage,
            network=self.network,
            deployment=Deployment(id="99999999-8888-7777-6666-555555555555", host_id="x", number=3),
        )

    def urls(self) -> BuildUrls:
        """The addresses of its build, with a made-up token."""
        return BuildUrls.of(self.boot_url, "t0k3n-t0k3n-t0k3n")

    def context(self) -> dict[str, Any]:
        """What a template is given; see context.py. Kernel and initrd are those of an installer where the file says nothing."""
        given = self.boot.model_dump(exclude_defaults=True)
        if self.stranger:
            return machine_context(f"{self.boot_url}/boot", BootFiles(**given))
        boot = BootFiles(
            **{
                "why": "building: starts its installer",
                "kernel": f"{self.boot_url}/boot/media/kernel",
                "initrd": f"{self.boot_url}/boot/media/initrd",
                "url": self.boot_url,
                "ticket": "t1ck3t-t1ck3t-t1ck3t",
                **given,
            }
        )
        return build_context(self.host(), self.urls(), authorized_keys=self.authorized_keys, boot=boot)


def read_fixtures(directories: Iterable[Path]) -> dict[str, Fixture]:
    """The fixtures in ``fixtures/*.yaml`` of these directories of templates (blocking), the later ones over the earlier.

    Raises ConfigError, which names every file that is wrong and every wrong key in it.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    wrong: list[str] = []
    for directory in directories:
        for path in sorted((directory / DIRECTORY).glob("*.yaml")):
            try:
                tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
                wrong.append(f"{path}: {error}")
                continue
            if isinstance(tree, dict):
                found[path.stem] = path, tree
            else:
                wrong.append(f"{path}: it is no mapping")
    fixtures: dict[str, Fixture] = {}
    for name, (path, _) in found.items():
        try:
            fixtures[name] = _checked(_whole(name, found))
        except ValidationError as error:
            wrong += [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        except ConfigError as error:
            wrong.append(f"{path}: {error}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return fixtures


def _whole(name: str, found: Mapping[str, tuple[Path, dict[str, Any]]], depth: int = 0) -> dict[str, Any]:
    """The tree of a fixture laid over the one it is like: tables merge key by key, everything else is replaced."""
    own = found[name][1]
    like = own.get("like")
    if like is None:
        return own
    if like not in found:
        raise ConfigError(f"like: there is no fixture {like!r}")
    if depth > _DEPTH:
        raise ConfigError(f"like: {name} and {like} are like each other without end")
    return merge([("", _whole(like, found, depth + 1)), ("", own)]).values


def _checked(tree: Mapping[str, Any]) -> Fixture:
    fixture = Fixture.model_validate(tree)
    for card in fixture.interfaces:
        if card.subnet is not None and card.subnet not in fixture.subnets:
            raise ConfigError(f"interfaces: {card.name} is on the subnet {card.subnet!r}, which is not told")
    if fixture.method == "image" and fixture.image is None:
        raise ConfigError("method: image, but there is no image")
    return fixture
