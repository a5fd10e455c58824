"""Fixtures for all tests: databases of both kinds, each test with its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from tests import logs
from tests.databases import KINDS, Postgres, open_store, postgres_server, sqlite_url

# A machine busy with other tests makes any example slow; hanging ones are ended by pytest-timeout.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")
logs.plain()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this test process alone."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database with tables, once for each kind of database."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.database()
    yield server.store_url(name)
    server.drop(name)


@pytest.fixture(params=KINDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database without tables, once for each kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.database(empty=True)
    yield server.store_url(name)
    server.drop(name)


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An open store, once for each kind of database."""
    async with open_store(database_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store on SQLite only, for what does not depend on the database."""
    async with open_store(sqlite_url(tmp_path)) as opened:
        yield opened


@pytest.fixture
def box(tmp_path: Path) -> SecretBox:
    """Encryption keys of this test alone."""
    return SecretBox.open(tmp_path / "secret.key")


@pytest.fixture
def other_store(database_url: str) -> Callable[[], Store]:
    """Makes further stores on the same database, not yet open, as other daemons would have (PostgreSQL)."""
    return lambda: Store(database_url, lock=False)
