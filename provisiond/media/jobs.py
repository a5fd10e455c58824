"""Imports in the background: started by the API, watched by whoever asked, and harmless when they break off.

A job lives in this process only. What counts is in the database: a Medium is `ready` and an Image exists only when its files are
whole and in place; a daemon that dies on the way leaves .part files that the next import of that name removes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from provisiond.config import Settings
from provisiond.errors import Conflict, NotFound
from provisiond.inventory import history
from provisiond.inventory.store import CATALOGUE_CHANGED, EVENTS, Store
from provisiond.inventory.tables import Image, Medium, OperatingSystem, new_id, utcnow
from provisiond.media.fetch import MediaError
from provisiond.media.images import ImageFacts, ImageRequest, add_image
from provisiond.media.installers import InstallerFiles, InstallerRequest, add_medium, forget_old
from provisiond.media.ramdisk import RamdiskRequest, build_ramdisk
from provisiond.media.recipes import BuildRequest, built

log = structlog.get_logger(__name__)

AT_ONCE = 2
KEPT = 100
IMAGE_FACTS = ("path", "format", "sha256", "size", "content", "zstd", "partitions", "verified_by")
KNOWN_SYSTEMS = {
    "debian-11": ("debian", "11"),
    "debian-12": ("debian", "12"),
    "debian-13": ("debian", "13"),
    **{f"ubuntu-{v}": ("ubuntu", v) for v in ("22.04", "24.04", "26.04")},
    **{f"{n}-{v}": ("redhat", v) for n in ("rhel", "alma", "rocky") for v in ("8", "9", "10")},
    **{f"centos-stream-{v}": ("redhat", v) for v in ("9", "10")},
    **{f"fedora-{v}": ("fedora", v) for v in ("42", "43", "44")},
    **{f"{n}-15.{v}": ("suse", f"15.{v}") for n in ("leap", "sles") for v in (5, 6, 7)},
    **{f"{n}-16.0": ("suse", "16.0") for n in ("leap", "sles")},
    "fedora-coreos": ("coreos", "stable"),
    "flatcar": ("flatcar", "stable"),
}
"""Operating systems that need no introduction: name -> (family, version)."""


@dataclass
class Job:
    """An import: ``kind`` medium or image; ``state`` running, done or failed; ``message`` is how it ended."""

    kind: str
    name: str
    id: str = field(default_factory=new_id)
    state: str = "running"
    what: str = "waiting"
    done: int = 0
    total: int | None = None
    message: str = ""
    started_at: datetime = field(default_factory=utcnow)
    ended_at: datetime | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def report(self, what: str, done: int, total: int | None) -> None:
        """Progress, as fetch.OnProgress; safe from any thread, as each is one assignment."""
        self.what, self.done, self.total = what, done, total


@dataclass(frozen=True)
class MediumWish:
    """A medium to add, or to take afresh. ``operating_system`` by name (one that is known, or of KNOWN_SYSTEMS)."""

    name: str
    operating_system: str
    architecture: str = "x86_64"
    source: str = ""
    mirror: str = ""
    sha256: str = ""
    unverified: bool = False


class MediaJobs:
    """The imports of this daemon. Close it at the end: running ones are broken off and leave nothing."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def get(self, job_id: str) -> Job | None:
        """The job of this id, while it is remembered (the last hundred are)."""
        return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Every job that is remembered, oldest first."""
        return list(self._jobs.values())

    async def start_medium(self, wish: MediumWish, *, actor: str) -> Job:
        """Begin to take an installer. Raises NotFound (operating system), Conflict (one of that name is under way)."""
        job = self._admit("medium", wish.name)

        async def work(session: AsyncSession) -> InstallerRequest:
            system = await _system(session, wish.operating_system)
            found = (
                (await session.execute(select(Medium).where(col(Medium.name) == wish.name))).scalars().first()
            )
            if found is None:
                session.add(
                    Medium(
                        name=wish.name, operating_system_id=system.id, architecture=wish.architecture,
                        source=wish.source, mirror=wish.mirror,
                    )
                )  # fmt: skip
            return InstallerRequest(
                wish.name,
                system.family,
                system.version,
                wish.source,
                wish.architecture,
                wish.sha256,
                wish.unverified,
            )

        request = await self._admitted(job, self._store.transact(work))

        async def run() -> str:
            files = await add_medium(self._settings, request, job.report)
            await self._store.transact(
                lambda session: _medium_ready(session, wish, files, actor), EVENTS, CATALOGUE_CHANGED
            )
            await asyncio.to_thread(forget_old, self._settings, wish.name, files.files)
            return f"checked by {files.verified_by}"

        self._begin(job, run, actor)
        return job

    async def start_image(
        self, request: ImageRequest, *, operating_system: str | None, architecture: str = "x86_64",
        user: str = "root", actor: str,
    ) -> Job:  # fmt: skip
        """Begin to take an image; ``user`` is whom handover logs in as. Raises as start_medium."""

        async def run(job: Job) -> ImageFacts:
            return await add_image(self._settings, request, job.report)

        return await self._start_image(request.name, run, operating_system, architecture, user, actor)

    async def start_build(
        self, request: BuildRequest, *, operating_system: str | None, user: str = "root", actor: str
    ) -> Job:
        """Begin to build an image by a recipe, and take it. Raises as start_medium."""

        async def run(job: Job) -> ImageFacts:
            async with built(self._settings, request, job.report) as made:
                facts = await add_image(self._settings, ImageRequest(request.name, str(made)), job.report)
            return replace(facts, verified_by=f"built here by recipe {request.recipe}")

        return await self._start_image(request.name, run, operating_system, request.architecture, user, actor)

    async def start_ramdisk(self, request: RamdiskRequest, *, actor: str) -> Job:
        """Begin to build the ramdisk of an architecture, and to put it in place. Raises Conflict (one is under way)."""
        job = self._admit("ramdisk", request.architecture)

        async def run() -> str:
            told = await build_ramdisk(self._settings, request, job.report)
            await self._store.transact(
                lambda session: _note(session, "ramdisk.built", f"ramdisk {told}", actor), EVENTS
            )
            return told

        self._begin(job, run, actor)
        return job

    async def _start_image(
        self, name: str, make: Callable[[Job], Awaitable[ImageFacts]], operating_system: str | None,
        architecture: str, user: str, actor: str,
    ) -> Job:  # fmt: skip
        job = self._admit("image", name)

        async def work(session: AsyncSession) -> str | None:
            return (await _system(session, operating_system)).id if operating_system else None

        system_id = await self._admitted(job, self._store.transact(work))

        async def run() -> str:
            facts = await make(job)
            image = Image(
                name=name, operating_system_id=system_id, path=facts.path, format=facts.format, sha256=facts.sha256,
                size=facts.size, architecture=architecture, user=user, content=facts.content, zstd=facts.zstd,
                partitions=list(facts.partitions), verified_by=facts.verified_by,
            )  # fmt: skip
            await self._store.transact(
                lambda session: _image_ready(session, image, actor), EVENTS, CATALOGUE_CHANGED
            )
            return _told(facts)

        self._begin(job, run, actor)
        return job

    async def close(self) -> None:
        """Break off what is running and wait until it has cleaned up."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self, kind: str, name: str) -> Job:
        if any(j.state == "running" and (j.kind, j.name) == (kind, name) for j in self._jobs.values()):
            raise Conflict(
                f"{kind} {name} is being imported already; 'provisionctl media list' shows how far it is"
            )
        job = Job(kind, name)
        self._jobs[job.id] = job
        ended = [j.id for j in self._jobs.values() if j.state != "running"]
        for old in ended[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[old]
        return job

    async def _admitted(self, job: Job, asked: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await asked
        except BaseException:
            del self._jobs[job.id]
            raise

    def _begin(self, job: Job, run: Callable[[], Coroutine[Any, Any, str]], actor: str) -> None:
        self._tasks[job.id] = asyncio.create_task(self._run(job, run, actor), name=f"{job.kind}-{job.name}")

    async def _run(self, job: Job, run: Callable[[], Coroutine[Any, Any, str]], actor: str) -> None:
        try:
            async with self._slots:
                job.message = await run()
            job.state = "done"
        except asyncio.CancelledError:
            job.state, job.message = "failed", "broken off: the daemon was stopped; add it again"
            raise
        except MediaError as error:
            job.state, job.message = "failed", str(error)
        except OSError as error:
            log.warning("media.import_failed", kind=job.kind, name=job.name, error=str(error))
            job.state, job.message = (
                "failed",
                f"{error.strerror or error} ({error.filename or 'state.dir'}); nothing was kept",
            )
        except Exception as error:
            log.exception("media.import_broke", kind=job.kind, name=job.name)
            job.state, job.message = "failed", f"{type(error).__name__} inside the daemon; its log says more"
        finally:
            job.ended_at = utcnow()
            job.finished.set()
            del self._tasks[job.id]
        if job.state == "failed":
            message = f"{job.kind} {job.name}: {job.message}"
            await self._store.transact(
                lambda session: _note(session, f"{job.kind}.failed", message, actor), EVENTS
            )


async def _system(session: AsyncSession, name: str) -> OperatingSystem:
    found = (
        (await session.execute(select(OperatingSystem).where(col(OperatingSystem.name) == name)))
        .scalars()
        .first()
    )
    if found is not None:
        return found
    if name not in KNOWN_SYSTEMS:
        raise NotFound("os", name)
    family, version = KNOWN_SYSTEMS[name]
    made = OperatingSystem(name=name, family=family, version=version)
    session.add(made)
    await session.flush()
    return made


async def _medium_ready(session: AsyncSession, wish: MediumWish, files: InstallerFiles, actor: str) -> None:
    row = (await session.execute(select(Medium).where(col(Medium.name) == wish.name))).scalars().first()
    if row is None:
        raise MediaError(f"medium {wish.name} was deleted while it was being fetched")
    row.files, row.verified_by, row.source = dict(files.files), files.verified_by[:256], files.source[:1024]
    row.mirror = wish.mirror or files.mirror or row.mirror
    row.ready, row.updated_at = True, utcnow()
    await _note(
        session,
        "medium.added",
        f"medium {wish.name} from {files.source}, checked by {files.verified_by}",
        actor,
    )


async def _image_ready(session: AsyncSession, image: Image, actor: str) -> None:
    """Put the new row in place of an older one of that name. The older files stay until nothing refers to them."""
    row = (await session.execute(select(Image).where(col(Image.name) == image.name))).scalars().first()
    if row is None:
        session.add(image.model_copy())
    else:
        for column in (*IMAGE_FACTS, "architecture", "user"):
            setattr(row, column, getattr(image, column))
        row.operating_system_id, row.updated_at = (
            image.operating_system_id or row.operating_system_id,
            utcnow(),
        )
    await _note(
        session,
        "image.added",
        f"image {image.name}: {image.size >> 20} MiB, SHA-256 {image.sha256}, checked by {image.verified_by}",
        actor,
    )


async def _note(session: AsyncSession, kind: str, message: str, actor: str) -> None:
    await history.add(session, kind=kind, actor=actor, message=message)


def _told(facts: ImageFacts) -> str:
    by = f"; checked by {facts.verified_by}"
    if facts.content == "tree":
        return f"a root file system of {facts.size >> 20} MiB{by}"
    return f"{facts.used >> 20} of {facts.size >> 20} MiB used{by}"
