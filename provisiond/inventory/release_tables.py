"""The tables of template releases: where they come from, which is current where, who was served what, and how they are tried out.

A release never changes: the database itself refuses (immutable.py). Pointers move; each move is a row that stays.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, ForeignKey, Index, String, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from provisiond.inventory.immutable import guard
from provisiond.inventory.tables import BigId, Row, json_column, maybe_time_column, table, time_column

EVERYWHERE = "*"
"""The place of a pointer that counts where no group's does."""


class TemplateSource(Row, table=True):
    """Where templates come from: a directory, or a git repository at ``ref`` (branch, tag or commit).

    ``secret_key`` is a deploy key (OpenSSH private key), encrypted, and ``known_hosts`` whom it may talk to;
    ``secret_hook`` what a webhook's sender proves itself with, encrypted.
    """

    __tablename__ = "template_source"
    name: str = Field(unique=True, max_length=128)
    kind: str = Field(max_length=16)  # directory | git
    location: str = Field(max_length=1024)  # absolute path or URL
    ref: str = Field(default="", max_length=256)
    subdirectory: str = Field(default="", max_length=256)
    poll_seconds: int | None = None
    secret_key: str = Field(default="", sa_type=Text)
    known_hosts: str = Field(default="", sa_type=Text)
    secret_hook: str = Field(default="", sa_type=Text)
    polled_at: datetime | None = maybe_time_column()
    due_at: datetime | None = maybe_time_column(index=True)
    commit: str | None = Field(default=None, max_length=64)  # the last one seen
    failure: str = Field(default="", sa_type=Text)


class Release(Row, table=True):
    """An immutable set of templates, pinned by digest. ``number`` counts from 1 and is how people call it.

    ``lint`` is what was found at import: ``passed``, ``failed`` and ``skipped`` count renderings, ``problems`` are {file, line,
    message}, ``skips`` say who could not look, ``forced`` is whether problems were overridden. Empty: nobody looked.
    """

    __tablename__ = "template_release"
    number: int = Field(unique=True)
    digest: str = Field(unique=True, max_length=64)
    source: str = Field(
        default="", max_length=128
    )  # the source's name at import; "" for the configured directory
    git_commit: str | None = Field(default=None, max_length=64)
    author: str = Field(default="", max_length=256)
    message: str = Field(default="", sa_type=Text)
    imported_by: str = Field(default="", max_length=128)
    lint: dict[str, Any] = json_column()
    files: dict[str, Any] = json_column()  # path -> text


class ReleasePointer(SQLModel, table=True):
    """Which release is current: ``place`` is a group's id, or EVERYWHERE."""

    __tablename__ = "release_pointer"
    place: str = Field(primary_key=True, max_length=36)
    release_id: str = Field(foreign_key="template_release.id")
    move_id: int = Field(sa_type=BigId)  # the newest PointerMove of this place
    moved_at: datetime = time_column()


class PointerMove(SQLModel, table=True):
    """One move of a pointer, kept for ever. ``release_id`` None: the group's own pointer was taken away; ``back``: it took one back."""

    __tablename__ = "pointer_move"
    __table_args__ = (Index("ix_pointer_move_place", "place", "id"), {"sqlite_autoincrement": True})
    id: int | None = Field(default=None, sa_type=BigId, primary_key=True)
    place: str = Field(max_length=36)
    release_id: str | None = Field(default=None, foreign_key="template_release.id")
    before_id: str | None = Field(default=None, foreign_key="template_release.id")
    at: datetime = time_column()
    actor: str = Field(default="", max_length=128)
    reason: str = Field(default="", max_length=1024)
    back: bool = False
    rollout_id: str | None = Field(default=None, max_length=36)


class ServedFile(SQLModel, table=True):
    """A text a machine was served during a build. ``digest`` is SHA-256 of the exact bytes, ``text`` has its secrets masked."""

    __tablename__ = "served_file"
    deployment_id: str = Field(
        sa_column=Column(String(36), ForeignKey("deployment.id", ondelete="CASCADE"), primary_key=True)
    )
    kind: str = Field(primary_key=True, max_length=64)
    digest: str = Field(primary_key=True, max_length=64)
    template: str = Field(default="", max_length=256)
    size: int = 0
    times: int = 1
    first_at: datetime = time_column()
    last_at: datetime = time_column()
    text: str = Field(default="", sa_type=Text)


class Flag(Row, table=True):
    """A feature flag that templates ask for: on for ``percent`` of all hosts (by a hash of host and flag), and for named groups and hosts."""

    __tablename__ = "flag"
    name: str = Field(unique=True, max_length=64)
    about: str = Field(default="", max_length=1024)
    percent: float = 0.0
    groups: list[str] = json_column(list)  # ids; groups below are in
    hosts: list[str] = json_column(list)  # ids
    off_hosts: list[str] = json_column(list)  # ids; off there whatever else says


