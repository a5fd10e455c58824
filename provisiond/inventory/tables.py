"""The tables: what is known of every host, its hardware, its network and its past.

Ids are UUID strings, made by whoever inserts the row; a host's id is also its virtual machine's UUID. Times are UTC and aware.
No work is done here: rows are plain data, rules stand beside them in their own modules.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import BigInteger
from sqlmodel import Field, SQLModel

# Constraints have names, so that later migrations can drop them on SQLite too.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Json = JSON().with_variant(JSONB(), "postgresql")
MaybeJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
BigId = BigInteger().with_variant(
    Integer(), "sqlite"
)  # SQLite counts up by itself only on INTEGER PRIMARY KEY


def utcnow() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A fresh random UUID as 36 characters."""
    return str(uuid.uuid4())


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on both databases: timestamptz on PostgreSQL, sortable ISO text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("times are aware and in UTC")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def time_column(**options: Any) -> Any:
    return Field(default_factory=utcnow, sa_type=UtcDateTime, **options)


def maybe_time_column(**options: Any) -> Any:
    return Field(default=None, sa_type=UtcDateTime, nullable=True, **options)


def maybe_json_column() -> Any:
    return Field(default=None, sa_type=MaybeJson, nullable=True)


def json_column(factory: Any = dict) -> Any:
    return Field(default_factory=factory, sa_type=Json, nullable=False)


class Row(SQLModel):
    """Common to every named thing."""

    id: str = Field(default_factory=new_id, primary_key=True, max_length=36)
    created_at: datetime = time_column()
    updated_at: datetime = time_column()


# --- the network ---------------------------------------------------------------------------------------


class Domain(Row, table=True):
    """A DNS domain; hosts in it are NAME.DOMAIN."""

    __tablename__ = "domain"
    name: str = Field(unique=True, max_length=253)
    parameters: dict[str, Any] = json_column()


class Subnet(Row, table=True):
    """An IP network. ``pools`` are [first, last] pairs that host addresses are taken from; ``dynamic`` those DHCP gives to strangers."""

    __tablename__ = "subnet"
    name: str = Field(unique=True, max_length=128)
    cidr: str = Field(unique=True, max_length=64)
    gateway: str | None = Field(default=None, max_length=64)
    dns: list[str] = json_column(list)
    pools: list[list[str]] = json_column(list)
    dynamic: list[list[str]] = json_column(list)
    vlan: int | None = None
    unknown: str = Field(
        default="ignore", max_length=16
    )  # what an unknown machine gets: ignore (local disk) | discover | menu (its user chooses)
    domain_id: str | None = Field(default=None, foreign_key="domain.id")
    parameters: dict[str, Any] = json_column()


class Address(Row, table=True):
    """An IP address that is taken. The unique constraint, not any process's memory, is what makes it taken once."""

    __tablename__ = "address"
    __table_args__ = (UniqueConstraint("subnet_id", "ip"), UniqueConstraint("subnet_id", "position"))
    subnet_id: str = Field(foreign_key="subnet.id")
    ip: str = Field(max_length=64)
    position: int = Field(
        sa_type=BigInteger
    )  # where in the subnet, see addresses.py; free ones are searched by it
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False, index=True)
    )


# --- the catalogue --------------------------------------------------------------------------------------


class OperatingSystem(Row, table=True):
    """What can be installed: ``name`` such as debian-12; ``family`` debian, redhat ...; ``version`` as its vendor writes it."""

    __tablename__ = "operating_system"
    name: str = Field(unique=True, max_length=128)
    family: str = Field(max_length=32)
    version: str = Field(max_length=32)
    parameters: dict[str, Any] = json_column()


class Medium(Row, table=True):
    """Kernel, initrd and mirror of an installer. ``files`` maps kernel and initrd to {path, sha256, bytes} below state.dir/media."""

    __tablename__ = "medium"
    name: str = Field(unique=True, max_length=128)
    operating_system_id: str = Field(foreign_key="operating_system.id")
    architecture: str = Field(default="x86_64", max_length=16)
    source: str = Field(max_length=1024)
    mirror: str = Field(default="", max_length=1024)
    files: dict[str, Any] = json_column()
    verified_by: str = Field(default="", max_length=256)
    ready: bool = False


