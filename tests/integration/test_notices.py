"""Notices over the real history: in order, at least once, by one daemon, and a dead address holds up no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from provisiond.config import NotifySettings
from provisiond.drivers.notify.fake import FakeNotify
from provisiond.errors import ConfigError, DriverRejected, DriverUnavailable
from provisiond.inventory import history
from provisiond.inventory.store import EVENTS, Store
from provisiond.inventory.tables import Setting, utcnow
from provisiond.observe import notices as room
from provisiond.observe.follow import History
from provisiond.observe.notices import Notices, Target, open_targets

LEASE = timedelta(seconds=2)


@pytest.fixture
async def followed(store: Store) -> AsyncIterator[History]:
    """The history, followed."""
    found = History(store)
    await found.start()
    yield found
    await found.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between tries."""
    monkeypatch.setattr(room, "FIRST_PAUSE", 0.05)


async def tell(store: Store, *kinds: str) -> None:
    async with store.write(EVENTS) as session:
        for kind in kinds:
            await history.add(
                session, kind=kind, message=f"about {kind}", data={"log_tail": "hidden", "rollout": 1}
            )


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def target(driver: FakeNotify, name: str = "a") -> Target:
    return Target(f"notify.{name}", driver)


async def test_what_was_asked_for_is_told_in_order(store: Store, followed: History) -> None:
    """Only events of the kinds; nothing from before the first start; logs of machines are left out."""
    await tell(store, "rollout.started")
    driver = FakeNotify("fake://")
    await followed.now()
    notices = Notices(store, followed, [target(driver)], ["rollout.*", "step.failed"], "d1", lease=LEASE)
    await notices.start()
    await tell(store, "rollout.step", "step.ended", "step.failed", "rollout.report")
    await until(lambda: len(driver.sent) == 3)
    assert [n.kind for n in driver.sent] == ["rollout.step", "step.failed", "rollout.report"]
    assert [n.severity for n in driver.sent] == ["info", "failure", "failure"]
    assert driver.sent[0].data == {"rollout": 1} and "about rollout.step" in driver.sent[0].title
    await notices.stop()
    assert notices.counts["sent"] == 3


async def test_a_stopped_daemon_loses_none_and_a_killed_one_repeats_with_the_same_key(
    store: Store, followed: History
) -> None:
    """What happened meanwhile is told at the next start; what was taken but not noted down is told again."""
    driver = FakeNotify("fake://")

    def told(kind: str) -> list[str]:
        return [n.key for n in driver.sent if n.kind == kind]

    first = Notices(store, followed, [target(driver)], ["rollout.*"], "d1", lease=LEASE)
    await first.start()
    await tell(store, "rollout.started")
    await until(lambda: told("rollout.started"))
    await first.stop()
    await tell(store, "rollout.step")
    second = Notices(store, followed, [target(driver)], ["rollout.*"], "d2", lease=LEASE)
    await second.start()
    await until(lambda: told("rollout.step"))

    async def killed(*_args: Any, **_more: Any) -> bool:
        for task in second._tasks:
            task.cancel()
        raise RuntimeError("killed")

    second._keep = killed  # type: ignore[method-assign]
    await tell(store, "rollout.done")
    await until(lambda: told("rollout.done"))
    before = len(told("rollout.done"))
    await second.stop()
    third = Notices(store, followed, [target(driver)], ["rollout.*"], "d3", lease=LEASE)
    await third.start()
    await until(lambda: len(told("rollout.done")) > before)
    await third.stop()
    keys = list(dict.fromkeys(n.key for n in driver.sent))
    assert keys == sorted(keys, key=int) and len(keys) == 3
    assert len(set(told("rollout.done"))) == 1


async def test_one_that_is_down_holds_up_no_other(store: Store, followed: History) -> None:
    """It is tried again until it takes the notice; what it refuses for good is dropped, and the next one comes."""
    down, well = FakeNotify("fake://"), FakeNotify("fake://")
    down.fail_next = [DriverUnavailable("busy")] * 3 + [DriverRejected("no")]
    notices = Notices(store, followed, [target(down), target(well, "b")], ["rollout.*"], "d1", lease=LEASE)
    await notices.start()
    await tell(store, "rollout.started", "rollout.done")
    await until(lambda: len(well.sent) == 2)
    await until(lambda: down.sent)
    await notices.stop()
    assert [n.kind for n in down.sent] == ["rollout.done"]
    assert notices.counts == {"sent": 3, "tries_failed": 3, "dropped": 1}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_of_two_daemons_one_tells(
    store: Store, followed: History, other_store: Callable[[], Store]
) -> None:
    """The other begins when the first is silent for the length of its lease."""
    driver, elsewhere = FakeNotify("fake://"), other_store()
    await elsewhere.open()
    follower = History(elsewhere)
    await follower.start()
    first = Notices(store, followed, [target(driver)], ["rollout.*"], "d1", lease=timedelta(minutes=2))
    second = Notices(elsewhere, follower, [target(driver)], ["rollout.*"], "d2", lease=LEASE)
    await first.start()
    await second.start()
    await tell(store, "rollout.started", "rollout.step", "rollout.step")
    await until(lambda: len(driver.sent) == 3)
    assert {first.counts["sent"], second.counts["sent"]} == {3, 0}
    dead, living = (first, second) if first.counts["sent"] else (second, first)
    for task in dead._tasks:  # it dies, and its lease runs out
        task.cancel()
    async with store.write() as session:
        row = (await session.execute(select(Setting).where(Setting.name == "notify.a"))).scalars().one()
        row.value = {**row.value, "until": (utcnow() - timedelta(seconds=1)).isoformat()}
    await tell(store, "rollout.done")
    await until(lambda: driver.sent[-1].kind == "rollout.done", 90)
    assert living.counts["sent"] >= 1
    await second.stop()
    await first.stop()
    await follower.close()
    await elsewhere.close()
    assert list(dict.fromkeys(n.kind for n in driver.sent)) == [
        "rollout.started",
        "rollout.step",
        "rollout.done",
    ]


def test_addresses_are_secrets() -> None:
    """They are in no print of the settings, and a wrong one is named without being shown."""
    settings = NotifySettings(
        driver="webhook", urls=[SecretStr("https://user:s3cret@h/x")], secret=SecretStr("s3cret")
    )
    assert "s3cret" not in repr(settings) + settings.model_dump_json()
    [found] = open_targets(settings)
    assert "s3cret" not in found.place + repr(found)
    with pytest.raises(ConfigError, match=r"^notify\.urls") as caught:
        open_targets(NotifySettings(driver="webhook", urls=[SecretStr("gopher://s3cret")]))
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="no address"):
        open_targets(NotifySettings(driver="apprise"))
