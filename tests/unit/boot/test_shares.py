"""Who is sent an image, and how fast: places in a queue, and bytes by a clock that the test moves."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from provisiond.boot.shares import LIMITED_GRANT, PATIENCE, Busy, Limits, Share, Shares, limits_of
from provisiond.config import BootSettings
from provisiond.inventory.tables import Subnet


class Clock:
    """Time that passes when it is told to, with what is to happen then."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def __call__(self) -> float:
        return self.now

    def later(self, delay: float, call: Callable[[], None]) -> Any:
        heapq.heappush(self._calls, (self.now + delay, next(self._number), call))
        return call

    async def run(self, seconds: float) -> None:
        """Let time pass, and everybody act on the way."""
        end = self.now + seconds
        await settle()
        while self._calls and self._calls[0][0] <= end:
            self.now, _, call = heapq.heappop(self._calls)
            call()
            await settle()
        self.now = end


async def settle() -> None:
    """Until nobody has anything to do."""
    for _ in range(10):
        await asyncio.sleep(0)


def refused(shares: Shares, limits: Limits, machine: str) -> Busy:
    with pytest.raises(Busy) as caught:
        shares.enter(limits, machine)
    return caught.value


def test_places_are_given_in_order() -> None:
    """Above the limit machines wait; a free place is kept for the first in line, whoever else asks before it."""
    shares, limits = Shares(Clock()), Limits("rack", 2, 0)
    first, second = shares.enter(limits, "a"), shares.enter(limits, "b")
    assert [refused(shares, limits, m).place for m in "cde"] == [1, 2, 3]
    with first:
        pass
    assert refused(shares, limits, "e").place == 2  # the free place is c's
    assert refused(shares, limits, "d").place == 1
    third = shares.enter(limits, "c")
    with second, third:
        pass
    shares.enter(limits, "e")  # two places, and both d and e are next
    shares.enter(limits, "d")
    assert shares.figures()["streams"] == 2 and shares.figures()["waiting"] == 0


def test_a_place_is_lost_by_who_stays_away() -> None:
    """A machine that does not come back when it was told to holds nobody up for long."""
    clock = Clock()
    shares, limits = Shares(clock), Limits("rack", 1, 0)
    with shares.enter(limits, "a"):
        gone = refused(shares, limits, "gone")
        late = refused(shares, limits, "late")
    clock.now += late.retry_after
    assert refused(shares, limits, "late").place == 1
    clock.now += gone.retry_after + PATIENCE
    shares.enter(limits, "late")


def test_lanes_do_not_touch_each_other() -> None:
    """One subnet's limit is not another's; no limit takes anybody."""
    shares = Shares(Clock())
    shares.enter(Limits("one", 1, 0), "a")
    shares.enter(Limits("two", 1, 0), "b")
    for number in range(100):
        shares.enter(Limits("free", 0, 0), str(number))
    assert shares.figures()["streams"] == 102


async def test_asking_anew_ends_the_older_stream() -> None:
    """A machine whose connection broke has its place at once; what is left of the old connection is ended."""
    shares, limits = Shares(Clock()), Limits("rack", 1, 0)
    older = shares.enter(limits, "a")
    with older:
        newer = shares.enter(limits, "a")
        with pytest.raises(ConnectionAbortedError):
            await older.grant(100)
    assert shares.figures()["streams"] == 1
    assert await newer.grant(100) == 100
    refused(shares, limits, "b")


async def reader(share: Share, taken: Counter[str], name: str, clock: Clock, pause: float = 0.0) -> None:
    """Takes whatever it is given; a slow one rests between two pieces."""
    while True:
        granted = await share.grant(1 << 30)
        taken[name] += granted
        share.used(granted, granted)
        if pause:
            rested = asyncio.Event()
            clock.later(pause, rested.set)
            await rested.wait()


async def test_bytes_are_shared_fairly() -> None:
    """Machines that read as fast as they can are given the same; one that is slow gets all it takes, and holds nobody up."""
    clock = Clock()
    shares, limits = Shares(clock, clock.later), Limits("rack", 0, 800)  # 100 MB/s
    taken: Counter[str] = Counter()
    names = [f"fast{n}" for n in range(4)]
    tasks = [asyncio.ensure_future(reader(shares.enter(limits, name), taken, name, clock)) for name in names]
    tasks.append(asyncio.ensure_future(reader(shares.enter(limits, "slow"), taken, "slow", clock, 0.1)))
    await clock.run(10)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert abs(sum(taken.values()) - 1_000_000_000) < 10_000_000  # the limit holds, and is used up
    fast = [taken[name] for name in names]
    assert max(fast) - min(fast) <= 2 * LIMITED_GRANT
    assert 80 * LIMITED_GRANT < taken["slow"] <= 100 * LIMITED_GRANT
    assert shares.bytes_sent == sum(taken.values())


async def test_what_was_not_sent_is_given_back() -> None:
    """A grant that the socket did not take is another machine's."""
    clock = Clock()
    shares, limits = Shares(clock, clock.later), Limits("rack", 0, 8)  # 1 MB/s
    full, other = shares.enter(limits, "full"), shares.enter(limits, "other")
    waiting = asyncio.ensure_future(full.grant(LIMITED_GRANT))
    await clock.run(LIMITED_GRANT / 1_000_000 + 0.001)
    full.used(await waiting, 0)
    assert await other.grant(LIMITED_GRANT) == LIMITED_GRANT


async def test_a_request_that_broke_off_takes_no_turn() -> None:
    """Who is cancelled while it waits for bytes is passed over."""
    clock = Clock()
    shares, limits = Shares(clock, clock.later), Limits("rack", 0, 8)
    one, two = (asyncio.ensure_future(shares.enter(limits, m).grant(LIMITED_GRANT)) for m in "ab")
    await settle()
    one.cancel()
    await clock.run(LIMITED_GRANT / 1_000_000 + 0.001)
    assert await two == LIMITED_GRANT


def test_limits_of_a_subnet() -> None:
    """Its parameters, else the settings; what is no number is passed over."""
    boot = BootSettings(image_streams_per_subnet=7, image_mbps_per_subnet=900)
    assert limits_of(None, boot) == Limits("(none)", 7, 900)
    subnet = Subnet(name="rack", cidr="10.0.0.0/24", parameters={"image_streams": 3, "image_mbps": "fast"})
    assert limits_of(subnet, boot) == Limits("rack", 3, 900)
    subnet.parameters = {"image_streams": 0, "image_mbps": True}
    assert limits_of(subnet, boot) == Limits("rack", 0, 900)
