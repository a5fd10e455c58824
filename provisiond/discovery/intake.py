"""Facts come in. A hundred machines that appear at once appear once each: what is unique (a name, a MAC, a serial number) is so
in the database, and whoever loses that race looks again and finds itself known.

Reports that arrive together are taken in together, in one transaction (bulk.py): a rack that is powered on is a hundred of them in one
second. A gathered transaction that fails has changed nothing; then each of its reports is taken in by itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sqlalchemy.exc import IntegrityError

from provisiond.discovery import bulk
from provisiond.discovery.report import Report, Session, World
from provisiond.errors import Conflict
from provisiond.inventory.facts import Facts
from provisiond.inventory.store import EVENTS, HOSTS

AT_ONCE = 50  # reports in one transaction
_TRIES = 6


async def take_facts(world: World, session: Session, facts: Facts) -> str:
    """Take in what the machine of this ramdisk session says of itself; returns its host's name. May be repeated.

    Raises Conflict, which the machine is told, where it cannot be a host: all its network cards are other hosts', or too many
    machines wait already.
    """
    return await _alone(Report(world, session, facts))


@dataclass(eq=False)
class _Waiting:
    report: Report
    name: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def tell(self, name: str = "", error: BaseException | None = None) -> None:
        if self.name.done():
            return
        if error is not None:
            self.name.set_exception(error)
        else:
            self.name.set_result(name)


class Intake:
    """The queue of reports of one daemon."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def take(self, session: Session, facts: Facts) -> str:
        """As ``take_facts``."""
        waiting = _Waiting(Report(self._world, session, facts))
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="discovery-intake")
        return await waiting.name

    async def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while self._waiting:
                await asyncio.sleep(0)  # those that came in at the same moment
                batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                if len(batch) == 1 or not await self._together(batch):
                    for one in batch:
                        await self._by_itself(one)
        finally:
            self._task = None
            for one in (*batch, *self._waiting):  # none are left, but where we were cancelled
                one.name.cancel()
            self._waiting.clear()

    async def _together(self, batch: list[_Waiting]) -> bool:
        """Whether it worked."""
        reports = [one.report for one in batch]
        try:
            answers = await self._world.store.transact(lambda db: bulk.work(db, reports), HOSTS, EVENTS)
        except Exception:
            return False
        for one, (name, refused) in zip(batch, answers, strict=True):
            one.tell(name, Conflict(refused) if refused else None)
        return True

    async def _by_itself(self, one: _Waiting) -> None:
        try:
            one.tell(await _alone(one.report))
        except Exception as error:
            one.tell(error=error)


async def _alone(report: Report) -> str:
    store = report.world.store
    for attempt in range(_TRIES):
        try:
            name, refused = await store.transact(report.work, HOSTS, EVENTS)
            break
        except IntegrityError:  # another machine, or another of this one's reports, was quicker: look again
            if attempt == _TRIES - 1:
                raise
            store.known.rules = None  # or a rule gives a group that another daemon has just deleted
    if refused:
        raise Conflict(refused)
    return name
