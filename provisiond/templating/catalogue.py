"""The catalogue: a directory of templates read into an immutable set of files, found by kind, family and version."""

from __future__ import annotations

import hashlib
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from provisiond.errors import ConfigError, NotFound
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove, Release, Rollout
from provisiond.inventory.store import EVENTS, RELEASES, Store
from provisiond.templating.headers import Header, parse_header
from provisiond.templating.pointers import lock_pointers, move_pointer

MAX_FILE = 256 << 10
MAX_FILES = 2000
SUFFIX = ".j2"
DAEMON = "daemon"  # who moves the pointer when nobody has said anything


@dataclass(frozen=True)
class Catalogue:
    """The templates of one release: ``files`` maps an id such as ``ipxe/install.ipxe.j2`` to its text."""

    files: Mapping[str, str] = field(repr=False)
    digest: str
    headers: Mapping[str, Header] = field(repr=False)
    git_commit: str | None = None

    @classmethod
    def of(cls, files: Mapping[str, str], *, git_commit: str | None = None) -> Catalogue:
        """A catalogue of these files. Raises RenderError where a header is missing or wrong."""
        files = MappingProxyType(dict(sorted(files.items())))
        headers = {path: parse_header(path, text) for path, text in files.items()}
        return cls(files, digest(files), MappingProxyType(headers), git_commit)

    def has(self, kind: str, family: str, version: str) -> bool:
        """Whether some template of ``kind`` suits the operating system."""
        return any(h.kind == kind and h.fits(family, version) for h in self.headers.values())

    def find(self, kind: str, family: str = "", version: str = "") -> str:
        """The id of the template of ``kind`` that suits the operating system best. Raises NotFound when none does."""
        fitting = [
            (h.fits(family, version), path)
            for path, h in self.headers.items()
            if h.kind == kind and h.fits(family, version)
        ]
        if not fitting:
            wanted = f"{kind} for {family} {version}".strip() if family else kind
            raise NotFound("template", wanted)
        best = max(score for score, _ in fitting)
        return min(path for score, path in fitting if score == best)


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 over the sorted paths and texts, each with its length before it, as 64 hex digits."""
    total = hashlib.sha256()
    for path, text in sorted(files.items()):
        for part in (path.encode(), text.encode()):
            total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def shipped_directory() -> Path:
    """The templates that come with provisiond: beside the package in a checkout, below share/ when installed."""
    for place in (
        Path(__file__).parents[2] / "templates",
        Path(sysconfig.get_path("data")) / "share" / "provisiond" / "templates",
    ):
        if place.is_dir():
            return place
    raise ConfigError(
        "the templates shipped with provisiond are missing; set templates.dir to a directory of templates"
    )


def read_directory(directory: Path) -> Catalogue:
    """The catalogue of ``directory`` (blocking), with its git commit. Raises ConfigError, RenderError."""
    found = commit_of(directory.resolve())
    return Catalogue.of(read_files(directory), git_commit=found[0] if found else None)


def read_files(directory: Path) -> dict[str, str]:
    """Every ``*.j2`` below ``directory`` by its id (blocking). Links that lead out of it are refused. Raises ConfigError."""
    root = directory.resolve()
    if not root.is_dir():
        raise ConfigError(f"templates.dir: there is no directory {directory}")
    files: dict[str, str] = {}
    for path in sorted(root.rglob("*" + SUFFIX)):
        if not path.resolve().is_relative_to(root):
            raise ConfigError(f"templates.dir: {path} is a link that leads out of {root}")
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"templates.dir: {path} is larger than {MAX_FILE >> 10} KiB")
        try:
            files[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"templates.dir: {path} is not UTF-8: {error}") from None
        if len(files) > MAX_FILES:
            raise ConfigError(f"templates.dir: {root} holds more than {MAX_FILES} templates")
    if not files:
        raise ConfigError(f"templates.dir: there is no *{SUFFIX} below {root}")
    return files


def commit_of(root: Path) -> tuple[str, str, str] | None:
    """Commit, author and message these files are at (blocking); None when they are changed since, or not in a repository at all."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", ".") is None or git("status", "--porcelain", "--", ".") != "":
        return None
    told = (git("log", "-1", "--no-show-signature", "--format=%H%x00%an <%ae>%x00%B") or "").split("\0")
    return (told[0], told[1], told[2].strip()) if len(told) == 3 else None


async def ensure_release(store: Store, catalogue: Catalogue) -> Release:
    """The release of the configured directory, stored if its digest is new. Safe to call at once by several daemons.

    It becomes the current one everywhere for as long as nobody but the daemon itself has ever moved that pointer, and no rollout
    is under way there: whoever has once said which release is to be current is not overruled by a daemon's start.
    """

    async def work(session: AsyncSession) -> Release:
        await lock_pointers(session)
        release = (
            await session.execute(select(Release).where(col(Release.digest) == catalogue.digest))
        ).scalar_one_or_none()
        if release is None:
            newest = (await session.execute(select(func.max(col(Release.number))))).scalar() or 0
            release = Release(
                number=newest + 1,
                digest=catalogue.digest,
                git_commit=catalogue.git_commit,
                imported_by=DAEMON,
                files=dict(catalogue.files),
            )
            session.add(release)
            await session.flush()
        others = select(col(PointerMove.id)).where(
            col(PointerMove.place) == EVERYWHERE, col(PointerMove.actor) != DAEMON
        )
        rolling = select(col(Rollout.id)).where(col(Rollout.active_place) == EVERYWHERE)
        if (
            not (await session.execute(others.limit(1))).first()
            and not (await session.execute(rolling)).first()
        ):
            await move_pointer(
                session, EVERYWHERE, release.id, actor=DAEMON, reason="the configured directory"
            )
        return release

    return await store.transact(work, RELEASES, EVENTS)


def catalogue_of(release: Release) -> Catalogue:
    """The catalogue of a stored release. Raises ConfigError when its files no longer have its digest."""
    catalogue = Catalogue.of(release.files, git_commit=release.git_commit)
    if catalogue.digest != release.digest:
        raise ConfigError(
            f"release {release.digest[:12]} was changed in the database: its files have digest {catalogue.digest[:12]}"
        )
    return catalogue
