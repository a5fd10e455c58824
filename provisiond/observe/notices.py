"""Notices: events of the kinds that the settings name are told, each at least once, in their order.

Every address has a place in the history of its own (a Setting), so that a mail server that is down does not hold up the chat.
The place moves on when the notice was taken; a daemon that dies between the two tells it once more, with the same key. Of
several daemons one tells: the place has a lease.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import structlog
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.config import NotifySettings
from provisiond.drivers import load
from provisiond.drivers.notify import Notice, Notify, Severity
from provisiond.errors import ConfigError, DriverRejected, DriverUnavailable
from provisiond.inventory.shapes import EventView
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Setting, table, utcnow
from provisiond.observe.follow import History

log = structlog.get_logger(__name__)
_setting = table(Setting)
LEASE = timedelta(seconds=30)
TOO_OLD = timedelta(days=1)
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
_NOT_TOLD = frozenset({"log_tail"})  # what a machine's log says stays in the history
_SEVERITIES: Sequence[tuple[str, Severity]] = (
    ("rollout.report", "failure"),
    ("rollout.go*-back", "failure"),
    ("*fail*", "failure"),
    ("rollout.paused", "warning"),
    ("rollout.waiting", "warning"),
    ("rollout.cancelled", "warning"),
    ("rollout.done", "success"),
)


@dataclass
class Target:
    """One address. ``place`` is the Setting with its place in the history."""

    place: str
    driver: Notify


def open_targets(settings: NotifySettings) -> list[Target]:
    """A driver for each address of the settings. Raises ConfigError, without the address in it."""
    if settings.driver == "none":
        return []
    if not settings.urls:
        raise ConfigError(f"notify.urls: there is no address for the driver {settings.driver}")
    made = load("notify", settings.driver)
    targets = []
    for url in settings.urls:
        text = url.get_secret_value()
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        driver = made(text, secret=settings.secret.get_secret_value(), timeout=settings.timeout_seconds)
        targets.append(Target(f"notify.{name}", driver))
    return targets


class Notices:
    """Tells every target. ``owner`` is this daemon's id."""

    def __init__(
        self,
        store: Store,
        history: History,
        targets: Sequence[Target],
        kinds: Sequence[str],
        owner: str,
        *,
        lease: timedelta = LEASE,
    ) -> None:
        self._store, self._history, self._targets, self._kinds, self._owner = (
            store,
            history,
            targets,
            kinds,
            owner,
        )
        self._lease = lease
        self._tasks: list[asyncio.Task[None]] = []
        self.counts = {"sent": 0.0, "tries_failed": 0.0, "dropped": 0.0}

    async def start(self) -> None:
        """Begin. An address that is new is told what happens from now on."""
        for target in self._targets:
            await self._begin(target)
            self._tasks.append(asyncio.create_task(self._tell_for_ever(target), name=target.place))

    async def stop(self) -> None:
        """End at once: what was not taken is told at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for target in self._targets:
            with suppress(Exception):
                await self._keep(target, None, leave=True)
            await target.driver.close()

    async def _tell_for_ever(self, target: Target) -> None:
        while True:
            try:
                cursor = await self._claim(target)
                if cursor is not None:
                    await self._tell_from(target, cursor)
            except Exception:
                log.exception("notices.failed", place=target.place)
            await asyncio.sleep(self._lease.total_seconds() / 3)

    async def _tell_from(self, target: Target, cursor: int) -> None:
        """Until somebody else has the lease."""
        kept = asyncio.get_running_loop().time()
        beat = self._lease.total_seconds() / 3
        async for events in self._history.watch(after=cursor, beat=beat):
            for event in events:
                if any(fnmatchcase(event.kind, kind) for kind in self._kinds):
                    if not await self._tell(target, event, cursor):
                        return
                    if not await self._keep(target, event.id):
                        return
                    kept = asyncio.get_running_loop().time()
                cursor = event.id
            if asyncio.get_running_loop().time() - kept >= beat:
                if not await self._keep(target, cursor):
                    return
                kept = asyncio.get_running_loop().time()

    async def _tell(self, target: Target, event: EventView, cursor: int) -> bool:
        """Until it is taken, refused, or too old to be news. False: somebody else has the lease."""
        notice = notice_of(event)
        pause = FIRST_PAUSE
        while utcnow() - event.at < TOO_OLD:
            try:
                await target.driver.send(notice)
            except DriverUnavailable as error:
                self.counts["tries_failed"] += 1
                log.warning(
                    "notices.not_taken",
                    number=event.id,
                    kind=event.kind,
                    error=str(error),
                    again_in=round(pause),
                )
            except DriverRejected as error:
                self.counts["dropped"] += 1
                log.error("notices.refused", number=event.id, kind=event.kind, error=str(error))
                return True
            else:
                self.counts["sent"] += 1
                return True
            waited, until = 0.0, pause * random.uniform(0.75, 1.25)  # noqa: S311 - jitter, not a secret
            while waited < until:
                part = min(until - waited, self._lease.total_seconds() / 3)
                await asyncio.sleep(part)
                waited += part
                if not await self._keep(target, cursor):
                    return False
            pause = min(2 * pause, LONGEST_PAUSE)
        self.counts["dropped"] += 1
        log.error("notices.too_old", number=event.id, kind=event.kind)
        return True

    # --- the place -----------------------------------------------------------------------------------------

    async def _begin(self, target: Target) -> None:
        new: Any = sqlite.insert(_setting) if self._store.sqlite else postgresql.insert(_setting)
        value = {"event": self._history.last, "owner": "", "until": ""}

        async def work(session: AsyncSession) -> None:
            await session.execute(new.values(name=target.place, value=value).on_conflict_do_nothing())

        await self._store.transact(work)

    async def _claim(self, target: Target) -> int | None:
        """The last event that was told; None while another daemon tells."""

        async def work(session: AsyncSession) -> int | None:
            now = await self._store.now(session)
            value = await self._read(session, target)
            if self._taken(value, now):
                return None
            await self._write(session, target, int(value["event"]), now)
            return int(value["event"])

        return await self._store.transact(work)

    async def _keep(self, target: Target, cursor: int | None, *, leave: bool = False) -> bool:
        """Move the place on and renew the lease; False when it is another daemon's by now."""

        async def work(session: AsyncSession) -> bool:
            now = await self._store.now(session)
            value = await self._read(session, target)
            if value.get("owner") != self._owner:
                return False
            await self._write(
                session, target, int(value["event"]) if cursor is None else cursor, now, leave=leave
            )
            return True

        return await self._store.transact(work)

    def _taken(self, value: Mapping[str, Any], now: datetime) -> bool:
        if not value.get("owner") or value["owner"] == self._owner or self._store.sqlite:
            return False  # SQLite serves one daemon: an owner there is a dead one
        return datetime.fromisoformat(value["until"]) > now

    async def _read(self, session: AsyncSession, target: Target) -> dict[str, Any]:
        found = select(_setting.c.value).where(_setting.c.name == target.place).with_for_update()
        return dict((await session.execute(found)).scalar_one())

    async def _write(
        self, session: AsyncSession, target: Target, event: int, now: datetime, *, leave: bool = False
    ) -> None:
        until = (now + self._lease).isoformat()
        value = {"event": event, "owner": "" if leave else self._owner, "until": "" if leave else until}
        await session.execute(update(_setting).where(_setting.c.name == target.place).values(value=value))


def notice_of(event: EventView) -> Notice:
    """An event for the outside. Logs of machines are left out."""
    severity: Severity = next((s for pattern, s in _SEVERITIES if fnmatchcase(event.kind, pattern)), "info")
    said = event.message or event.cause or event.kind
    first, _, rest = said.partition("\n")
    about = f"host {event.host}: " if event.host else ""
    lines = [f"{about}{first}", *rest.splitlines()[:20], f"{event.kind} at {event.at:%Y-%m-%d %H:%M:%S} UTC"]
    lines += [f"by {event.actor}"] if event.actor else []
    return Notice(
        key=str(event.id), kind=event.kind, at=event.at, title=f"provisiond: {about}{first}"[:200], text="\n".join(lines),
        severity=severity, host=event.host, data={name: v for name, v in event.data.items() if name not in _NOT_TOLD},
    )  # fmt: skip
