"""Hosts: create one or many, look, list, change, forget; their history, builds and events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

from aiohttp import web
from pydantic import Discriminator, Field, Tag
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.api.deps import ApiDeps
from provisiond.api.idempotency import Remembered
from provisiond.api.masking import for_eyes
from provisiond.api.problems import Refused
from provisiond.api.routing import Answer, Once
from provisiond.api.stream import resume_point, send_events
from provisiond.discovery.views import summary_of
from provisiond.errors import Conflict, Invalid
from provisiond.inventory import history, hosts
from provisiond.inventory.access import Principal
from provisiond.inventory.shapes import (
    EventView,
    HostCreate,
    HostSummary,
    HostUpdate,
    HostView,
    Request,
    View,
)

T = TypeVar("T")


class Page(View, Generic[T]):
    """One page of a list. ``next`` is the cursor of the page after it; null on the last."""

    items: list[T]
    next: str | None = None


class HostsCreate(Request):
    """Many hosts, all of them or none."""

    hosts: list[HostCreate] = Field(min_length=1, max_length=hosts.MAX_AT_ONCE)


class HostsView(View):
    hosts: list[HostView]


def _one_or_many(value: Any) -> str:
    return (
        "~many"
        if isinstance(value, HostsCreate) or (isinstance(value, dict) and "hosts" in value)
        else "~one"
    )


OneOrMany = Annotated[
    Annotated[HostCreate, Tag("~one")] | Annotated[HostsCreate, Tag("~many")], Discriminator(_one_or_many)
]


class HostsQuery(Request):
    """``state`` may be several, with commas; ``name`` is a glob such as web*; ``group`` takes in the groups below it."""

    state: str | None = None
    group: str | None = None
    name: str | None = None
    failed: bool = False
    limit: int = Field(1000, ge=1, le=5000)
    cursor: str | None = Field(None, max_length=128, description="The `next` of the page before.")


class HistoryQuery(Request):
    """``after`` is an event's id. ``newest`` gives the last ``limit`` events instead of the first."""

    after: int = Field(0, ge=0)
    limit: int = Field(500, ge=1, le=5000)
    newest: bool = False
    kind: str | None = Field(None, max_length=32)
    cursor: int | None = Field(None, ge=0, description="The `next` of the page before.")


class FollowQuery(Request):
    """Begin after this event (its id); default: with what happens from now on. The Last-Event-ID header wins."""

    after: int | None = Field(None, ge=0)


async def create_host(
    deps: ApiDeps, body: OneOrMany, who: Principal, idempotency: Once | None
) -> Answer[HostView | HostsView]:
    """One host, or `{"hosts": [...]}`: all of them or none. What is wrong with any of them is in one answer."""
    remembered = Remembered(deps.store, who, idempotency)
    if answer := await remembered.recall():
        return answer
    many = isinstance(body, HostsCreate)
    specs = body.hosts if isinstance(body, HostsCreate) else [body]

    async def keep(session: AsyncSession, made: list[HostView]) -> None:
        await remembered.keep(session, HostsView(hosts=made) if many else made[0], 201)

    try:
        made = await deps.creates.create(
            specs, actor=who.actor, many=many, keep=keep if idempotency else None
        )
    except (Invalid, Conflict):
        if answer := await remembered.recall():  # the same request, a moment earlier
            return answer
        raise
    headers = {} if many else {"ETag": etag(made[0]), "Location": f"/api/v1/hosts/{made[0].name}"}
    return Answer(HostsView(hosts=made) if many else made[0], headers=headers)


async def list_hosts(deps: ApiDeps, query: HostsQuery) -> Answer[Page[HostSummary]]:
    """In order of their names."""
    found = await hosts.list_hosts(
        deps.store,
        state=query.state,
        group=query.group,
        name=query.name,
        failed=query.failed,
        limit=query.limit + 1,
        cursor=query.cursor,
    )
    more = len(found) > query.limit
    found = found[: query.limit]
    return Answer(to_json({"items": found, "next": found[-1].name if more else None}))


async def show_host(deps: ApiDeps, name: str, request: web.Request, who: Principal) -> Answer[HostView]:
    """By name or id. The ETag goes into If-Match of an update."""
    host = await hosts.get_host(deps.store, name)
    tag = etag(host)
    if tag in _tags(request.headers.get("If-None-Match")):
        return Answer(b"", status=304, headers={"ETag": tag})
    host = host.model_copy(update={"hardware": await summary_of(deps.store, host.id)})
    return Answer(for_eyes(host, who), headers={"ETag": tag})


async def update_host(
    deps: ApiDeps, name: str, body: HostUpdate, who: Principal, if_match: str | None
) -> Answer[HostView]:
    """Only the fields that are given change; null empties one."""
    changed = await hosts.update_host(
        deps.store, deps.box, name, body, actor=who.actor, guard=_guard(if_match)
    )
    return Answer(changed, headers={"ETag": etag(changed)})


async def delete_host(deps: ApiDeps, name: str, who: Principal) -> None:
    """Its history stays."""
    await hosts.delete_host(deps.store, name, actor=who.actor)


async def list_history(deps: ApiDeps, name: str, query: HistoryQuery) -> Page[EventView]:
    """Of a host by name or id, also one that is gone. Oldest first."""
    return await _history(deps, name, query)


async def list_events(deps: ApiDeps, query: HistoryQuery) -> Page[EventView]:
    """The history of all hosts, oldest first."""
    return await _history(deps, None, query)


async def follow_host_events(
    deps: ApiDeps, name: str, query: FollowQuery, request: web.Request
) -> web.StreamResponse:
    """Server-sent events: `id` for Last-Event-ID, `event` is the kind, `data` the event as JSON."""
    host = await hosts.get_host(deps.store, name)
    return await send_events(request, deps.history, after=resume_point(request, query.after), host_id=host.id)


async def follow_events(deps: ApiDeps, query: FollowQuery, request: web.Request) -> web.StreamResponse:
    """Server-sent events of all hosts."""
    return await send_events(request, deps.history, after=resume_point(request, query.after))


def etag(host: HostView) -> str:
    """Changes with every change of the host: by the engine (version) and by operators (updated_at)."""
    return f'"{host.version}-{int(host.updated_at.timestamp() * 1e6):x}"'


def _tags(header: str | None) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in (header or "").split(",")} - {""}


def _guard(if_match: str | None) -> Callable[[HostView], None] | None:
    tags = _tags(if_match)
    if not tags or "*" in tags:
        return None

    def check(host: HostView) -> None:
        if etag(host) not in tags:
            raise Refused(
                412, f"host {host.name} has changed since you read it; read it again, and then change it"
            )

    return check


async def _history(deps: ApiDeps, name: str | None, query: HistoryQuery) -> Page[EventView]:
    after = query.after if query.cursor is None else query.cursor
    found = await history.list_events(
        deps.store, name, after, query.limit + 1, newest=query.newest, kind=query.kind
    )
    if query.newest:
        return Page(items=found[-query.limit :])
    more = len(found) > query.limit
    found = found[: query.limit]
    return Page(items=found, next=str(found[-1].id) if more else None)
