"""Creates that arrive together are made together: one transaction, a handful of statements, whatever their number.

Each request keeps its own all-or-nothing. A gathered transaction that fails for whatever reason has changed nothing; then every
request of it is made by itself, so that what it is told is what it would have been told alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.hosts import create_hosts
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import HostCreate, HostView
from provisiond.inventory.store import Store

AT_ONCE = 200  # hosts in one gathered transaction; a larger request goes alone
PAUSE = 0.002  # seconds that more requests may take to join, where some did the last time

Keep = Callable[[AsyncSession, list[HostView]], Awaitable[None]]


@dataclass(eq=False)
class _Wish:
    specs: list[HostCreate]
    actor: str
    many: bool
    keep: Keep | None
    made: asyncio.Future[list[HostView]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Creates:
    """The queue of creates of one daemon."""

    def __init__(self, store: Store, box: SecretBox) -> None:
        self._store, self._box = store, box
        self._waiting: list[_Wish] = []
        self._task: asyncio.Task[None] | None = None
        self._crowd = False  # whether several came at once the last time

    async def create(
        self, specs: list[HostCreate], *, actor: str, many: bool, keep: Keep | None
    ) -> list[HostView]:
        """As inventory.hosts.create_hosts, with ``keep`` as further work for the same transaction."""
        wish = _Wish(specs, actor, many, keep)
        self._waiting.append(wish)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="api-creates")
        return await wish.made

    async def _run(self) -> None:
        batch: list[_Wish] = []
        try:
            while self._waiting:
                await asyncio.sleep(PAUSE if self._crowd else 0)
                batch = self._take()
                self._crowd = len(batch) > 1 or bool(self._waiting)
                if len(batch) == 1 or not await self._together(batch):
                    for wish in batch:
                        await self._alone(wish)
        finally:
            self._task = None
            for wish in (*batch, *self._waiting):  # none are left, but where we were cancelled
                wish.made.cancel()
            self._waiting.clear()

    def _take(self) -> list[_Wish]:
        """The next requests of one actor, in their order."""
        first = self._waiting[0]
        batch: list[_Wish] = []
        count = 0
        for wish in self._waiting:
            if wish.actor != first.actor or (batch and count + len(wish.specs) > AT_ONCE):
                break
            batch.append(wish)
            count += len(wish.specs)
        del self._waiting[: len(batch)]
        return batch

    async def _together(self, batch: list[_Wish]) -> bool:
        """Whether it worked."""
        specs = [spec for wish in batch for spec in wish.specs]

        async def keep(session: AsyncSession, made: list[HostView]) -> None:
            for wish, own in _shares(batch, made):
                if wish.keep is not None:
                    await wish.keep(session, own)

        try:
            made = await create_hosts(self._store, self._box, specs, actor=batch[0].actor, also=keep)
        except Exception:
            return False
        for wish, own in _shares(batch, made):
            if not wish.made.done():
                wish.made.set_result(own)
        return True

    async def _alone(self, wish: _Wish) -> None:
        try:
            made = await create_hosts(
                self._store, self._box, wish.specs, actor=wish.actor, many=wish.many, also=wish.keep
            )
        except Exception as error:
            if not wish.made.done():
                wish.made.set_exception(error)
            return
        if not wish.made.done():
            wish.made.set_result(made)


def _shares(batch: list[_Wish], made: list[HostView]) -> list[tuple[_Wish, list[HostView]]]:
    shares, begin = [], 0
    for wish in batch:
        shares.append((wish, made[begin : begin + len(wish.specs)]))
        begin += len(wish.specs)
    return shares
