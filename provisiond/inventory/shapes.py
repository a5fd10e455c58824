"""What goes over the API about hosts, their builds and their history, and about users. References are by name.

``...Create`` and ``...Update`` are requests (an unknown field is an error), ``...View`` and ``...Summary`` are answers.
In an update a field that is left out stays as it is, and null empties it. Times are UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from provisiond.inventory.fields import (
    DomainName,
    HostName,
    Ip,
    Line,
    Mac,
    Name,
    Parameters,
    Serial,
    Word,
)
from provisiond.inventory.network import NetworkDescription
from provisiond.inventory.storage import StorageDescription

Firmware = Literal["bios", "uefi"]
Method = Literal["image", "installer"]
Architecture = Literal["x86_64", "aarch64"]
Role = Literal["viewer", "operator", "admin"]
PowerSeen = Literal["on", "off"]

# The port a BMC driver uses when none is given; for limits and for showing, never for connecting.
BMC_DRIVERS = ("ipmi", "redfish", "libvirt", "webhook", "fake")


class Request(BaseModel):
    """Base of what comes in."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class View(BaseModel):
    """Base of what goes out."""

    model_config = ConfigDict(frozen=True)


# --- the management controller ------------------------------------------------------------------------


def parse_bmc_url(url: str) -> dict[str, Any]:
    """Split ``driver://user:password@address:port/system`` into the fields of a BMC. ValueError says what is wrong, without the password.

    For libvirt the whole URI of the hypervisor follows ``libvirt+``: ``libvirt+qemu+unix:///system?socket=/run/x#UUID``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(
            "not a BMC URL such as ipmi://user@10.0.0.7:623 (a bracket or the port is wrong)"
        ) from None
    driver, _, rest = parts.scheme.partition("+")
    if driver == "libvirt" and rest:
        address, _, system = url.partition("+")[2].partition("#")
        return {"driver": "libvirt", "address": address, "system": system}
    if not parts.hostname or not driver:
        raise ValueError(
            "not a BMC URL such as ipmi://user@10.0.0.7:623 or redfish://user@bmc.example.org/System-1"
        )
    if parts.query or parts.fragment:
        raise ValueError("a BMC URL has no '?' or '#'; give options as an object instead")
    fields: dict[str, Any] = {
        "driver": driver,
        "address": parts.hostname,
        "port": port,
        "system": unquote(parts.path.lstrip("/")),
    }
    if parts.username:
        fields["username"] = unquote(parts.username)
    if parts.password is not None:
        fields["password"] = unquote(parts.password)
    return fields


def bmc_url(driver: str, address: str, port: int | None, username: str, system: str) -> str:
    """The URL of a BMC as it may be shown: everything but the password."""
    if driver == "libvirt":
        return f"libvirt+{address}#{system}" if system else f"libvirt+{address}"
    user = f"{quote(username, safe='')}@" if username else ""
    place = f"[{address}]" if ":" in address else address
    return (
        f"{driver}://{user}{place}"
        + (f":{port}" if port else "")
        + (f"/{quote(system, safe='/')}" if system else "")
    )


def _bmc_fields(value: Any) -> Any:
    return parse_bmc_url(value.strip()) if isinstance(value, str) else value


class BmcSpec(Request):
    """How to reach a management controller. ``password`` is taken in and never given out; left out in an update, it stays."""

    driver: Word = "ipmi"
    address: Line = Field(min_length=1)
    port: int | None = Field(None, ge=1, le=65535)
    username: Annotated[Word, Field(max_length=64)] = ""
    password: SecretStr | None = Field(None, max_length=128)
    system: Word = ""
    options: dict[Word, Line] = Field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        """What concurrent work on this endpoint is counted by."""
        return f"{self.address}:{self.port or ''}"


BmcInput = Annotated[BmcSpec, BeforeValidator(_bmc_fields, json_schema_input_type=str | BmcSpec)]


class BmcView(View):
    """A management controller as shown; ``has_password`` says whether one is stored."""

    url: str
    driver: str
    address: str
    port: int | None
    username: str
    system: str
    options: dict[str, Any]
    has_password: bool


# --- hosts -----------------------------------------------------------------------------------------------


class InterfaceSpec(Request):
    """A network card. Without ``ip`` one is taken from the subnet's pools; without ``subnet`` the group's subnet counts."""

    name: Annotated[Word, Field(max_length=32)] = ""
    mac: Mac | None = None
    subnet: Name | None = None
    ip: Ip | None = None
    primary: bool | None = None


class InterfaceView(View):
    name: str
    mac: str
    ip: str | None
    subnet: str | None
    primary: bool


class _HostSettings(Request):
    """What a host may say of itself in a create and in an update alike; null inherits from its group."""

    group: Name | None = None
    domain: DomainName | None = None
    operating_system: Name | None = None
    medium: Name | None = None
    image: Name | None = None
    flavor: Name | None = None
    on: Name | None = Field(None, description="The hypervisor to make the host on, as a virtual machine.")
    handover: Word | None = Field(None, description="Handover driver, or 'none'.")
    storage: StorageDescription | None = Field(
        None, description="How its disks are divided (docs/templates/descriptions.md)."
    )
    network: NetworkDescription | None = Field(
        None, description="Bonds, VLANs, bridges and routes over its network cards."
    )
    profile: Name | None = Field(None, description="Hardware profile its machine is compared with.")
    serial: Serial | None = None
    mac: Mac | None = Field(
        None, description="MAC of the primary network card; use interfaces where there are several."
    )
    subnet: Name | None = None
    ip: Ip | None = None
    interfaces: Annotated[list[InterfaceSpec], Field(max_length=64)] | None = None
    bmc: BmcInput | None = None

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.interfaces is not None:
            if self.mac or self.subnet or self.ip:
                raise ValueError(
                    "give either mac, subnet and ip (one network card) or interfaces (several), not both"
                )
            if sum(1 for card in self.interfaces if card.primary) > 1:
                raise ValueError("only one of the interfaces can be primary")
        return self


class HostCreate(_HostSettings):
    """A machine to be known from now on: physical (``mac``, mostly ``bmc``) or virtual (``on`` a hypervisor)."""

    name: HostName
    comment: Line = ""
    architecture: Architecture = "x86_64"
    firmware: Firmware = "bios"
    method: Method | None = Field(
        None, description="How it is built; left out, by what it has: an image, or a medium's installer."
    )
    parameters: Parameters = Field(default_factory=dict)
    priority: int = Field(0, ge=-100, le=100, description="Higher goes first where work has to wait.")
    build: bool = Field(False, description="Build it as soon as it is ready.")


class HostUpdate(_HostSettings):
    """Changes to a host. Only the fields that are given change."""

    name: HostName | None = None
    comment: Line | None = None
    architecture: Architecture | None = None
    firmware: Firmware | None = None
    method: Method | None = None
    parameters: Parameters | None = None
    priority: int | None = Field(None, ge=-100, le=100)


class DeploymentView(View):
    """One build of one host. ``progress`` is in percent."""

    id: str
    number: int
    method: str
    release: str | None = None
    created_at: datetime
    boots: int
    progress: int
    progress_text: str
    built_at: datetime | None
    phoned_home_at: datetime | None
    failed_at: datetime | None
    failure: str
    ended_at: datetime | None
    outcome: str | None


class DeploymentDetail(DeploymentView):
    """A build with what is too long for a list. ``release_number`` is what people call its release."""

    release_number: int | None
    log_tail: str
    host_keys: list[str]
    result: dict[str, Any]


class HardwareSummary(View):
    """What a machine is made of, in a few words. ``at`` is when that last changed, ``seen_at`` when it last said so.

    ``profile`` is what it is compared with, its own or its group's; ``differs`` says where it is not as that expects.
    """

    vendor: str | None
    model: str | None
    serial: str | None
    cpu: str | None
    sockets: int | None
    cores: int | None
    threads: int | None
    memory_mib: int | None
    disks: list[str]
    nics: int
    gpus: int
    switch_port: str | None
    bmc: str | None
    profile: str | None = None
    differs: list[str] = []
    at: datetime
    seen_at: datetime


class HostSummary(View):
    """A host as one line of a list. ``overdue``: it has been in its state for longer than that should take."""

    id: str
    name: str
    state: str
    step: str
    state_since: datetime
    deadline_at: datetime | None
    overdue: bool
    failure: str | None
    attempts: int
    retry_at: datetime | None
    power: PowerSeen | None
    group: str | None
    on: str | None
    mac: str | None
    ip: str | None
    locked: bool
    maintenance: str
    progress: int | None


class HostView(View):
    """Everything known of a host, without secrets. ``retry_at`` is when a failed step is tried again."""

    id: str
    name: str
    comment: str
    state: str
    step: str
    state_since: datetime
    deadline_at: datetime | None
    overdue: bool
    failure: str | None
    failure_kind: str | None
    attempts: int
    retry_at: datetime | None
    version: int
    wanted: str | None
    priority: int
    power: PowerSeen | None
    power_seen_at: datetime | None
    power_wanted: str | None
    locked: bool
    maintenance: str
    group: str | None
    domain: str | None
    operating_system: str | None
    medium: str | None
    image: str | None
    flavor: str | None
    on: str | None
    architecture: str
    firmware: str
    method: str
    handover: str | None
    serial: str | None
    parameters: dict[str, Any]
    storage: dict[str, Any] | None
    network: dict[str, Any] | None
    profile: str | None
    interfaces: list[InterfaceView]
    bmc: BmcView | None
    deployment: DeploymentView | None
    hardware: HardwareSummary | None = Field(
        None, description="What it is made of; only where one host is shown."
    )
    created_at: datetime
    updated_at: datetime


# --- history ---------------------------------------------------------------------------------------------


class EventView(View):
    """One line of the history; ``id`` grows, and following goes by it."""

    id: int
    at: datetime
    host: str
    host_id: str | None
    deployment_id: str | None
    kind: str
    state: str
    step: str
    attempt: int
    duration_ms: int | None
    actor: str
    cause: str
    message: str
    data: dict[str, Any]


# --- who may do what -------------------------------------------------------------------------------------


class UserCreate(Request):
    name: Annotated[Name, Field(max_length=64)]
    role: Role = "viewer"


class UserUpdate(Request):
    role: Role


class UserView(View):
    id: str
    name: str
    role: Role
    created_at: datetime


class TokenCreate(Request):
    """A token for ``user`` (default: whoever asks). ``days`` None never expires."""

    user: Annotated[Name, Field(max_length=64)] | None = None
    name: Word = ""
    days: float | None = Field(None, gt=0, le=36500)


class TokenView(View):
    id: str
    user: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None


class TokenCreated(TokenView):
    """The one time the token itself is shown."""

    token: str
