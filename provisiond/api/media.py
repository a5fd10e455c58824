"""Installation media and disk images: an import is started here and runs in the daemon; what is shown is how far it is."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Literal

from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.problems import Refused
from provisiond.errors import Denied, FieldError, Invalid
from provisiond.inventory.access import Principal
from provisiond.inventory.fields import Line, Name, Word
from provisiond.inventory.shapes import Architecture, Request, View
from provisiond.media.fetch import MediaError, check_url
from provisiond.media.formats import format_of
from provisiond.media.images import ImageRequest
from provisiond.media.installers import is_local
from provisiond.media.jobs import Job, MediumWish
from provisiond.media.recipes import BuildRequest, find_recipe, recipe_dirs
from provisiond.media.vouch import Proof

Sha256 = Field("", pattern=r"^([0-9a-f]{64})?$", description="What the source must have, in lower-case hex.")


class MediumImport(Request):
    """Take an installer's kernel and initrd. ``source``: a mirror's URL, a directory or an ISO on the daemon's machine."""

    name: Name
    operating_system: Name
    architecture: Architecture = "x86_64"
    source: Line = ""
    mirror: Line = ""
    sha256: str = Sha256
    unverified: bool = Field(False, description="Take it although nothing vouches for it.")


class ImageImport(Request):
    """Take an image: a disk, or (tar) a root file system. ``user`` is whom handover logs in as."""

    name: Name
    source: Line = Field(min_length=1)
    format: Literal[
        "", "qcow2", "raw", "raw.zst", "raw.xz", "raw.gz", "tar", "tar.zst", "tar.xz", "tar.gz"
    ] = Field("", description="Never guessed: empty, as the end of the source's name says.")
    sha256: str = Sha256
    checksums: Line = Field(
        "", description="URL of a list of checksums that has the source, such as SHA256SUMS."
    )
    signature: Line = Field(
        "",
        description="URL of a detached OpenPGP signature: of the list of checksums if one is given, else of the source.",
    )
    key: str = Field(
        "", max_length=256 << 10, description="OpenPGP public keys, ASCII-armoured; no others are trusted."
    )
    operating_system: Name | None = None
    architecture: Architecture = "x86_64"
    user: Word = "root"


class ImageBuild(Request):
    """Build a disk image from packages by a recipe of the daemon's machine, and take it."""

    name: Name
    recipe: Word = Field(
        min_length=1, description="Such as debian-12: a program of images.recipes, and its version."
    )
    operating_system: Name | None = None
    architecture: Architecture = "x86_64"
    user: Word = "root"
    mirror: Line = Field("", description="Where packages come from; empty: as the recipe has it.")
    size_mib: int = Field(0, ge=0, le=1 << 20, description="Of the disk; 0: as the recipe has it.")
    features: list[Word] = Field(
        [], max_length=32, description="What the recipe knows to put in, such as lvm2, mdadm, luks, firmware."
    )
    packages: list[Word] = Field([], max_length=500, description="More packages, by their names.")


class ImportView(View):
    """An import: ``state`` is running, done or failed; ``done`` and ``total`` count bytes of ``what`` is being done."""

    id: str
    kind: str
    name: str
    state: str
    what: str
    done: int
    total: int | None
    message: str
    started_at: datetime
    ended_at: datetime | None


async def import_medium(deps: ApiDeps, body: MediumImport, who: Principal) -> ImportView:
    """Begins at once; look at `/imports/{id}` until it is done or failed. An existing medium is taken afresh."""
    _allow_local(body.source, who)
    wish = MediumWish(
        name=body.name,
        operating_system=body.operating_system,
        architecture=body.architecture,
        source=body.source,
        mirror=body.mirror,
        sha256=body.sha256,
        unverified=body.unverified,
    )
    return view_of(await deps.media.start_medium(wish, actor=who.actor))


async def import_image(deps: ApiDeps, body: ImageImport, who: Principal) -> ImportView:
    """Begins at once; look at `/imports/{id}` until it is done or failed. An existing image is replaced when it is there."""
    for source in (body.source, body.checksums, body.signature):
        _allow_local(source, who)
    proof = Proof(body.sha256, body.checksums, body.signature, body.key)
    _refuse_unusable(body, proof)
    request = ImageRequest(name=body.name, source=body.source, format=body.format, proof=proof)
    job = await deps.media.start_image(
        request,
        operating_system=body.operating_system,
        architecture=body.architecture,
        user=body.user,
        actor=who.actor,
    )
    return view_of(job)


async def build_image(deps: ApiDeps, body: ImageBuild, who: Principal) -> ImportView:
    """Begins at once; look at `/imports/{id}` until it is done or failed. Packages' scripts run as root: for admins."""
    request = BuildRequest(
        body.name, body.recipe, body.architecture, body.mirror, body.size_mib, tuple(body.features), tuple(body.packages),
    )  # fmt: skip
    try:
        request.check()
        await asyncio.to_thread(find_recipe, recipe_dirs(deps.settings), body.recipe)
    except MediaError as error:
        raise Invalid([FieldError("recipe", str(error))]) from error
    job = await deps.media.start_build(
        request, operating_system=body.operating_system, user=body.user, actor=who.actor
    )
    return view_of(job)


async def list_imports(deps: ApiDeps) -> Page[ImportView]:
    """Those that run and the last hundred that ran, oldest first; gone when the daemon restarts."""
    return Page(items=[view_of(job) for job in deps.media.all()])


async def show_import(deps: ApiDeps, id: str) -> ImportView:
    """How far it is."""
    job = deps.media.get(id)
    if job is None:
        raise Refused(404, f"there is no import {id!r}: it ended long ago, or the daemon was restarted since")
    return view_of(job)


def _allow_local(source: str, who: Principal) -> None:
    """A path on the daemon's machine is read with the daemon's rights and served to machines, its keys included: admins only."""
    if is_local(source) and who.role != "admin":
        raise Denied(
            "only an admin may name a path on the daemon's machine; give a URL, or ask an admin",
            authenticated=True,
        )


def _refuse_unusable(body: ImageImport, proof: Proof) -> None:
    """Raises Invalid with every field that can be known to be wrong before anything is fetched."""
    wrong = []
    for name, check in (
        ("format", lambda: format_of(body.source, body.format)),
        ("source", lambda: is_local(body.source) or check_url(body.source)),
        ("signature", lambda: proof.check(body.source)),
    ):
        try:
            check()
        except MediaError as error:
            wrong.append(FieldError(name, str(error)))
    if wrong:
        raise Invalid(wrong)


def view_of(job: Job) -> ImportView:
    """A job as the API shows it."""
    return ImportView(**{name: getattr(job, name) for name in ImportView.model_fields})
