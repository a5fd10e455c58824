"""What goes over the API about the catalogue: groups, networks, systems, images, places to run on. References are by name.

Each noun has one shape that a create takes; its view is the same with id and times, its update the same with every field
optional (made by ``partial``), laid over what is there and then checked as a whole.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Optional

from pydantic import Field, create_model, model_validator

from provisiond.inventory.fields import AddressRange, Cidr, DomainName, Ip, Line, Name, Parameters, Word
from provisiond.inventory.network import NetworkDescription
from provisiond.inventory.shapes import Architecture, Request, View
from provisiond.inventory.storage import StorageDescription

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Group(Request):
    """A node of the tree of groups; what is left out is inherited from ``parent``."""

    name: Name
    parent: Name | None = None
    operating_system: Name | None = None
    medium: Name | None = None
    image: Name | None = None
    subnet: Name | None = None
    domain: DomainName | None = None
    hypervisor: Name | None = Field(
        None, description="New hosts of the group are virtual machines there, unless they have a MAC."
    )
    flavor: Name | None = None
    handover: Annotated[Word, Field(max_length=32)] | None = Field(
        None, description="Handover driver, or 'none'."
    )
    storage: StorageDescription | None = Field(
        None, description="How disks are divided (docs/templates/descriptions.md)."
    )
    network: NetworkDescription | None = Field(
        None, description="Bonds, VLANs, bridges and routes over network cards."
    )
    profile: Name | None = Field(None, description="Hardware profile its machines are compared with.")
    parameters: Parameters = Field(default_factory=dict)


class Subnet(Request):
    """An IP network. Ranges are written FIRST-LAST or as pairs; hosts get addresses of ``pools``, strangers of ``dynamic``."""

    name: Name
    cidr: Cidr
    gateway: Ip | None = None
    dns: Annotated[list[Ip], Field(max_length=8)] = Field(default_factory=list)
    pools: Annotated[list[AddressRange], Field(max_length=64)] = Field(default_factory=list)
    dynamic: Annotated[list[AddressRange], Field(max_length=64)] = Field(default_factory=list)
    vlan: int | None = Field(None, ge=1, le=4094)
    unknown: Literal["ignore", "discover", "menu"] = Field(
        "ignore",
        description="What an unknown machine is told to boot: its disk, the ramdisk, or what its user chooses.",
    )
    domain: DomainName | None = None
    parameters: Parameters = Field(default_factory=dict)


class Domain(Request):
    """A DNS domain."""

    name: DomainName
    parameters: Parameters = Field(default_factory=dict)


class OperatingSystem(Request):
    """What can be installed."""

    name: Name
    family: Literal[
        "debian", "ubuntu", "redhat", "fedora", "suse", "coreos", "flatcar", "talos", "esxi", "other"
    ]
    version: Annotated[Word, Field(min_length=1, max_length=32)]
    parameters: Parameters = Field(default_factory=dict)


class Medium(Request):
    """Kernel, initrd and mirror of an installer. ``files`` and ``ready`` are filled by 'provisionctl media add'."""

    name: Name
    operating_system: Name
    architecture: Architecture = "x86_64"
    source: Annotated[Line, Field(min_length=1)]
    mirror: Line = ""
    files: Parameters = Field(default_factory=dict)
    verified_by: Annotated[Line, Field(max_length=256)] = ""
    ready: bool = False


class Image(Request):
    """A disk image; ``path`` is below state.dir/images or absolute, ``size`` in bytes as it lies there."""

    name: Name
    operating_system: Name | None = None
    path: Annotated[Line, Field(min_length=1)]
    format: Literal["raw", "qcow2", "tar"]
    sha256: Sha256
    size: int = Field(ge=1, lt=1 << 63)
    architecture: Architecture = "x86_64"
    user: Annotated[Word, Field(min_length=1, max_length=64)] = "root"
    parameters: Parameters = Field(default_factory=dict)


class Hypervisor(Request):
    """A place virtual machines are made; their network cards go to ``bridge`` or, without one, to ``network``."""

    name: Name
    driver: Annotated[Word, Field(min_length=1, max_length=32)] = Field(
        "libvirt", description="Compute driver; fake where the URI begins with fake://."
    )
    uri: Annotated[Line, Field(min_length=1)]
    pool: Annotated[Word, Field(min_length=1)] = "default"
    bridge: Annotated[Word, Field(max_length=64)] | None = None
    network: Word | None = None

    @model_validator(mode="before")
    @classmethod
    def _driver_by_uri(cls, given: Any) -> Any:
        """``fake://`` can mean one driver only; libvirt would try it for ever."""
        if isinstance(given, dict) and str(given.get("uri", "")).startswith("fake://"):
            return {"driver": "fake", **given}
        return given


class Flavor(Request):
    """The size of a virtual machine."""

    name: Name
    vcpus: int = Field(1, ge=1, le=1024)
    memory_mib: int = Field(1024, ge=64, le=16 << 20)
    disk_gib: int = Field(10, ge=1, le=1 << 20)


class Identified(View):
    """What every view of a row has besides."""

    id: str
    created_at: datetime
    updated_at: datetime


class GroupView(Identified, Group):
    """A group as shown."""


class SubnetView(Identified, Subnet):
    """A subnet as shown."""


class DomainView(Identified, Domain):
    """A domain as shown."""


class OperatingSystemView(Identified, OperatingSystem):
    """An operating system as shown."""


class MediumView(Identified, Medium):
    """A medium as shown."""


class ImageView(Identified, Image):
    """An image as shown. ``content`` is disk or tree (a root file system); ``verified_by`` says what vouched for it."""

    content: str
    verified_by: str
    partitions: list[dict[str, Any]]


class HypervisorView(Identified, Hypervisor):
    """A hypervisor as shown."""


class FlavorView(Identified, Flavor):
    """A flavor as shown."""


class ReleaseView(View):
    """A set of templates as it was taken in; ``files`` are their paths."""

    id: str
    digest: str
    git_commit: str | None
    current: bool
    created_at: datetime
    files: list[str]


def partial(shape: type[Request]) -> type[Request]:
    """The update of a shape: every field optional, none with a default that would count as given."""
    fields: dict[str, Any] = {
        name: (Optional[_annotation(field)], Field(None, description=field.description))  # noqa: UP045
        for name, field in shape.model_fields.items()
    }
    return create_model(
        f"{shape.__name__}Update", __base__=Request, __doc__=f"Changes to a {shape.__name__}.", **fields
    )


def _annotation(field: Any) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