class Image(Row, table=True):
    """A disk image. ``path`` below state.dir/images, or absolute; ``format`` raw or qcow2, never guessed. ``block_map`` says which MiB are used."""

    __tablename__ = "image"
    name: str = Field(unique=True, max_length=128)
    operating_system_id: str | None = Field(default=None, foreign_key="operating_system.id")
    path: str = Field(max_length=1024)
    format: str = Field(max_length=16)
    sha256: str = Field(max_length=64)
    size: int = Field(sa_type=BigInteger)
    architecture: str = Field(default="x86_64", max_length=16)
    user: str = Field(default="root", max_length=64)  # whom handover logs in as
    content: str = Field(default="disk", max_length=16)  # disk | tree: a root file system in a tar
    zstd: str = Field(default="", max_length=1024)  # the used blocks compressed, below state.dir/images
    partitions: list[dict[str, Any]] = json_column(list)
    verified_by: str = Field(default="", max_length=256)
    parameters: dict[str, Any] = json_column()


class Hypervisor(Row, table=True):
    """A place virtual machines are made. ``driver`` is a compute driver; ``network`` or ``bridge`` is where NICs go by default."""

    __tablename__ = "hypervisor"
    name: str = Field(unique=True, max_length=128)
    driver: str = Field(default="libvirt", max_length=32)
    uri: str = Field(max_length=1024)
    pool: str = Field(default="default", max_length=128)
    bridge: str | None = Field(default=None, max_length=64)
    network: str | None = Field(default=None, max_length=128)


class Flavor(Row, table=True):
    """The size of a virtual machine."""

    __tablename__ = "flavor"
    name: str = Field(unique=True, max_length=128)
    vcpus: int = 1
    memory_mib: int = 1024
    disk_gib: int = 10


# --- hosts -------------------------------------------------------------------------------------------------


class HostGroup(Row, table=True):
    """A node of the tree of groups; parameters and settings left empty are inherited from the parent."""

    __tablename__ = "host_group"
    name: str = Field(unique=True, max_length=128)
    parent_id: str | None = Field(default=None, foreign_key="host_group.id")
    operating_system_id: str | None = Field(default=None, foreign_key="operating_system.id")
    medium_id: str | None = Field(default=None, foreign_key="medium.id")
    image_id: str | None = Field(default=None, foreign_key="image.id")
    subnet_id: str | None = Field(default=None, foreign_key="subnet.id")
    domain_id: str | None = Field(default=None, foreign_key="domain.id")
    hypervisor_id: str | None = Field(default=None, foreign_key="hypervisor.id")
    flavor_id: str | None = Field(default=None, foreign_key="flavor.id")
    handover: str | None = Field(default=None, max_length=32)
    storage: dict[str, Any] | None = maybe_json_column()  # see storage.py; None inherits
    network: dict[str, Any] | None = maybe_json_column()  # see network.py; None inherits
    profile_id: str | None = Field(default=None, foreign_key="hardware_profile.id")  # None inherits
    parameters: dict[str, Any] = json_column()


