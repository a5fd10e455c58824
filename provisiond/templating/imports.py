"""Imports: files become a release, once for each digest, after every template was rendered on its fixtures and validated.

An import makes nothing current.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import ConfigError, FieldError, Invalid, RenderError
from provisiond.inventory import history
from provisiond.inventory.release_tables import Release
from provisiond.inventory.store import EVENTS, Store
from provisiond.inventory.tables import new_row, table
from provisiond.templating.catalogue import MAX_FILE, MAX_FILES, SUFFIX, Catalogue, shipped_directory
from provisiond.templating.fixtures import DIRECTORY, read_fixtures
from provisiond.templating.headers import parse_header
from provisiond.templating.lint import Finding, lint
from provisiond.templating.pointers import lock_pointers

MAX_TOTAL = 16 << 20  # bytes of all files together
MAX_NAMED = 200  # problems named in one answer; the rest are counted
FIXTURE = re.compile(rf"{DIRECTORY}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}\.yaml")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*){0,7}")
_release = table(Release)
_linting = threading.Lock()  # it takes a core for many seconds


@dataclass(frozen=True)
class Origin:
    """Where files come from: the source's name ("" for a directory given by hand), git's commit, author and message."""

    source: str = ""
    git_commit: str | None = None
    author: str = ""
    message: str = ""


@dataclass(frozen=True)
class Imported:
    """``release`` is the row; ``new`` is False where the same files were imported before."""

    release: Any
    new: bool


def belongs(path: str) -> bool:
    """Whether a file of a source is one of its templates or fixtures."""
    return path.endswith(SUFFIX) or FIXTURE.fullmatch(path) is not None


async def import_release(
    store: Store, files: Mapping[str, str], origin: Origin, *, actor: str, force: bool = False
) -> Imported:
    """Store these files, path -> text, as a release; the templates are its content, the fixtures only what they are tried on.

    Raises Invalid naming every wrong file, and every problem found unless ``force``d.
    """
    templates = {path: text for path, text in files.items() if not FIXTURE.fullmatch(path)}
    fixtures = {path: text for path, text in files.items() if FIXTURE.fullmatch(path)}
    wrong = _wrong_files(files, templates)
    if wrong:
        raise Invalid(wrong)
    catalogue = await asyncio.to_thread(_catalogue, templates)
    known = select(*_release.c).where(_release.c.digest == catalogue.digest)
    async with store.read() as session:
        if row := (await session.execute(known)).first():
            return Imported(row, False)
    found, problems = await asyncio.to_thread(_lint, catalogue, fixtures)
    if problems and not force:
        raise Invalid(_named(problems))
    row_values = new_row(
        Release, digest=catalogue.digest, source=origin.source[:128], git_commit=origin.git_commit, author=_clean(origin.author, 256),
        message=_clean(origin.message, 8192), imported_by=actor[:128], files=dict(catalogue.files), number=0,
        lint={**found, "forced": bool(problems)},
    )  # fmt: skip

    async def work(session: AsyncSession) -> Imported:
        await lock_pointers(session)  # one import at a time draws a number
        if row := (await session.execute(known)).first():
            return Imported(row, False)
        number = (
            await session.execute(select(func.coalesce(func.max(_release.c.number), 0) + 1))
        ).scalar_one()
        await session.execute(_release.insert(), {**row_values, "number": number})
        told = f"release #{number} {catalogue.digest[:12]}" + (
            " in spite of its problems" if problems else ""
        )
        data = {
            "number": number,
            "digest": catalogue.digest,
            "source": origin.source,
            "commit": origin.git_commit,
            "forced": bool(problems),
        }
        await history.add(session, kind="release.imported", actor=actor, message=told, data=data)
        return Imported((await session.execute(known)).one(), True)

    return await store.transact(work, EVENTS)


def _wrong_files(files: Mapping[str, str], templates: Mapping[str, str]) -> list[FieldError]:
    wrong = []
    for path, text in files.items():
        if not _PATH.fullmatch(path) or ".." in path or len(path) > 200:
            wrong.append(
                FieldError(
                    f"files.{path[:200]}", "is no path below the directory: letters, digits, . _ + - and /"
                )
            )
        elif not belongs(path):
            wrong.append(
                FieldError(
                    f"files.{path}", f"is neither a template (*{SUFFIX}) nor a fixture ({DIRECTORY}/*.yaml)"
                )
            )
        elif len(text.encode(errors="replace")) > MAX_FILE:
            wrong.append(FieldError(f"files.{path}", f"is larger than {MAX_FILE >> 10} KiB"))
        elif "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            wrong.append(FieldError(f"files.{path}", "holds a NUL or half a character: it is no text"))
    if not templates:
        wrong.append(FieldError("files", f"there is no template (*{SUFFIX}) among them"))
    if len(files) > MAX_FILES:
        wrong.append(FieldError("files", f"there are more than {MAX_FILES}"))
    if sum(len(text) for text in files.values()) > MAX_TOTAL:
        wrong.append(FieldError("files", f"together they are larger than {MAX_TOTAL >> 20} MiB"))
    return wrong[:MAX_NAMED]


def _catalogue(templates: Mapping[str, str]) -> Catalogue:
    wrong = []
    for path, text in templates.items():
        try:
            parse_header(path, text)
        except RenderError as error:
            wrong.append(FieldError(f"files.{path}", error.reason))
    if wrong:
        raise Invalid(wrong)
    return Catalogue.of(templates)


def _lint(catalogue: Catalogue, fixtures: Mapping[str, str]) -> tuple[dict[str, Any], list[Finding]]:
    with tempfile.TemporaryDirectory(prefix="provisiond-import-") as name:
        directory = Path(name)
        (directory / DIRECTORY).mkdir()
        for path, text in fixtures.items():
            (directory / path).write_text(text, encoding="utf-8")
        try:
            hosts = read_fixtures([shipped_directory(), directory])
        except ConfigError as error:
            raise Invalid(
                [FieldError(f"files.{DIRECTORY}", str(error).replace(f"{directory}/", ""))]
            ) from None
    with _linting:
        families = list(lint(catalogue, hosts))
    problems = [finding for family in families for result in family.results for finding in result.findings]
    counts = {
        status: sum(family.count(status) for family in families) for status in ("passed", "failed", "skipped")
    }
    skips = dict.fromkeys(said for family in families for result in family.results for said in result.skipped)
    told = [{"file": p.file, "line": p.line, "message": p.message[:1000]} for p in problems[:MAX_NAMED]]
    return {**counts, "problems": told, "skips": list(skips)[:MAX_NAMED]}, problems


def _named(problems: list[Finding]) -> list[FieldError]:
    named = [
        FieldError(f"files.{p.file}", f"line {p.line}: {p.message}" if p.line else p.message)
        for p in problems[:MAX_NAMED]
    ]
    if len(problems) > MAX_NAMED:
        named.append(FieldError("files", f"and {len(problems) - MAX_NAMED} more problems"))
    return named


def _clean(text: str, limit: int) -> str:
    return "".join(c for c in text if c in "\n\t" or c.isprintable())[:limit]
