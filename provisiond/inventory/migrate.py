"""The way of the database from one version of provisiond to another, and back.

Everything here blocks, and nothing else should use the database meanwhile. A migration is one transaction, on SQLite too: one
that fails or is killed leaves the database as it was. Before a way down, make a copy; what a later version added is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from provisiond.errors import ConfigError, Conflict
from provisiond.inventory import hardware_tables, release_tables  # noqa: F401  (fill the metadata, with all other tables)

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 0x70726F77  # an arbitrary number of ours for PostgreSQL's advisory locks


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at ``url`` up to ``revision``. Nothing to do is fine. Raises ConfigError, Conflict."""
    with _connected(url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Bring the database down to ``revision`` ("base": no tables, "-1": one back). Raises ConfigError, Conflict."""
    with _connected(url) as connection:
        command.downgrade(_config(connection), revision)


def current(url: str) -> str | None:
    """The revision the database is at; None for an empty one."""
    with _connected(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The revision this version of provisiond wants."""
    revision = ScriptDirectory(str(_SCRIPTS)).get_current_head()
    assert revision is not None
    return revision


def differences(url: str) -> list[Any]:
    """Where the database differs from the models, as alembic tells it; empty when they agree."""
    with _connected(url) as connection:
        return list(
            compare_metadata(
                MigrationContext.configure(connection, opts={"compare_type": True}), SQLModel.metadata
            )
        )


def draft(url: str, message: str, revision_id: str) -> None:
    """Write a migration from the database at ``url`` to the models, for a developer to look over."""
    with _connected(url) as connection:
        command.revision(_config(connection), message, autogenerate=True, rev_id=revision_id)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    sqlite = url.startswith("sqlite")
    target = f"sqlite:///{url.partition(':///')[2]}" if sqlite else url
    engine = create_engine(target)
    if sqlite:

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # or DDL would commit behind our back
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA busy_timeout=30000")
            connection.execute(
                "PRAGMA foreign_keys=OFF"
            )  # tables are rebuilt, see SQLite's manual on ALTER TABLE, 7

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            if not sqlite:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK}
                )  # one at a time
            yield connection
            if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()):
                raise Conflict(
                    f"the migration would leave {len(broken)} rows that refer to nothing; nothing was changed"
                )
    except CommandError as error:
        raise ConfigError(
            f"the database cannot be migrated: {error}; it may be of a newer provisiond"
        ) from None
    except DBAPIError as error:
        raise ConfigError(f"the database cannot be used: {error.orig}") from error
    finally:
        engine.dispose()
