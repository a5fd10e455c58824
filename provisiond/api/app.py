"""The API as an aiohttp application: the table of routes, the description made from it, health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web
from pydantic_core import to_json

from provisiond.api.deps import ApiDeps
from provisiond.api.idempotency import forget_old
from provisiond.api.problems import problem_middleware
from provisiond.api.routes import ROUTES
from provisiond.api.routing import PREFIX, register
from provisiond.inventory.store import Store
from provisiond.observe import health

log = structlog.get_logger(__name__)
VERSION = "1"
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
}


def api_app(deps: ApiDeps) -> web.Application:
    """The application; ``deps.history`` must be started before the first request."""
    app = web.Application(middlewares=[problem_middleware], client_max_size=deps.settings.server.max_body)
    register(app, ROUTES, deps)
    app.router.add_get(f"{PREFIX}/openapi.json", _made_once(_description, "application/json"))
    app.router.add_get(f"{PREFIX}/docs", _made_once(_page, "text/html"))
    health.add_routes(app, deps.checks, deps.metrics)

    async def forget(_app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(_forget_for_ever(deps.store), name="api-forget")
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    app.cleanup_ctx.append(forget)

    async def end_streams(_app: web.Application) -> None:
        await deps.history.close()

    app.on_shutdown.append(end_streams)
    return app


async def _forget_for_ever(store: Store) -> None:
    """Drop old answers to Idempotency-Keys, every hour."""
    while True:
        await asyncio.sleep(3600)
        try:
            await forget_old(store)
        except Exception:
            log.exception("api.forget_failed")


def _description() -> bytes:
    from provisiond.api.openapi import (
        describe,
    )  # the model of OpenAPI is large, and most daemons are never asked

    return to_json(describe(ROUTES, VERSION))


def _page() -> bytes:
    from provisiond.api.openapi import page

    return page(ROUTES).encode()


def _made_once(
    make: Callable[[], bytes], content_type: str
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A page that is made when it is first asked for."""
    body = b""

    async def handler(_request: web.Request) -> web.StreamResponse:
        nonlocal body
        body = body or make()
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_SAFE)

    return handler
