"""Two releases beside each other: their templates, or what they make of a host or a group's hosts."""

from __future__ import annotations

import asyncio

from pydantic import Field
from sqlalchemy import select

from provisiond.api.deps import ApiDeps
from provisiond.api.routing import Route
from provisiond.errors import FieldError, Invalid
from provisiond.inventory.fields import Line
from provisiond.inventory.hosts import get_host
from provisiond.inventory.release_tables import EVERYWHERE
from provisiond.inventory.resolve import resolve_hosts
from provisiond.inventory.shapes import Request, View
from provisiond.inventory.tables import Host, HostGroup, table
from provisiond.rollouts.shadow_render import Comparer, Finding
from provisiond.templating.current import Standing
from provisiond.templating.diffs import compare_files
from provisiond.templating.releases import find_release, place_of

CHUNK = 200  # hosts rendered at a time, in a thread
NAMED = 100  # hosts named of one difference; the rest are counted


class DiffQuery(Request):
    """Neither: the templates. ``host`` or ``group`` (with the groups below it): what the releases make of them."""

    host: Line | None = None
    group: Line | None = Field(None)


class TemplateDiffView(View):
    """``change``: added, removed or changed. ``text`` is unified."""

    path: str
    change: str
    text: str


class RenderedDiff(View):
    """One difference that ``count`` hosts have in common, with their own names, MACs and addresses blanked.

    ``kind``: changed, failing (not to be rendered with b), failing-already (with neither).
    """

    kind: str
    template: str
    text: str
    count: int
    hosts: list[str]


class DiffView(View):
    """``a`` and ``b`` are numbers. ``hosts`` were looked at, ``changed`` and ``failing`` of them."""

    a: int
    b: int
    templates: list[TemplateDiffView]
    rendered: list[RenderedDiff]
    hosts: int
    changed: int
    failing: int


async def compare(deps: ApiDeps, a: str, b: str, query: DiffQuery) -> DiffView:
    """Secrets are masked. Nothing is validated: a shadow run does that."""
    if query.host is not None and query.group is not None:
        raise Invalid([FieldError("query.group", "give a host or a group, not both")])
    async with deps.store.read() as session:
        old, new = await find_release(session, a), await find_release(session, b)
    renderers = {row.id: await deps.renderings.renderer(row.id) for row in (old, new)}
    if query.host is None and query.group is None:
        files = [renderers[row.id].catalogue.files for row in (old, new)]
        found = compare_files(files[0], files[1], (f"#{old.number}", f"#{new.number}"))
        views = [TemplateDiffView(path=d.path, change=d.change, text=d.text) for d in found]
        return DiffView(
            a=old.number, b=new.number, templates=views, rendered=[], hosts=0, changed=0, failing=0
        )
    ids = await _hosts(deps, query)
    comparer = Comparer(
        new.id, renderers.__getitem__, Standing({EVERYWHERE: old.id}), boot_url=deps.boot_url,
        authorized_keys=deps.renderings.authorized_keys, validating=False,
    )  # fmt: skip
    findings: dict[str, Finding] = {}
    names: dict[str, list[str]] = {}
    changed = failing = 0
    for start in range(0, len(ids), CHUNK):
        async with deps.store.read() as session:
            hosts = await resolve_hosts(session, ids[start : start + CHUNK], deps.store.known)
        seen = await asyncio.to_thread(comparer.compare, hosts)
        findings |= seen.findings
        for host in seen.hosts:
            changed += host.outcome == "changed"
            failing += host.failing
            for digest in host.findings:
                names.setdefault(digest, []).append(host.name)
    entries = [
        RenderedDiff(
            kind=f.kind, template=f.template, text=f.text, count=len(names[d]), hosts=names[d][:NAMED]
        )
        for d, f in findings.items()
    ]
    entries.sort(key=lambda entry: (-entry.count, entry.template, entry.text))
    return DiffView(
        a=old.number, b=new.number, templates=[], rendered=entries, hosts=len(ids), changed=changed, failing=failing
    )  # fmt: skip


async def _hosts(deps: ApiDeps, query: DiffQuery) -> list[str]:
    """Ids, in the order of the hosts' names."""
    if query.host is not None:
        return [(await get_host(deps.store, query.host)).id]
    host, group = table(Host), table(HostGroup)
    async with deps.store.read() as session:
        root = await place_of(session, query.group)
        below = select(group.c.id).where(group.c.id == root).cte("below", recursive=True)
        below = below.union(select(group.c.id).join(below, group.c.parent_id == below.c.id))
        found = select(host.c.id).where(host.c.group_id.in_(select(below.c.id))).order_by(host.c.name)
        return list((await session.execute(found)).scalars())


ROUTES: list[Route] = [
    Route("GET", "/releases/{a}/diff/{b}", compare, "operator", "Compare two releases"),
]