class Host(Row, table=True):
    """A machine, and everything the engine knows of its way: this row is the only truth about it.

    ``state`` and ``step`` say where it is; ``due_at`` when a worker shall look next (NULL: at rest until something happens);
    ``version`` fences writes; ``wake`` counts arrivals (callbacks, verbs) so that none is missed between a step's look and
    its parking; ``lease_owner`` and ``lease_expires`` say which daemon works on it now.
    """

    __tablename__ = "host"
    __table_args__ = (
        Index(
            "ix_host_due",
            "due_at",
            sqlite_where=Column("due_at").isnot(None),
            postgresql_where=Column("due_at").isnot(None),
        ),
        Index(
            "ix_host_leased",
            "lease_expires",
            sqlite_where=Column("lease_owner").isnot(None),
            postgresql_where=Column("lease_owner").isnot(None),
        ),
    )

    # who it is and what is wanted of it
    name: str = Field(unique=True, max_length=63)
    comment: str = Field(default="", max_length=1024)
    serial: str | None = Field(default=None, unique=True, max_length=128)  # its maker's serial number
    machine_uuid: str | None = Field(
        default=None, max_length=36, index=True
    )  # what its firmware calls it; not unique, as some makers give all of theirs the same
    architecture: str = Field(default="x86_64", max_length=16)
    firmware: str = Field(default="bios", max_length=8)  # bios | uefi
    method: str = Field(default="image", max_length=16)  # how it is built: image | installer
    group_id: str | None = Field(default=None, foreign_key="host_group.id", index=True)
    operating_system_id: str | None = Field(default=None, foreign_key="operating_system.id")
    medium_id: str | None = Field(default=None, foreign_key="medium.id")
    image_id: str | None = Field(default=None, foreign_key="image.id")
    domain_id: str | None = Field(default=None, foreign_key="domain.id")
    hypervisor_id: str | None = Field(default=None, foreign_key="hypervisor.id", index=True)
    flavor_id: str | None = Field(default=None, foreign_key="flavor.id")
    handover: str | None = Field(default=None, max_length=32)  # driver, "none", or NULL to inherit
    storage: dict[str, Any] | None = maybe_json_column()  # see storage.py; None inherits
    network: dict[str, Any] | None = maybe_json_column()  # see network.py; None inherits
    profile_id: str | None = Field(default=None, foreign_key="hardware_profile.id")  # None inherits
    parameters: dict[str, Any] = json_column()
    power: str | None = Field(default=None, max_length=8)  # last power state seen: on | off
    power_seen_at: datetime | None = maybe_time_column()
    power_wanted: str | None = Field(
        default=None, max_length=8
    )  # asked by an operator, not yet done: on | off | cycle | reset
    locked: bool = False
    maintenance: str = Field(default="", max_length=1024)  # why nobody may touch it now

    # where it is on its way
    state: str = Field(default="enrolled", max_length=16, index=True)
    step: str = Field(default="", max_length=32)
    state_since: datetime = time_column()
    step_since: datetime | None = maybe_time_column()  # when the step was begun; NULL: not begun
    wanted: str | None = Field(
        default=None, max_length=16
    )  # verb to follow as soon as the host is ready: build
    version: int = 1
    wake: int = 0
    due_at: datetime | None = maybe_time_column()
    deadline_at: datetime | None = maybe_time_column()
    priority: int = 0
    limit_key: str | None = Field(default=None, max_length=256)
    lease_owner: str | None = Field(default=None, max_length=80)
    lease_expires: datetime | None = maybe_time_column()
    attempts: int = 0
    failure: str | None = Field(default=None, sa_type=Text, nullable=True)
    failure_kind: str | None = Field(default=None, max_length=32)
    deployment_id: str | None = Field(default=None, max_length=36)  # the newest deployment
    task_id: str | None = Field(default=None, max_length=36)  # what it is to do in the ramdisk now


class Interface(Row, table=True):
    """A network card of a host. ``ip`` is its reserved address; the one that is ``primary`` is booted from."""

    __tablename__ = "interface"
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    name: str = Field(default="", max_length=32)
    mac: str = Field(unique=True, max_length=17)  # lower case, colons
    ip: str | None = Field(default=None, max_length=64, index=True)
    subnet_id: str | None = Field(default=None, foreign_key="subnet.id")
    primary: bool = True


class Bmc(Row, table=True):
    """The management controller of a host; ``secret`` is its password, encrypted (see secrets.py)."""

    __tablename__ = "bmc"
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False, unique=True)
    )
    driver: str = Field(default="ipmi", max_length=32)
    address: str = Field(max_length=1024)
    port: int | None = None
    username: str = Field(default="", max_length=64)
    secret: str = Field(default="", sa_type=Text)
    system: str = Field(default="", max_length=128)
    options: dict[str, Any] = json_column()


