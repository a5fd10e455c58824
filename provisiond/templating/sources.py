"""Sources: where releases come from, a directory or a git repository; what is known of them, and how they are read.

Looking at a source costs one ``git ls-remote`` while nothing has changed there. Its secrets are encrypted and shown to nobody.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.config import Settings
from provisiond.errors import ConfigError, FieldError, Invalid, NotFound
from provisiond.inventory import history
from provisiond.inventory.fields import Line, Name
from provisiond.inventory.release_tables import TemplateSource
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import Request, View
from provisiond.inventory.store import EVENTS, SOURCES, Store
from provisiond.inventory.tables import new_row, table, utcnow
from provisiond.templating.catalogue import commit_of, read_files
from provisiond.templating.fixtures import DIRECTORY
from provisiond.templating.git import Git, Repository, below, wrong_ref, wrong_url
from provisiond.templating.imports import Imported, Origin, belongs, import_release

_source = table(TemplateSource)
Poll = Field(
    None,
    ge=10,
    le=7 * 86400,
    description="Seconds between two looks; null: only when asked, or by a webhook.",
)
Key = Field(
    None,
    max_length=32768,
    description="Deploy key: an OpenSSH private key without a passphrase. Never shown.",
)
Hook = Field(
    None,
    min_length=16,
    max_length=256,
    description="What a webhook's sender proves itself with. Never shown.",
)


class SourceCreate(Request):
    """``location`` is an absolute path on the daemon's machine, or a URL of git."""

    name: Name
    kind: Literal["directory", "git"]
    location: Line = Field(min_length=1, max_length=1024)
    ref: Line = Field("", max_length=256)
    subdirectory: Line = Field("", max_length=256)
    poll_seconds: int | None = Poll
    key: SecretStr | None = Key
    known_hosts: str = Field("", max_length=65536)
    hook_secret: SecretStr | None = Hook


class SourceUpdate(Request):
    """Only what is given changes; null takes a secret or the polling away."""

    location: Line | None = Field(None, min_length=1, max_length=1024)
    ref: Line | None = Field(None, max_length=256)
    subdirectory: Line | None = Field(None, max_length=256)
    poll_seconds: int | None = Poll
    key: SecretStr | None = Key
    known_hosts: str | None = Field(None, max_length=65536)
    hook_secret: SecretStr | None = Hook


class SourceView(View):
    """``has_key`` and ``has_hook`` say whether there is one. ``commit`` is the last one seen; ``failure`` why the last look failed."""

    name: str
    kind: str
    location: str
    ref: str
    subdirectory: str
    poll_seconds: int | None
    known_hosts: str
    has_key: bool
    has_hook: bool
    polled_at: datetime | None
    due_at: datetime | None
    commit: str | None
    failure: str
    created_at: datetime
    updated_at: datetime


