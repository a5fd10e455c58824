"""Fleets on each kind of database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.integration.engine.conftest import FAST
from tests.integration.rollouts.fleet import Fleet

MakeFleet = Callable[..., Awaitable[Fleet]]


@pytest_asyncio.fixture
async def make_fleet(database_url: str, tmp_path: Path) -> AsyncIterator[MakeFleet]:
    """Makes a fleet that is furnished and running; all are closed at the end."""
    made: list[Fleet] = []

    async def make(*, start: bool = True, **options: Any) -> Fleet:
        fleet = await Fleet(database_url, tmp_path, engine=FAST, **options).open()
        made.append(fleet)
        await fleet.furnish()
        if start:
            await fleet.begin()
        return fleet

    yield make
    for fleet in made:
        await fleet.close()
