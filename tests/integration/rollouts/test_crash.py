"""``kill -9`` at every boundary of a rollout's path: whoever comes next goes on, nobody is asked twice, one report is opened."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from provisiond.inventory.release_tables import PointerMove, Rollout, RolloutHost
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Deployment, Event, Host
from tests.integration.rollouts.process import HOSTS, work


def daemon(url: str, directory: Path, broken: bool, kill: int) -> int:
    """Run one until it ends or dies; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.rollouts.process"])
    process = context.Process(target=work, args=(url, str(directory), broken, kill))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the rollout did not end in two minutes")
    return process.exitcode


@pytest.mark.parametrize("broken", [False, True], ids=["good", "broken"])
@pytest.mark.timeout(600)
async def test_killed_at_every_boundary(database_url: str, tmp_path: Path, broken: bool) -> None:
    """Each daemon makes one boundary more than the one before it and dies, until one comes to the end."""
    kills = 0
    for kill in [
        1,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        2,
        0,
    ]:  # the 1st: decided, not stored; then stored, and the next decided
        code = daemon(database_url, tmp_path, broken, kill)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 4
    store = Store(database_url, lock=False)
    await store.open()
    async with store.read() as session:
        rollout = (await session.execute(select(Rollout))).scalars().one()
        asked = (await session.execute(select(RolloutHost))).scalars().all()
        hosts = (await session.execute(select(Host))).scalars().all()
        builds = (await session.execute(select(Deployment))).scalars().all()
        moves = (
            (await session.execute(select(PointerMove).where(PointerMove.rollout_id == rollout.id)))
            .scalars()
            .all()
        )
        told = Counter(
            (await session.execute(select(Event.kind).where(Event.kind.like("rollout.%")))).scalars()
        )
        intents = (await session.execute(select(Event).where(Event.kind == "intent.rebuild"))).scalars().all()
    await store.close()
    print(rollout.state, rollout.why, [one["failure"] for one in rollout.report.get("hosts", [])])
    per_host = Counter(
        (event.host_id, one.purpose) for event in intents for one in asked if one.host_id == event.host_id
    )
    assert len(intents) == len(asked), "a host was asked twice, or was noted down without being asked"
    with_it = Counter(b.host_id for b in builds if b.release_id == rollout.release_id)
    assert set(with_it.values()) == {1}
    assert told["rollout.started"] == 1 and told["rollout.step"] == (1 if broken else 2)
    if broken:
        assert rollout.state == "back" and told["rollout.report"] == told["rollout.gone-back"] == 1
        assert len(with_it) == 1 and not moves
        assert rollout.report["hosts"][0]["host_id"] in with_it
        assert {one.purpose for one in asked} == {"forth", "back"}, per_host
    else:
        assert rollout.state == "done" and len(with_it) == HOSTS == len(asked)
        assert len(moves) == 1 and told["rollout.done"] == 1
    assert {host.state for host in hosts} == {"active"}
