"""The ramdisk that machines are given: what is in place, and building it anew."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.media import ImportView, view_of
from provisiond.api.routing import Route
from provisiond.errors import FieldError, Invalid
from provisiond.inventory.access import Principal
from provisiond.inventory.fields import Name
from provisiond.inventory.shapes import Architecture, Request, View
from provisiond.media.fetch import MediaError
from provisiond.media.ramdisk import RamdiskRequest, installed


class RamdiskBuild(Request):
    """Build the ramdisk from Debian packages. ``kernel``: Debian's package, when not the usual one; ``packages``: to come along."""

    architecture: Architecture = "x86_64"
    firmware: bool = Field(
        False, description="Firmware of network cards and disk controllers, from non-free-firmware."
    )
    packages: list[Name] = Field([], max_length=50)
    kernel: Name | None = None


class RamdiskView(View):
    """A ramdisk in use. ``kernel`` and ``initrd`` have size (bytes) and sha256; ``digest`` stands for everything that went into it."""

    architecture: str
    kernel_version: str
    kernel_package: str
    agent_version: int
    firmware: bool
    packages: list[str]
    digest: str
    kernel: dict[str, Any]
    initrd: dict[str, Any]
    directory: str
    installed_at: datetime


async def list_ramdisks(deps: ApiDeps) -> Page[RamdiskView]:
    """One for each architecture; a ramdisk without a manifest, put there by hand, is not shown."""
    return Page(items=[_view(about) for about in await asyncio.to_thread(installed, deps.settings)])


async def build_ramdisk(deps: ApiDeps, body: RamdiskBuild, who: Principal) -> ImportView:
    """Begins at once; look at `/imports/{id}` until it is done or failed. Machines get the new one whole, or the old one."""
    request = RamdiskRequest(body.architecture, body.firmware, tuple(body.packages), body.kernel or "")
    try:
        request.check()
    except MediaError as error:
        raise Invalid([FieldError("packages", str(error))]) from error
    return view_of(await deps.media.start_ramdisk(request, actor=who.actor))


def _view(about: dict[str, Any]) -> RamdiskView:
    same = {name: about[name] for name in RamdiskView.model_fields if name in about}
    return RamdiskView(**{**same, "packages": about.get("with", []), "digest": about["key"]})


ROUTES = (
    Route("GET", "/ramdisk", list_ramdisks, "viewer", "The ramdisks that machines are given"),
    Route("POST", "/ramdisk", build_ramdisk, "admin", "Build the ramdisk", status=202),
)
