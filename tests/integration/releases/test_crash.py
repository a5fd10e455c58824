"""``release use`` in a process that is killed: the pointer is at one release or the other, and the history says which."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

from sqlalchemy import select

from provisiond.errors import ProvisiondError
from provisiond.inventory import history, postgres
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove, ReleasePointer
from provisiond.inventory.store import Store
from provisiond.templating.catalogue import Catalogue, ensure_release
from provisiond.templating.moves import roll_back, use_release
from tests.databases import open_store

KILLS = 6


def catalogue(number: int) -> Catalogue:
    return Catalogue.of({"a.j2": f"{{#\nkind: x\nabout: a test\n#}}\n{number}"})


async def turn(url: str) -> None:
    """Make one release after the other current, and take some back, without end; a line on standard output for each."""
    store = Store(url, lock=False)
    await store.open()
    postgres.IDLE_SECONDS = 4
    number = 0
    while True:
        number += 1
        with contextlib.suppress(ProvisiondError):
            if number % 3:
                await use_release(
                    store, str(1 + number % 4), group=None, actor="user:test", reason=str(number)
                )
            else:
                await roll_back(store, group=None, to=None, actor="user:test", reason=str(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


async def test_kill_nine(database_url: str) -> None:
    """Killed again and again at any point: every move has its event, the chain has no hole, and the pointer is at its end."""
    async with open_store(database_url) as store:
        for number in range(4):
            await ensure_release(store, catalogue(number))
    code = f"import asyncio; from tests.integration.releases.test_crash import turn; asyncio.run(turn({database_url!r}))"
    done = 0
    for kill in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(4 + kill):
            done += bool(await asyncio.to_thread(process.stdout.readline))
        await asyncio.sleep(0.003 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert done >= 4 * KILLS
    async with open_store(database_url) as store:
        assert await use_release(store, "1", group=None, actor="user:test") is not None
        async with store.read() as session:
            moves = (await session.execute(select(PointerMove).order_by(PointerMove.id))).scalars().all()
            pointer = await session.get(ReleasePointer, EVERYWHERE)
        events = [
            e
            for kind in ("release.moved", "release.rolled-back")
            for e in await history.list_events(store, None, kind=kind, limit=10_000)
        ]
    assert [m.before_id for m in moves[1:]] == [m.release_id for m in moves[:-1]]
    assert pointer is not None and (pointer.release_id, pointer.move_id) == (
        moves[-1].release_id,
        moves[-1].id,
    )
    assert sorted(e.data["move"] for e in events) == [m.id for m in moves]