class Sources:
    """All that is done with sources; ``settings`` say which directories of this machine they may lie in."""

    def __init__(self, store: Store, box: SecretBox, settings: Settings) -> None:
        self._store, self._box, self._settings = store, box, settings
        self._reading: dict[str, asyncio.Lock] = {}  # by the source's id

    async def list_all(self) -> list[SourceView]:
        async with self._store.connect() as connection:
            rows = (await connection.execute(select(_source).order_by(_source.c.name))).all()
        return [_view(row) for row in rows]

    async def get(self, name: str) -> SourceView:
        """Raises NotFound."""
        return _view(await self.row(name))

    async def row(self, name: str) -> Any:
        """The row. Raises NotFound."""
        async with self._store.connect() as connection:
            row = (await connection.execute(select(_source).where(_source.c.name == name))).first()
        if row is None:
            raise NotFound("source", name)
        return row

    async def create(self, spec: SourceCreate, *, actor: str) -> SourceView:
        """Raises Invalid."""
        columns = self._columns(spec, spec.kind, set(type(spec).model_fields))
        values = new_row(TemplateSource, **columns, due_at=utcnow() if spec.poll_seconds else None)

        async def work(session: AsyncSession) -> None:
            await session.execute(_source.insert(), values)
            await history.add(
                session,
                kind="source.created",
                actor=actor,
                message=spec.name,
                data={"location": spec.location},
            )

        try:
            await self._store.transact(work, EVENTS, SOURCES)
        except IntegrityError:
            raise Invalid([FieldError("name", f"there is a source {spec.name} already")]) from None
        return await self.get(spec.name)

    async def update(self, name: str, spec: SourceUpdate, *, actor: str) -> SourceView:
        """Raises NotFound, Invalid."""
        row = await self.row(name)
        nullable = {"poll_seconds", "key", "hook_secret"}
        given = {f for f in spec.model_fields_set if getattr(spec, f) is not None or f in nullable}
        columns = self._columns(spec, row.kind, given)
        if given & {"location", "ref", "subdirectory"}:
            columns["commit"] = None
        poll = columns.get("poll_seconds", row.poll_seconds)
        columns |= {"due_at": utcnow() if poll else None, "updated_at": utcnow()}

        async def work(session: AsyncSession) -> None:
            changed = await session.execute(_source.update().where(_source.c.id == row.id).values(**columns))
            if not changed.rowcount:  # type: ignore[attr-defined]
                raise NotFound("source", name)
            await history.add(
                session, kind="source.updated", actor=actor, message=name, data={"fields": sorted(given)}
            )

        await self._store.transact(work, EVENTS, SOURCES)
        return await self.get(name)

    async def delete(self, name: str, *, actor: str) -> None:
        """Its releases stay. Raises NotFound."""

        async def work(session: AsyncSession) -> None:
            gone = await session.execute(_source.delete().where(_source.c.name == name))
            if not gone.rowcount:  # type: ignore[attr-defined]
                raise NotFound("source", name)
            await history.add(session, kind="source.deleted", actor=actor, message=name)

        await self._store.transact(work, EVENTS)

    async def due_now(self, name: str) -> None:
        """Let some daemon look at once. Raises NotFound."""

        async def work(session: AsyncSession) -> None:
            told = await session.execute(
                _source.update().where(_source.c.name == name).values(due_at=utcnow())
            )
            if not told.rowcount:  # type: ignore[attr-defined]
                raise NotFound("source", name)

        await self._store.transact(work, SOURCES)

    def hook_secret(self, row: Any) -> str:
        """What a webhook's sender must know; "" when there is none."""
        return self._box.decrypt(row.secret_hook)

    async def newest(self, row: Any) -> str | None:
        """The commit a source is at, found without fetching it; None where that cannot be said. Raises ConfigError."""
        return None if row.kind == "directory" else await self._git(row).newest(row.ref)

    async def read(self, row: Any, ref: str | None = None) -> tuple[dict[str, str], Origin]:
        """The files of a source, templates and fixtures, and where they come from. Raises ConfigError."""
        if row.kind == "directory":
            return await asyncio.to_thread(self._read_directory, row)
        git = self._git(row)
        # one bare copy for each source: two fetches at once would take each other's commit away
        async with self._reading.setdefault(row.id, asyncio.Lock()):
            commit = await git.fetch(row.ref if ref is None else ref)
            files = await git.files(commit.sha, row.subdirectory, belongs)
        return files, Origin(row.name, commit.sha, commit.author, commit.message)

    async def import_from(
        self, row: Any, ref: str | None = None, *, actor: str, force: bool = False
    ) -> Imported:
        """Read a source and make a release of it. Raises Invalid, also where the source cannot be read."""
        if ref is not None and (
            why := "is given for git only" if row.kind == "directory" else wrong_ref(ref)
        ):
            raise Invalid([FieldError("ref", why)])
        try:
            files, origin = await self.read(row, ref)
        except ConfigError as error:
            raise Invalid([FieldError("source", str(error))]) from None
        return await import_release(self._store, files, origin, actor=actor, force=force)

    # --- inner -------------------------------------------------------------------------------------------

    def _git(self, row: Any) -> Git:
        state = self._settings.state
        repository = Repository(
            row.location,
            self._box.decrypt(row.secret_key),
            row.known_hosts,
            self._settings.templates.source_dirs,
        )
        return Git(repository, state.dir / "sources" / f"{row.id}.git", state.run_dir / "git")

    def _read_directory(self, row: Any) -> tuple[dict[str, str], Origin]:
        directory = Path(row.location)
        if not below(directory, self._settings.templates.source_dirs):
            raise ConfigError(f"{directory} is in none of templates.source_dirs")
        return read_with_fixtures(directory / row.subdirectory, row.name)

    def _columns(self, spec: SourceCreate | SourceUpdate, kind: str, given: set[str]) -> dict[str, Any]:
        """The columns of what was ``given``. Raises Invalid naming every wrong field."""
        wrong = []
        plain = ("name", "kind", "location", "ref", "subdirectory", "poll_seconds", "known_hosts")
        columns: dict[str, Any] = {name: getattr(spec, name) for name in plain if name in given}
        directories = self._settings.templates.source_dirs
        if "location" in given:
            location = str(spec.location)
            if kind == "git":
                why = wrong_url(location, directories)
            else:
                path = Path(location)
                why = (
                    ""
                    if path.is_absolute() and below(path, directories)
                    else "is no absolute path below one of templates.source_dirs"
                )
            if why:
                wrong.append(FieldError("location", why))
        if "ref" in given and (
            why := "is for git only" if kind == "directory" and spec.ref else wrong_ref(str(spec.ref))
        ):
            wrong.append(FieldError("ref", why))
        if "subdirectory" in given:
            parts = Path(str(spec.subdirectory)).parts
            if any(part in ("..", "/") or part.startswith("-") for part in parts) or ":" in str(
                spec.subdirectory
            ):
                wrong.append(FieldError("subdirectory", "is a path below the source, without '..' in it"))
        if "key" in given:
            key = spec.key.get_secret_value() if spec.key else ""
            if key and "PRIVATE KEY-----" not in key:
                wrong.append(FieldError("key", "is no OpenSSH private key"))
            if key and not (spec.known_hosts or "").strip() and isinstance(spec, SourceCreate):
                wrong.append(
                    FieldError(
                        "known_hosts",
                        "a deploy key is shown to nobody whose host key is not known: ssh-keyscan HOST",
                    )
                )
            columns["secret_key"] = self._box.encrypt(key)
        if "hook_secret" in given:
            columns["secret_hook"] = self._box.encrypt(
                spec.hook_secret.get_secret_value() if spec.hook_secret else ""
            )
        if wrong:
            raise Invalid(wrong)
        return columns


def read_with_fixtures(directory: Path, source: str = "") -> tuple[dict[str, str], Origin]:
    """The templates and fixtures of a directory, and the commit it is at when it is a clean checkout (blocking). Raises ConfigError."""
    files = read_files(directory)
    for path in sorted((directory / DIRECTORY).glob("*.yaml")):
        name = f"{DIRECTORY}/{path.name}"
        if belongs(name) and path.is_file() and path.resolve().is_relative_to(directory.resolve()):
            files[name] = path.read_text(encoding="utf-8", errors="replace")
    found = commit_of(directory.resolve())
    return files, Origin(source, *found) if found else Origin(source)


def _view(row: Any) -> SourceView:
    own = {name: getattr(row, name) for name in SourceView.model_fields if not name.startswith("has_")}
    return SourceView(**own, has_key=bool(row.secret_key), has_hook=bool(row.secret_hook))
