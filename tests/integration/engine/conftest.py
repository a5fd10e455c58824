"""Rigs on each kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.integration.engine.rig import Rig

FAST = {"sweep_seconds": 0.2, "backoff_seconds": 0.02, "backoff_max_seconds": 0.1, "lease_seconds": 4.0}

MakeRig = Callable[..., Awaitable[Rig]]


@pytest_asyncio.fixture
async def make_rig(database_url: str, tmp_path: Path) -> AsyncIterator[MakeRig]:
    """Makes a rig that is furnished and running (``start=False``: not running); all are closed at the end."""
    made: list[Rig] = []

    async def make(*, start: bool = True, engine: dict[str, Any] | None = None, **options: Any) -> Rig:
        rig = await Rig(database_url, tmp_path, engine={**FAST, **(engine or {})}, **options).open()
        made.append(rig)
        await rig.furnish()
        if start:
            await rig.reconciler.start()
        return rig

    yield make
    for rig in made:
        await rig.close()
