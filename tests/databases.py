"""Databases for tests: a private PostgreSQL server from Debian's packages, and a fresh database or file for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlmodel import SQLModel

from provisiond.inventory import release_tables  # noqa: F401  (fills the metadata, with all other tables)
from provisiond.inventory.store import Store

KINDS = ("sqlite", "postgresql")


def postgres_bin() -> Path | None:
    """Where the newest installed PostgreSQL server has its programs; None when it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else None


@dataclass
class Postgres:
    """A running server that listens on a socket in ``folder`` only; ``database()`` makes and names a fresh database."""

    folder: Path
    template: str = ""
    made: list[str] = field(default_factory=list)

    def url(self, database: str) -> str:
        """For libpq and psycopg."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def store_url(self, database: str) -> str:
        """For SQLAlchemy."""
        return self.url(database).replace("postgresql://", "postgresql+psycopg://", 1)

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def database(self, *, empty: bool = False) -> str:
        """A new database, with the tables or without; its name."""
        name = f"t{uuid.uuid4().hex[:16]}"
        if not empty and not self.template:
            self.run("CREATE DATABASE with_tables")
            engine = create_engine(self.store_url("with_tables"))
            SQLModel.metadata.create_all(engine)
            engine.dispose()
            self.template = "with_tables"
        self.run(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else self.template}")
        self.made.append(name)
        return name

    def drop(self, name: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start a server for as long as the block runs. It keeps nothing safe (fsync off) and listens on no TCP port."""
    programs = postgres_bin()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    folder.chmod(0o755)
    data = folder / "data"
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    options = (
        f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c synchronous_commit=off -c full_page_writes=off "
        "-c max_connections=200 -c shared_buffers=64MB -c autovacuum=off -c log_min_messages=warning"
    )
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    try:
        subprocess.run(
            [
                *as_user,
                programs / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
            **quiet,
        )
        subprocess.run(
            [
                *as_user,
                programs / "pg_ctl",
                "-D",
                data,
                "-w",
                "-t",
                "60",
                "-l",
                folder / "log",
                "-o",
                options,
                "start",
            ],
            **quiet,
        )
        try:
            yield Postgres(folder)
        finally:
            subprocess.run(
                [*as_user, programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], **quiet
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sqlite_url(folder: Path) -> str:
    """A file with the tables in it, made from the models at once."""
    file = folder / "provisiond.db"
    engine = create_engine(f"sqlite:///{file}")
    SQLModel.metadata.create_all(engine)
    engine.dispose()
    return f"sqlite:///{file}"


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """A store that is closed at the end."""
    store = Store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
