"""The migrations against both databases: they make what the models say, and the way down works with rows in the tables."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from provisiond.errors import ConfigError
from provisiond.inventory import migrate
from provisiond.inventory.hosts import create_hosts, get_host
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import HostCreate
from provisiond.inventory.tables import Host, table
from tests.databases import open_store


def test_migrations_make_what_the_models_say(empty_database_url: str) -> None:
    """After ``upgrade`` there is no difference between database and models."""
    assert migrate.current(empty_database_url) is None
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()
    assert migrate.differences(empty_database_url) == []


def test_models_and_create_all_agree_with_migrations(database_url: str) -> None:
    """Tests make their tables from the models; that is the same as migrating."""
    assert [d for d in migrate.differences(database_url) if d[0] != "remove_table"] == []


def test_up_down_up_with_rows(empty_database_url: str, box: SecretBox) -> None:
    """A database in use goes down to nothing and up again, and works."""

    async def use() -> None:
        async with open_store(empty_database_url) as store:
            spec = HostCreate(name="web01", mac="52:54:00:00:00:01", bmc="ipmi://u:p@10.0.0.7")  # type: ignore[arg-type]
            await create_hosts(store, box, [spec], actor="test")
            assert (await get_host(store, "web01")).state == "enrolled"
            async with store.connect() as connection:
                assert len((await connection.execute(select(table(Host).c.id))).all()) == 1

    migrate.upgrade(empty_database_url)
    asyncio.run(use())
    migrate.upgrade(empty_database_url)  # once more changes nothing
    migrate.downgrade(empty_database_url, "base")
    assert migrate.current(empty_database_url) is None
    migrate.upgrade(empty_database_url)
    assert migrate.differences(empty_database_url) == []
    asyncio.run(use())


def test_unknown_revision_is_a_clear_error(empty_database_url: str) -> None:
    """A revision that does not exist says so and changes nothing."""
    with pytest.raises(ConfigError, match="cannot be migrated"):
        migrate.upgrade(empty_database_url, "9999")
    assert migrate.current(empty_database_url) is None
