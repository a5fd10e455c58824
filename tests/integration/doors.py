"""An API on a real socket over a fresh database, for tests: everything real but the engine and the machines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from provisiond.api.app import api_app
from provisiond.api.deps import ApiDeps
from provisiond.config import load_settings
from provisiond.inventory import access, migrate
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.lifecycle.consoles import Consoles
from provisiond.media.jobs import MediaJobs
from provisiond.observe.follow import History
from provisiond.observe.health import database_check
from provisiond.observe.metrics import Metrics
from provisiond.templating.release import Renderings


@dataclass
class Doors:
    """The running API: its ``url``, an admin's ``token``, and the parts behind it."""

    url: str
    token: str
    deps: ApiDeps
    session: ClientSession

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str = "", **headers: str
    ) -> tuple[int, Any]:
        """(status, JSON) of one request."""
        sent = {
            "Authorization": f"Bearer {token or self.token}",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        async with self.session.request(
            method, f"{self.url}/api/v1{path}", json=body, headers=sent
        ) as answer:
            return answer.status, await answer.json() if answer.content_length else None


@asynccontextmanager
async def open_doors(directory: Path, database: str = "", **overrides: Any) -> AsyncIterator[Doors]:
    """Serve until left. ``database`` is a PostgreSQL URL; default: SQLite below ``directory``."""
    settings = load_settings(None, {"state": {"dir": directory}, "database": {"url": database}, **overrides})
    directory.mkdir(parents=True, exist_ok=True)
    migrate.upgrade(settings.database_url())
    store = Store(settings.database_url())
    await store.open()
    history, metrics = History(store), Metrics(store)
    try:
        await access.first_admin_token(store, settings.state.admin_token_file)
        await history.start()
        history.listen(metrics.count_events)
        deps = ApiDeps(
            store=store,
            box=SecretBox.open(settings.state.key_file),
            settings=settings,
            history=history,
            metrics=metrics,
            consoles=Consoles(settings.state.console_dir),
            media=MediaJobs(settings, store),
            renderings=await Renderings.open(store, settings.templates),
            boot_url="http://192.0.2.1:8421",
            checks={"database": database_check(store)},
        )
        runner = web.AppRunner(api_app(deps), access_log=None, shutdown_timeout=5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        token = settings.state.admin_token_file.read_text().strip()
        async with ClientSession() as session:
            yield Doors(f"http://127.0.0.1:{port}", token, deps, session)
        await runner.cleanup()
    finally:
        await history.close()
        await store.close()
