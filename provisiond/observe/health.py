"""Is the daemon alive (``/healthz``), and can it do its work (``/readyz``)?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from sqlalchemy import text

from provisiond.inventory.store import Store
from provisiond.observe.metrics import Metrics

Check = Callable[[], Awaitable[str]]
"""A check returns "" when all is well, or else what is wrong in a sentence."""

_PATIENCE = 3.0  # seconds a check may take


def database_check(store: Store) -> Check:
    """Whether the database answers."""

    async def check() -> str:
        async with store.connect() as connection:
            await connection.execute(text("SELECT 1"))
        return ""

    return check


async def run_checks(checks: dict[str, Check]) -> dict[str, str]:
    """Every check at once; a value is "ok" or what is wrong."""

    async def one(check: Check) -> str:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await check() or "ok"
        except TimeoutError:
            return f"no answer within {_PATIENCE:g} s"
        except Exception as error:
            return type(error).__name__

    answers = await asyncio.gather(*(one(check) for check in checks.values()))
    return dict(zip(checks, answers, strict=True))


def add_routes(app: web.Application, checks: dict[str, Check], metrics: Metrics) -> None:
    """Put /healthz, /readyz and /metrics into ``app``. They need no token and tell no names."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        answers = await run_checks(checks)
        ready = all(answer == "ok" for answer in answers.values())
        return web.json_response(
            {"status": "ok" if ready else "not ready", "checks": answers}, status=200 if ready else 503
        )

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=await metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
