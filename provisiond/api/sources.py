"""Sources of templates, and the webhook by which a git server says that there is something new."""

from __future__ import annotations

import hashlib
import hmac

from aiohttp import web

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.problems import Refused
from provisiond.api.routing import Route
from provisiond.errors import Denied, NotFound
from provisiond.inventory.access import Principal
from provisiond.inventory.shapes import View
from provisiond.templating.sources import SourceCreate, SourceUpdate, SourceView

MAX_HOOK = 1 << 20  # bytes; git servers send the commits of a push along
_SIGNATURES = ("X-Hub-Signature-256", "X-Gitea-Signature", "X-Forgejo-Signature")  # HMAC-SHA-256 of the body
_TOKENS = ("X-Gitlab-Token",)  # the secret itself


class HookHeard(View):
    heard: bool


async def list_sources(deps: ApiDeps) -> Page[SourceView]:
    """In order of their names. Secrets are not shown."""
    return Page(items=await deps.sources.list_all())


async def show_source(deps: ApiDeps, name: str) -> SourceView:
    """``polled_at`` is when it was looked at last, ``failure`` why that went wrong."""
    return await deps.sources.get(name)


async def create_source(deps: ApiDeps, body: SourceCreate, who: Principal) -> SourceView:
    """One that is polled is looked at at once."""
    return await deps.sources.create(body, actor=who.actor)


async def update_source(deps: ApiDeps, name: str, body: SourceUpdate, who: Principal) -> SourceView:
    """Only what is given changes."""
    return await deps.sources.update(name, body, actor=who.actor)


async def delete_source(deps: ApiDeps, name: str, who: Principal) -> None:
    """The releases that came from it stay."""
    await deps.sources.delete(name, actor=who.actor)


async def poll_source(deps: ApiDeps, name: str) -> SourceView:
    """It is looked at as soon as may be; ``polled_at`` changes when that is done."""
    await deps.sources.due_now(name)
    return await deps.sources.get(name)


async def hear_hook(deps: ApiDeps, name: str, request: web.Request) -> HookHeard:
    """For GitHub, Gitea, Forgejo (HMAC-SHA-256 of the body) and GitLab (a shared token). It only makes the next look due now."""
    body = bytearray()
    async for piece in request.content.iter_chunked(1 << 16):
        body += piece
        if len(body) > MAX_HOOK:
            raise Refused(413, f"a webhook's body may have {MAX_HOOK} bytes")
    try:
        secret = deps.sources.hook_secret(await deps.sources.row(name))
    except NotFound:
        secret = ""
    if not secret or not _proven(request, bytes(body), secret.encode()):
        raise Denied(
            "this webhook is not known, or what came with it does not prove who sent it; "
            "give the source a hook secret, and the same to the git server"
        )
    await deps.sources.due_now(name)
    return HookHeard(heard=True)


def _proven(request: web.Request, body: bytes, secret: bytes) -> bool:
    made = hmac.new(secret, body, hashlib.sha256).hexdigest().encode()
    for header in _SIGNATURES:
        given = request.headers.get(header, "").strip().lower().removeprefix("sha256=")
        if hmac.compare_digest(given.encode(errors="replace"), made):
            return True
    return any(
        hmac.compare_digest(request.headers.get(header, "").encode(errors="replace"), secret)
        for header in _TOKENS
    )


ROUTES: list[Route] = [
    Route("GET", "/template-sources", list_sources, "viewer", "List sources of templates"),
    Route("POST", "/template-sources", create_source, "admin", "Create a source of templates", status=201),
    Route("GET", "/template-sources/{name}", show_source, "viewer", "Show a source of templates"),
    Route("PATCH", "/template-sources/{name}", update_source, "admin", "Change a source of templates"),
    Route("DELETE", "/template-sources/{name}", delete_source, "admin", "Forget a source of templates"),
    Route(
        "POST", "/template-sources/{name}/poll", poll_source, "operator", "Look at a source now", status=202
    ),
    Route(
        "POST",
        "/template-sources/{name}/hook",
        hear_hook,
        None,
        "Tell of something new in a source",
        status=202,
    ),
]
