"""A world of fakes around a fresh SQLite file, with an engine that is not running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.databases import sqlite_url
from tests.integration.engine.rig import Rig


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Furnished; the test starts what it needs."""
    opened = await Rig(sqlite_url(tmp_path), tmp_path, engine={"max_attempts": 3}).open()
    await opened.furnish()
    yield opened
    await opened.close()