class ShadowRun(Row, table=True):
    """One dark launch of a release: rendered for every host of ``group_id`` (None: all) beside what is current, and served to nobody.

    ``state``: running | cancelled | done | failed. ``cursor`` is the last host id that is settled: a restart goes on after it.
    """

    __tablename__ = "shadow_run"
    number: int = Field(unique=True)
    release_id: str = Field(foreign_key="template_release.id")
    group_id: str | None = Field(default=None, max_length=36)  # no key: a group may go, its past stays
    group_name: str = Field(default="", max_length=128)
    actor: str = Field(default="", max_length=128)
    state: str = Field(default="running", max_length=16, index=True)
    validate_results: bool = True
    boot: int = 0  # how many throw-away machines are to be booted
    cursor: str = Field(default="", max_length=36)
    total: int = 0
    done: int = 0
    unchanged: int = 0
    changed: int = 0
    failing: int = 0
    size: int = 0  # bytes rendered
    seconds: float = 0.0
    ended_at: datetime | None = maybe_time_column()
    failure: str = Field(default="", sa_type=Text)
    lease_owner: str | None = Field(default=None, max_length=80)
    lease_expires: datetime | None = maybe_time_column()
    report: dict[str, Any] = json_column()  # what a run adds at its end: validators, boots


class ShadowDiff(SQLModel, table=True):
    """One difference that hosts of a run have in common. ``kind``: changed | failing | failing-already (what is current fails too)."""

    __tablename__ = "shadow_diff"
    run_id: str = Field(
        sa_column=Column(String(36), ForeignKey("shadow_run.id", ondelete="CASCADE"), primary_key=True)
    )
    digest: str = Field(primary_key=True, max_length=64)
    kind: str = Field(max_length=16)
    template: str = Field(default="", max_length=256)
    text: str = Field(default="", sa_type=Text)
    hosts: int = 0


class ShadowResult(SQLModel, table=True):
    """What a run found for one host. ``outcome``: unchanged | changed | failing; ``diffs`` are digests of ShadowDiff.

    ``milliseconds`` and ``size`` (bytes) are of the release's renderings, ``..._before`` of what is current.
    """

    __tablename__ = "shadow_result"
    run_id: str = Field(
        sa_column=Column(String(36), ForeignKey("shadow_run.id", ondelete="CASCADE"), primary_key=True)
    )
    host_id: str = Field(primary_key=True, max_length=36)
    host_name: str = Field(default="", max_length=63)
    outcome: str = Field(max_length=16)
    diffs: list[str] = json_column(list)
    milliseconds: float = 0.0
    milliseconds_before: float = 0.0
    size: int = 0
    size_before: int = 0


class Rollout(Row, table=True):
    """Bringing a release to a group's hosts in portions; see rollouts/.

    ``state``: running | waiting (for an approval) | paused | done | going-back | back | cancelled. ``threshold`` is the hex of the
    greatest host hash (SHA-256 of seed and host id) that the present step takes in: pure, stable, and later hosts fall in or out by it.
    """

    __tablename__ = "rollout"
    __table_args__ = (UniqueConstraint("active_place"),)
    number: int = Field(unique=True)
    group_id: str | None = Field(default=None, max_length=36)  # no key: a group may go, its past stays
    group_name: str = Field(default="", max_length=128)
    active_place: str | None = Field(
        default=None, max_length=36
    )  # the place while it is not over: one at a time
    release_id: str = Field(foreign_key="template_release.id")
    before_id: str | None = Field(default=None, foreign_key="template_release.id")
    steps: list[str] = json_column(list)  # "1", "5%"
    gates: list[str] = json_column(list)  # as they were written
    window_seconds: int = 1800
    rebuild: int = 0  # hosts rebuilt at a time; 0: none
    rebuild_back: bool = False  # going back rebuilds what was built with the release
    min_builds: int = 1  # builds a step must have seen before its gates are decided
    seed: str = Field(default="", max_length=64)
    actor: str = Field(default="", max_length=128)
    state: str = Field(default="running", max_length=16, index=True)
    step: int = 0  # index into steps; -1 before the first
    step_since: datetime | None = maybe_time_column()
    threshold: str = Field(default="", max_length=64)
    version: int = 1
    due_at: datetime | None = maybe_time_column(index=True)
    lease_owner: str | None = Field(default=None, max_length=80)
    lease_expires: datetime | None = maybe_time_column()
    ended_at: datetime | None = maybe_time_column()
    why: str = Field(default="", sa_type=Text)
    work: dict[str, Any] = json_column()  # what a step has found so far, for whoever goes on with it
    report: dict[str, Any] = json_column()


class RolloutHost(SQLModel, table=True):
    """A host that a rollout has asked to be rebuilt: the key is what makes it asked once. ``purpose``: forth | back.

    ``number`` is that of its last build when it was asked: a greater one came of it, whatever any clock says.
    """

    __tablename__ = "rollout_host"
    rollout_id: str = Field(
        sa_column=Column(String(36), ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    )
    host_id: str = Field(primary_key=True, max_length=36)  # no key: a host may go, its past stays
    purpose: str = Field(primary_key=True, max_length=8)
    step: int = 0
    number: int = 0
    at: datetime = time_column()


guard(table(Release), "id", "number", "digest")
guard(table(PointerMove), "id")
