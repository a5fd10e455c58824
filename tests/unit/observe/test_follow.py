"""The follower of the history: that it ends when it is told to."""

from __future__ import annotations

import asyncio

import pytest

from provisiond.inventory.store import EVENTS, Store
from provisiond.observe.follow import History


@pytest.mark.parametrize("turns", range(4))
async def test_news_at_the_moment_of_closing(sqlite_store: Store, turns: int) -> None:
    """An event that comes so many turns of the loop before the close does not keep it from ending."""
    history = History(sqlite_store)
    await history.start()
    for _ in range(5):
        await asyncio.sleep(0)  # it waits for news now
    sqlite_store.wake(EVENTS)
    for _ in range(turns):
        await asyncio.sleep(0)
    closing = asyncio.create_task(history.close())
    await asyncio.wait([closing], timeout=30)
    assert closing.done()
