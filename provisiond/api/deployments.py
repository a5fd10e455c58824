"""The builds of a host, and what each was served: digests of the true bytes, texts with secrets masked."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.routing import Route
from provisiond.errors import NotFound
from provisiond.inventory import hosts
from provisiond.inventory.release_tables import Release, ServedFile
from provisiond.inventory.shapes import DeploymentDetail, View
from provisiond.inventory.tables import Deployment, table

NEWEST = "newest"
_deployment, _release, _served = table(Deployment), table(Release), table(ServedFile)
_BUILDS = select(
    _deployment, _release.c.digest.label("release"), _release.c.number.label("release_number")
).select_from(_deployment.outerjoin(_release, _release.c.id == _deployment.c.release_id))


class ServedView(View):
    """``digest`` is SHA-256 of the bytes the machine was given, ``size`` theirs; ``times`` how often they were given."""

    kind: str
    template: str
    digest: str
    size: int
    times: int
    first_at: datetime
    last_at: datetime


class ServedText(ServedView):
    """``text`` has its secrets masked, so its digest is another."""

    text: str


class DeploymentShown(DeploymentDetail):
    """A build and the files that its machine was served, in that order."""

    files: list[ServedView]


async def list_deployments(deps: ApiDeps, name: str) -> Page[DeploymentDetail]:
    """The builds of a host, newest first."""
    host = await hosts.get_host(deps.store, name)
    found = _BUILDS.where(_deployment.c.host_id == host.id).order_by(_deployment.c.number.desc()).limit(1000)
    async with deps.store.connect() as connection:
        rows = (await connection.execute(found)).all()
    return Page(items=[DeploymentDetail(**_detail(row)) for row in rows])


async def show_deployment(deps: ApiDeps, name: str, number: str) -> DeploymentShown:
    """By its number, or `newest`."""
    row = await _find(deps, name, number)
    columns = [c for c in _served.c if c.name != "text"]
    async with deps.store.connect() as connection:
        files = (await connection.execute(_of(row, *columns))).all()
    views = [ServedView(**{n: getattr(f, n) for n in ServedView.model_fields}) for f in files]
    return DeploymentShown(**_detail(row), files=views)


async def show_served(deps: ApiDeps, name: str, number: str, kind: str) -> Page[ServedText]:
    """All that was served of one kind; several where it changed between two requests."""
    row = await _find(deps, name, number)
    async with deps.store.connect() as connection:
        files = (await connection.execute(_of(row, _served).where(_served.c.kind == kind))).all()
    if not files:
        raise NotFound("file", f"{kind} of deployment {row.number} of {name}")
    return Page(items=[ServedText(**{n: getattr(f, n) for n in ServedText.model_fields}) for f in files])


# --- inner -----------------------------------------------------------------------------------------------


async def _find(deps: ApiDeps, name: str, number: str) -> Any:
    host = await hosts.get_host(deps.store, name)
    found = _BUILDS.where(_deployment.c.host_id == host.id)
    if number == NEWEST:
        found = found.order_by(_deployment.c.number.desc()).limit(1)
    elif number.isdigit() and len(number) < 10:
        found = found.where(_deployment.c.number == int(number))
    else:
        raise NotFound("deployment", number)
    async with deps.store.connect() as connection:
        row = (await connection.execute(found)).first()
    if row is None:
        raise NotFound("deployment", f"{number} of {name}")
    return row


def _of(row: Any, *columns: Any) -> Any:
    return (
        select(*columns).where(_served.c.deployment_id == row.id).order_by(_served.c.first_at, _served.c.kind)
    )


def _detail(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in DeploymentDetail.model_fields}


ROUTES: list[Route] = [
    Route("GET", "/hosts/{name}/deployments", list_deployments, "viewer", "The builds of a host"),
    Route(
        "GET",
        "/hosts/{name}/deployments/{number}",
        show_deployment,
        "viewer",
        "One build, and what it was served",
    ),
    Route(
        "GET",
        "/hosts/{name}/deployments/{number}/files/{kind}",
        show_served,
        "operator",
        "The text that a build was served",
    ),
]