class Deployment(Row, table=True):
    """One build of one host, pinned to one release. Callbacks of the machine land here.

    ``token_hash`` is SHA-256 of the boot token, whose text only the machine knows; ``secret_seed`` is the encrypted token so that
    the daemon can put it into boot files again after a restart.
    """

    __tablename__ = "deployment"
    __table_args__ = (Index("ix_deployment_release", "release_id", "created_at"),)
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    number: int = 1
    release_id: str | None = Field(default=None, foreign_key="template_release.id")
    flags: dict[str, bool] | None = maybe_json_column()  # feature flags as they were at its start
    method: str = Field(default="image", max_length=16)
    token_hash: str = Field(default="", max_length=64, index=True)
    secret_seed: str = Field(default="", sa_type=Text)
    token_expires: datetime | None = maybe_time_column()
    boots: int = 0
    progress: int = 0  # percent
    progress_text: str = Field(default="", max_length=256)
    built_at: datetime | None = maybe_time_column()
    phoned_home_at: datetime | None = maybe_time_column()
    failed_at: datetime | None = maybe_time_column()
    failure: str = Field(default="", sa_type=Text)
    log_tail: str = Field(default="", sa_type=Text)
    host_keys: list[str] = json_column(list)
    runs: int = 1  # which handover run this is: raised by configure and retry
    handover_offset: int = 0
    result: dict[str, Any] = json_column()  # what the handover reported
    ended_at: datetime | None = maybe_time_column()
    outcome: str | None = Field(default=None, max_length=16)  # active | failed | cancelled | replaced


class Event(SQLModel, table=True):
    """One line of the history, written in the transaction that changed the host. Never changed afterwards.

    ``kind``: host.created, state.changed, step.started, step.ended, step.failed, step.interrupted, step.left, callback.*, power.*,
    lease.*, handover.output, intent.<verb>, ... ``key`` makes a delivery idempotent: the same key is stored once.
    """

    __tablename__ = "event"
    __table_args__ = (Index("ix_event_host", "host_id", "id"), {"sqlite_autoincrement": True})
    id: int | None = Field(default=None, sa_type=BigId, primary_key=True)
    at: datetime = time_column()
    host_id: str | None = Field(default=None, max_length=36)
    host_name: str = Field(default="", max_length=63)
    deployment_id: str | None = Field(default=None, max_length=36)
    kind: str = Field(max_length=32, index=True)
    state: str = Field(default="", max_length=16)
    step: str = Field(default="", max_length=32)
    attempt: int = 0
    duration_ms: int | None = None
    actor: str = Field(default="", max_length=128)  # user:NAME, machine, engine, dhcp, hypervisor
    cause: str = Field(default="", max_length=256)
    message: str = Field(default="", sa_type=Text)
    data: dict[str, Any] = json_column()
    key: str | None = Field(default=None, max_length=128, unique=True)


# --- who may do what -------------------------------------------------------------------------------------------


class User(Row, table=True):
    """Somebody, with a role: viewer < operator < admin."""

    __tablename__ = "user"
    name: str = Field(unique=True, max_length=64)
    role: str = Field(default="viewer", max_length=16)


class Token(Row, table=True):
    """An API token of a user. Only its SHA-256 is stored: the token is 256 random bits, so a slow hash would add nothing."""

    __tablename__ = "token"
    user_id: str = Field(
        sa_column=Column(String(36), ForeignKey("user.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    name: str = Field(default="", max_length=128)
    hash: str = Field(unique=True, max_length=64)
    expires_at: datetime | None = maybe_time_column()
    used_at: datetime | None = maybe_time_column()


class Idempotency(SQLModel, table=True):
    """The answer once given to a create request with an Idempotency-Key, to be given again to its repetition."""

    __tablename__ = "idempotency"
    key: str = Field(primary_key=True, max_length=200)  # user id + ":" + the client's key
    request_hash: str = Field(max_length=64)
    status: int
    body: dict[str, Any] = json_column()
    created_at: datetime = time_column(index=True)


class Setting(SQLModel, table=True):
    """Small facts of the installation: global parameters (``parameters``), schema marks."""

    __tablename__ = "setting"
    name: str = Field(primary_key=True, max_length=64)
    value: dict[str, Any] = json_column()


def table(model: type[SQLModel]) -> Table:
    """The Core table of a model, for statements on hot paths."""
    return cast(Table, model.__table__)  # type: ignore[attr-defined]


def new_row(model: type[SQLModel], **values: Any) -> dict[str, Any]:
    """A whole row for a Core insert: ``values``, and the model's defaults for the rest."""
    return {
        name: values[name] if name in values else field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }
