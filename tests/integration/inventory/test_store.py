"""The store: one writer, wake-ups in this process and between daemons, retries, and what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict
from provisiond.inventory import postgres
from provisiond.inventory import store as store_module
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Host, new_row, table
from tests.databases import open_store, sqlite_url

_host = table(Host)


async def test_writers_do_not_lose_updates(store: Store) -> None:
    """A hundred increments at once make a hundred."""
    async with store.write() as session:
        await session.execute(insert(_host).values(new_row(Host, name="a1")))

    async def work(session: AsyncSession) -> None:
        row = (await session.execute(select(_host.c.wake).with_for_update())).one()
        await asyncio.sleep(0)
        await session.execute(update(_host).values(wake=row.wake + 1))

    await asyncio.gather(*(store.transact(work) for _ in range(100)))
    async with store.read() as session:
        assert (await session.execute(select(_host.c.wake))).scalar_one() == 100


async def test_a_failed_transaction_changes_nothing(store: Store) -> None:
    """And wakes nobody."""
    heard = store.subscribe(HOSTS)
    if not store.sqlite:
        await asyncio.wait_for(heard.wait(), 30)  # its LISTEN has begun
        heard.clear()
    with pytest.raises(ZeroDivisionError):
        async with store.write(HOSTS) as session:
            await session.execute(insert(_host).values(new_row(Host, name="a1")))
            raise ZeroDivisionError
    assert not heard.is_set()
    assert await store.look(lambda c: c.execute(select(_host)).all()) == []


async def test_readers_see_one_moment(store: Store) -> None:
    """What is committed meanwhile is not seen by a view that began before."""
    async with store.read() as session:
        assert (await session.execute(select(_host.c.id))).all() == []
        async with store.write() as writer:
            await writer.execute(insert(_host).values(new_row(Host, name="a1")))
        assert (await session.execute(select(_host.c.id))).all() == []
    async with store.read() as session:
        assert len((await session.execute(select(_host.c.id))).all()) == 1


async def test_mistakes_are_not_tried_again(store: Store) -> None:
    """A statement that is wrong fails at once instead of after eight tries."""
    calls = 0

    async def work(session: AsyncSession) -> None:
        nonlocal calls
        calls += 1
        await session.execute(text("SELECT * FROM no_such_table"))

    with pytest.raises((OperationalError, ProgrammingError)):
        await store.transact(work)
    assert calls == 1


async def test_daemons_hear_each_other(store: Store, other_store: Callable[[], Store]) -> None:
    """A write of one daemon wakes the other (PostgreSQL); within a process on both."""
    here = store.subscribe(EVENTS)
    other = other_store()
    await other.open()
    there = other.subscribe(EVENTS)
    try:
        if not store.sqlite:
            await asyncio.wait_for(there.wait(), 30)  # its LISTEN has begun
            there.clear()
        async with store.write(EVENTS) as session:
            await session.execute(insert(_host).values(new_row(Host, name="a1")))
        assert here.is_set()
        if not store.sqlite:
            await asyncio.wait_for(there.wait(), 30)
    finally:
        await other.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("rows", [1, 3], ids=["one row", "many rows"])
async def test_a_frozen_transaction_lets_go(
    database_url: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Whatever a daemon did last before it froze within a transaction: the server ends its session, and its locks are free."""
    monkeypatch.setattr(postgres, "IDLE_SECONDS", 1)
    hosts = [new_row(Host, name=f"a{number}") for number in range(rows)]
    wakes = [{"b_id": host["id"]} for host in hosts]
    bump = update(_host).where(_host.c.id == bindparam("b_id")).values(wake=_host.c.wake + 1)
    async with open_store(database_url) as frozen, open_store(database_url) as other:
        async with other.write() as session:
            await session.execute(insert(_host), hosts)
        with pytest.raises(DBAPIError) as woken:
            async with frozen.write() as session:
                result = await (await session.connection()).execute(bump, wakes)
                assert result.rowcount == rows
                async with other.write() as second:  # raises when lock_timeout is over
                    await (await second.connection()).execute(bump, wakes)
        assert store_module.is_transient(woken.value)
        async with other.read() as session:
            assert set((await session.execute(select(_host.c.wake))).scalars()) == {1}


async def test_one_daemon_a_file(tmp_path: Path) -> None:
    """A second daemon on the same file is told so."""
    url = sqlite_url(tmp_path)
    async with open_store(url):
        with pytest.raises(Conflict, match="another provisiond"):
            await Store(url).open()
    async with open_store(url):
        pass


async def test_the_log_is_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's log does not grow with the number of commits."""
    monkeypatch.setattr(store_module, "_CHECKPOINT_COMMITS", 50)
    async with open_store(sqlite_url(tmp_path)) as store:
        async with store.write() as session:
            await session.execute(insert(_host).values(new_row(Host, name="a1")))
        log = tmp_path / "provisiond.db-wal"
        for i in range(1000):
            async with store.write() as session:
                await session.execute(update(_host).values(comment=str(i)))
            if i % 250 == 249:
                async with asyncio.timeout(30):  # a thread folds it, in its own time
                    while log.stat().st_size >= 1_500_000:
                        await asyncio.sleep(0.02)


_WRITER = """
import asyncio, sys
from sqlalchemy import insert
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, new_row, table

async def main():
    store = Store(sys.argv[1])
    await store.open()
    i = 0
    while True:
        async with store.write() as session:
            await session.execute(insert(table(Host)).values(new_row(Host, name=f"h{i}")))
        print(i, flush=True)
        i += 1

asyncio.run(main())
"""


async def test_kill_loses_nothing_that_was_answered(database_url: str) -> None:
    """A daemon killed in the middle of writing has kept every row whose commit it had told about."""
    child = subprocess.Popen([sys.executable, "-c", _WRITER, database_url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = -1
    while told < 300:
        told = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    told = max([told, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    child.wait()
    async with open_store(database_url) as store, store.read() as session:
        names = set((await session.execute(select(_host.c.name))).scalars())
    assert {f"h{i}" for i in range(told + 1)} <= names
