"""A daemon's engine and controller as a process of its own, to be killed at a boundary of a rollout's path.

``work`` ends when the rollout is over and every host is at rest; it is run by a fork server, so that a start costs no imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from provisiond.inventory.release_tables import Rollout
from provisiond.inventory.tables import Deployment, Host
from tests.integration.rollouts.fleet import OVER, Fleet

HOSTS = 3
ENGINE = {"lease_seconds": 4.0, "sweep_seconds": 0.2, "backoff_seconds": 0.05, "backoff_max_seconds": 0.2}


def work(url: str, directory: str, broken: bool, kill: int) -> None:
    """Drive the one rollout of this database to its end, and die (SIGKILL) at boundary number ``kill`` of its moves."""
    asyncio.run(_work(url, Path(directory), broken, kill))


async def _work(url: str, directory: Path, broken: bool, kill: int) -> None:
    count = 0

    def boundary(_when: str, _move: str) -> None:
        nonlocal count
        count += 1
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    fleet = await Fleet(
        url, directory, engine=ENGINE, on_disk=True, move_boundary=boundary, rollout_lease=1.0
    ).open()
    await fleet.furnish()
    async with fleet.store.read() as session:
        known = (await session.execute(select(Rollout.release_id))).scalar()
    if known is None:
        web = await fleet.group("web")
        await fleet.stand(HOSTS, web)
        made = await fleet.release("next")
        known = made.id
        await fleet.start_rollout(
            release=made.digest, group="web", steps=["1", "100%"], rebuild=2, rebuild_back=broken
        )
    if broken:
        fleet.broken.add(known)
    await fleet.begin()
    while True:
        with contextlib.suppress(DBAPIError):
            if await _over(fleet):
                break
        await asyncio.sleep(0.05)
    await fleet.close()


async def _over(fleet: Fleet) -> bool:
    """Whether all is at rest. Machines live on while daemons die: those that nobody heard try again."""
    async with fleet.store.read() as session:
        state = (await session.execute(select(Rollout.state))).scalar_one()
        hosts = (await session.execute(select(Host))).scalars().all()
        found = (
            select(Host.id)
            .join(Deployment, Deployment.id == Host.deployment_id)
            .where(
                Host.step.in_(["install", "first-boot"]),
                Deployment.phoned_home_at.is_(None),
                Deployment.failed_at.is_(None),
            )
        )
        waiting = (await session.execute(found)).scalars().all()
    if state in OVER and all(h.due_at is None and h.lease_owner is None for h in hosts):
        return True
    for host_id in waiting:
        await fleet.machine_answers(host_id)
    return False
