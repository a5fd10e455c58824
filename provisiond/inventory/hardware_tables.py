"""The tables of real hardware: what machines are made of, who of them runs the ramdisk, what it is to do there, and what came of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.types import BigInteger
from sqlmodel import Field, SQLModel

from provisiond.inventory.immutable import guard
from provisiond.inventory.tables import (
    BigId,
    Row,
    json_column,
    maybe_json_column,
    maybe_time_column,
    table,
    time_column,
)


class AgentSession(SQLModel, table=True):
    """One boot of the ramdisk by one machine: its ticket, once used up, and the secret it proves itself with from then on.

    ``id`` is the ticket's. ``secret_hash`` is SHA-256 of the secret that the agent made. ``mac`` is the card that the ticket was
    handed to, ``macs`` and ``serial`` what the machine said of itself at its claim. ``host_id`` None: not yet a host.
    """

    __tablename__ = "agent_session"
    id: str = Field(primary_key=True, max_length=36)
    host_id: str | None = Field(
        default=None,
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=True, index=True),
    )
    mac: str = Field(default="", max_length=17)
    secret_hash: str = Field(max_length=64)
    macs: list[str] = json_column(list)
    serial: str | None = Field(default=None, max_length=128)
    machine_uuid: str | None = Field(default=None, max_length=36)
    address: str = Field(default="", max_length=64)  # where it asked from
    facts_at: datetime | None = maybe_time_column()
    claimed_at: datetime = time_column()
    seen_at: datetime = time_column(index=True)
    ended_at: datetime | None = maybe_time_column()


class Task(Row, table=True):
    """Something that a host does in the ramdisk besides being built: ``kind`` inspect | erase | rescue. Host.task_id is the open one.

    ``options`` are what was asked (tests, mode, keys); ``secret`` what only the machine may be told, encrypted; ``result`` what the
    agent said at its end.
    """

    __tablename__ = "ramdisk_task"
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    kind: str = Field(max_length=16)
    options: dict[str, Any] = json_column()
    secret: str = Field(default="", sa_type=Text)
    actor: str = Field(default="", max_length=128)
    boots: int = 0
    started_at: datetime | None = maybe_time_column()  # the agent has taken it up
    progress: int = 0  # percent
    progress_text: str = Field(default="", max_length=256)
    done_bytes: int = Field(default=0, sa_type=BigInteger)
    total_bytes: int = Field(default=0, sa_type=BigInteger)
    done_at: datetime | None = maybe_time_column()
    failed_at: datetime | None = maybe_time_column()
    failure: str = Field(default="", sa_type=Text)
    log_tail: str = Field(default="", sa_type=Text)
    result: dict[str, Any] = json_column()
    ended_at: datetime | None = maybe_time_column()  # the host has left it


class Hardware(SQLModel, table=True):
    """The facts of a host (facts.py), a row for each change: the newest is what it is made of now, the others its past."""

    __tablename__ = "hardware"
    __table_args__ = (Index("ix_hardware_host", "host_id", "id"),)
    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False)
    )
    at: datetime = time_column()
    seen_at: datetime = time_column()  # last reported the same
    digest: str = Field(max_length=64)
    facts: dict[str, Any] = json_column()


class HardwareProfile(Row, table=True):
    """What machines of one kind (SKU) are expected to be made of: ``expected`` maps a place in the facts to what is to be there."""

    __tablename__ = "hardware_profile"
    name: str = Field(unique=True, max_length=128)
    about: str = Field(default="", max_length=1024)
    expected: dict[str, Any] = json_column()


class DiscoveryRule(Row, table=True):
    """What becomes of a discovered machine: the rule of the highest ``priority`` whose ``expression`` holds for its facts.

    ``approve`` takes it in at once, ``build`` builds it then. ``bmc_username`` not empty: a user of that name with a random password
    is made on its controller.
    """

    __tablename__ = "discovery_rule"
    name: str = Field(unique=True, max_length=128)
    about: str = Field(default="", max_length=1024)
    priority: int = Field(default=0, index=True)
    enabled: bool = True
    expression: str = Field(sa_type=Text)
    group_id: str | None = Field(default=None, foreign_key="host_group.id")
    profile_id: str | None = Field(default=None, foreign_key="hardware_profile.id")
    name_pattern: str = Field(default="", max_length=256)
    storage: dict[str, Any] | None = maybe_json_column()  # see storage.py
    network: dict[str, Any] | None = maybe_json_column()  # see network.py
    parameters: dict[str, Any] = json_column()
    approve: bool = False
    build: bool = False
    bmc_username: str = Field(default="", max_length=16)
    taken: int = 0  # machines it was applied to


class HardwareTest(SQLModel, table=True):
    """The result of one hardware test: ``verdict`` pass | fail | degraded."""

    __tablename__ = "hardware_test"
    __table_args__ = (UniqueConstraint("task_id", "name"),)
    id: int | None = Field(default=None, primary_key=True, sa_type=BigId)
    host_id: str = Field(
        sa_column=Column(String(36), ForeignKey("host.id", ondelete="CASCADE"), nullable=False, index=True)
    )
    task_id: str = Field(max_length=36)
    name: str = Field(max_length=64)
    at: datetime = time_column()
    verdict: str = Field(max_length=16)
    seconds: float = 0.0
    output: str = Field(default="", sa_type=Text)


class Erasure(SQLModel, table=True):
    """The record of one disk's erasure. It outlives its host and never changes; what a certificate is made from.

    ``method`` such as nvme-format, ata-secure-erase, discard, overwrite. ``disk_size`` in bytes. ``passed`` False: it was tried.
    """

    __tablename__ = "erasure"
    __table_args__ = (Index("ix_erasure_host_name", "host_name"),)
    id: str = Field(primary_key=True, max_length=36)
    task_id: str = Field(max_length=36, index=True)
    host_id: str = Field(max_length=36, index=True)  # no key: a host may go, its record stays
    host_name: str = Field(max_length=63)
    host_serial: str | None = Field(default=None, max_length=128)
    disk_name: str = Field(max_length=64)
    disk_model: str = Field(default="", max_length=128)
    disk_serial: str = Field(default="", max_length=128)
    disk_wwn: str = Field(default="", max_length=64)
    disk_size: int = Field(sa_type=BigInteger)
    method: str = Field(max_length=32)
    started_at: datetime = time_column()
    ended_at: datetime = time_column()
    verified: bool = False
    passed: bool = True
    message: str = Field(default="", max_length=1024)
    actor: str = Field(default="", max_length=128)


guard(table(Erasure), "id")
