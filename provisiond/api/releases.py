"""Releases of templates: imported, looked at, compared, made current and rolled back. None is ever changed or deleted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field
from sqlalchemy import select

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.routing import Answer, Route
from provisiond.errors import FieldError, Invalid, NotFound, ProvisiondError
from provisiond.inventory.access import Principal
from provisiond.inventory.fields import Line
from provisiond.inventory.release_tables import PointerMove
from provisiond.inventory.shapes import Request, View
from provisiond.inventory.tables import table
from provisiond.lifecycle import intents
from provisiond.templating import moves
from provisiond.templating.catalogue import Catalogue
from provisiond.templating.imports import Origin, import_release
from provisiond.templating.moves import Affected, Moved
from provisiond.templating.releases import find_release, list_releases, place_of, places_of, read_files

NAMED = 200  # hosts named in one answer; the rest are counted


class ReleaseBrief(View):
    """``current`` says where by a pointer: "everywhere", and names of groups. ``problems`` of the validators at its import."""

    number: int
    digest: str
    current: list[str]
    source: str
    git_commit: str | None
    author: str
    message: str
    imported_by: str
    created_at: datetime
    problems: int


class FileView(View):
    """``size`` in bytes."""

    path: str
    kind: str
    about: str
    size: int


class ReleaseDetail(ReleaseBrief):
    """``lint``: counts of passed, failed and skipped renderings, the problems, and who could not look; empty: nobody looked."""

    lint: dict[str, Any]
    files: list[FileView]


class FileText(FileView):
    text: str


class ReleaseImport(Request):
    """Either ``files`` (path to text: templates, and fixtures/*.yaml that they are tried on) or the name of a ``source``.

    ``ref`` is another branch, tag or commit of the source than its own; ``force`` takes what the validators refuse, and says so.
    """

    model_config = ConfigDict(str_strip_whitespace=False)  # a template's last line feed is part of it

    files: dict[str, str] | None = None
    source: Line | None = None
    ref: Line | None = Field(None, max_length=256)
    git_commit: str | None = Field(None, pattern=r"^[0-9a-f]{40,64}$")
    author: Line = Field("", max_length=256)
    message: str = Field("", max_length=8192)
    force: bool = False


class ReleaseImported(ReleaseDetail):
    """``new`` false: the same files were imported before, and this is that release."""

    new: bool


class ReleaseUse(Request):
    """Current in ``group``, or everywhere."""

    group: Line | None = None
    reason: Line = ""


class ReleaseRollback(Request):
    """To the earlier release, or ``to``. ``plan``: change nothing. ``rebuild``: hosts that have what is taken back are rebuilt."""

    group: Line | None = None
    to: Line | None = None
    reason: Line = ""
    plan: bool = False
    rebuild: bool = False


class MovedView(View):
    """Numbers of releases; null where a group has none of its own. ``changed`` false: it was so already."""

    where: str
    before: int | None
    now: int | None
    changed: bool


class HostBuild(View):
    """``release`` is what its build has, ``then`` what its next build will get."""

    host: str
    state: str
    release: int | None
    then: int | None


class NotAsked(View):
    host: str
    why: str


class RollbackView(MovedView):
    """``changing`` counts hosts whose next build gets another release. ``keep`` are hosts now building, which keep their release.

    ``to_rebuild`` counts hosts that --rebuild asks (or would ask) for a rebuild; ``rebuilt`` those that were asked. At most 200
    hosts are named of each.
    """

    plan: bool
    changing: int | None = None
    building: int = 0
    keep: list[HostBuild] = Field(default_factory=list)
    to_rebuild: int = 0
    rebuild: list[HostBuild] = Field(default_factory=list)
    rebuilt: int = 0
    not_asked: list[NotAsked] = Field(default_factory=list)


class MovesQuery(Request):
    """Of one group's pointer, or of the one everywhere."""

    group: Line | None = None
    limit: int = Field(200, ge=1, le=1000)


class MoveView(View):
    """Numbers of releases; ``back``: it took an earlier move back."""

    at: datetime
    now: int | None
    before: int | None
    back: bool
    actor: str
    reason: str


async def list_all(deps: ApiDeps) -> Page[ReleaseBrief]:
    """The newest first."""
    return Page(
        items=[ReleaseBrief(**_brief(row, places)) for row, places in await list_releases(deps.store)]
    )


async def show(deps: ApiDeps, release: str) -> ReleaseDetail:
    """By number (12 or #12), the beginning of its digest, or `current`."""
    return ReleaseDetail(**await _detail(deps, release))


async def show_files(deps: ApiDeps, release: str) -> Page[FileText]:
    """All templates of a release with their texts."""
    async with deps.store.read() as session:
        row = await find_release(session, release)
        files = await read_files(session, row.id)
    return Page(items=[FileText(**view, text=files[view["path"]]) for view in _files(files)])


async def show_file(deps: ApiDeps, release: str, path: str) -> FileText:
    """One template of a release."""
    async with deps.store.read() as session:
        row = await find_release(session, release)
        files = await read_files(session, row.id)
    if path not in files:
        raise NotFound("template", path)
    return FileText(**_files({path: files[path]})[0], text=files[path])


async def import_one(deps: ApiDeps, body: ReleaseImport, who: Principal) -> Answer[ReleaseImported]:
    """Every template is rendered on the fixtures of its header and validated first, which takes a while. Nothing becomes current."""
    if (body.files is None) == (body.source is None):
        raise Invalid([FieldError("files", "give either files or a source")])
    if body.source is not None:
        row = await deps.sources.row(body.source)
        imported = await deps.sources.import_from(row, body.ref, actor=who.actor, force=body.force)
    else:
        if body.ref is not None:
            raise Invalid([FieldError("ref", "is given together with a source")])
        origin = Origin("", body.git_commit, body.author, body.message)
        imported = await import_release(
            deps.store, body.files or {}, origin, actor=who.actor, force=body.force
        )
    detail = await _detail(deps, f"#{imported.release.number}")
    return Answer(ReleaseImported(**detail, new=imported.new), status=201 if imported.new else 200)


async def use(deps: ApiDeps, release: str, body: ReleaseUse, who: Principal) -> MovedView:
    """Builds that begin from now on get it; those under way keep what they have."""
    moved = await moves.use_release(
        deps.store, release, group=body.group, actor=who.actor, reason=body.reason
    )
    return MovedView(**await _moved(deps, moved, body.group))


async def roll_back(deps: ApiDeps, body: ReleaseRollback, who: Principal) -> RollbackView:
    """The earlier release is current again when this is answered. With `rebuild` hosts are asked after that, one by one.

    If that breaks off, the same with `to` set to the release that is current now goes on with it.
    """
    if body.plan:
        plan = await moves.plan_rollback(deps.store, group=body.group, to=body.to)
        return RollbackView(
            **await _moved(deps, plan.moved, body.group), plan=True, changing=plan.changing,
            building=len(plan.keep), keep=[_build(h, plan.numbers) for h in plan.keep[:NAMED]],
            to_rebuild=len(plan.rebuild), rebuild=[_build(h, plan.numbers) for h in plan.rebuild[:NAMED]],
        )  # fmt: skip
    moved = await moves.roll_back(
        deps.store, group=body.group, to=body.to, actor=who.actor, reason=body.reason
    )
    told = await _moved(deps, moved, body.group)
    if not body.rebuild:
        return RollbackView(**told, plan=False)
    hosts = await moves.to_rebuild(deps.store, moved)
    cause = f"release #{told['before']} was taken back" + (f": {body.reason}" if body.reason else "")
    refused = []
    for host in hosts:
        try:
            await intents.request(deps.store, host.id, intents.Verb.REBUILD, actor=who.actor, cause=cause)
        except ProvisiondError as error:
            refused.append(NotAsked(host=host.name, why=str(error)))
    async with deps.store.read() as session:
        numbers = await moves.numbers_of(session, {i for h in hosts for i in (h.release_id, h.then) if i})
    return RollbackView(
        **told, plan=False, to_rebuild=len(hosts), rebuild=[_build(h, numbers) for h in hosts[:NAMED]],
        rebuilt=len(hosts) - len(refused), not_asked=refused[:NAMED],
    )  # fmt: skip


async def list_moves(deps: ApiDeps, query: MovesQuery) -> Page[MoveView]:
    """The newest first. They are never changed."""
    move = table(PointerMove)
    async with deps.store.read() as session:
        place = await place_of(session, query.group)
        found = select(move).where(move.c.place == place).order_by(move.c.id.desc()).limit(query.limit)
        rows = (await session.execute(found)).all()
        numbers = await moves.numbers_of(session, {i for r in rows for i in (r.release_id, r.before_id) if i})
    return Page(
        items=[
            MoveView(
                at=r.at, now=numbers.get(r.release_id), before=numbers.get(r.before_id), back=r.back, actor=r.actor,
                reason=r.reason,
            )
            for r in rows
        ]
    )  # fmt: skip


# --- inner -----------------------------------------------------------------------------------------------


def _brief(row: Any, places: list[str]) -> dict[str, Any]:
    own = {n: getattr(row, n) for n in ReleaseBrief.model_fields if n not in ("current", "problems")}
    return {**own, "current": places, "problems": len(row.lint.get("problems", []))}


async def _detail(deps: ApiDeps, said: str) -> dict[str, Any]:
    async with deps.store.read() as session:
        row = await find_release(session, said)
        files = await read_files(session, row.id)
        places = (await places_of(session)).get(row.id, [])
    return {**_brief(row, list(places)), "lint": row.lint, "files": _files(files)}


def _files(files: dict[str, str]) -> list[dict[str, Any]]:
    catalogue = Catalogue.of(files)
    return [
        {"path": path, "kind": h.kind, "about": h.about, "size": len(files[path].encode())}
        for path, h in catalogue.headers.items()
    ]


async def _moved(deps: ApiDeps, moved: Moved, group: str | None) -> dict[str, Any]:
    async with deps.store.read() as session:
        numbers = await moves.numbers_of(session, {i for i in (moved.before, moved.now) if i})
    return {
        "where": f"group {group}" if group else "everywhere",
        "before": numbers.get(moved.before or ""),
        "now": numbers.get(moved.now or ""),
        "changed": moved.changed,
    }


def _build(host: Affected, numbers: dict[str, int]) -> HostBuild:
    return HostBuild(
        host=host.name,
        state=host.state,
        release=numbers.get(host.release_id or ""),
        then=numbers.get(host.then),
    )


ROUTES: list[Route] = [
    Route("GET", "/releases", list_all, "viewer", "List releases"),
    Route("POST", "/releases", import_one, "operator", "Import a release", status=201),
    Route("POST", "/releases/rollback", roll_back, "operator", "Make the earlier release current again"),
    Route("GET", "/releases/moves", list_moves, "viewer", "What was current, and who made it so"),
    Route("GET", "/releases/{release}", show, "viewer", "Show a release"),
    Route("GET", "/releases/{release}/files", show_files, "viewer", "The templates of a release"),
    Route("GET", "/releases/{release}/files/{path:.+}", show_file, "viewer", "A template of a release"),
    Route("POST", "/releases/{release}/use", use, "operator", "Make a release current"),
]
