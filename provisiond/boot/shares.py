"""Who may be sent an image now, and how fast: streams and bytes a second for each subnet, shared fairly by its machines.

A lane is a subnet as this daemon serves it. Above its limit of streams machines wait in the order they came: they are told when to
ask again, and a place that becomes free is kept for the first of them. Bytes are handed out in grants of at most GRANT, one
machine after the other; a machine that does not read asks for none, so it holds nobody up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog

from provisiond.config import BootSettings
from provisiond.errors import ProvisiondError
from provisiond.inventory.tables import Subnet

log = structlog.get_logger(__name__)

GRANT = 1 << 20
LIMITED_GRANT = 256 << 10
PATIENCE = 10.0
"""Seconds that a waiting machine's place is kept past the moment it was to ask again."""


class Busy(ProvisiondError):
    """All streams of the lane are taken: ``retry_after`` is in seconds, ``place`` counts from 1."""

    def __init__(self, lane: str, place: int, retry_after: int) -> None:
        self.place, self.retry_after = place, retry_after
        super().__init__(
            f"all streams of images in subnet {lane} are taken; this machine is number {place} in the queue, "
            f"ask again in {retry_after} s"
        )


@dataclass(frozen=True)
class Limits:
    """Of one lane: ``streams`` at once, ``mbps`` megabits (10^6 bit) a second of all together; 0: no limit."""

    lane: str
    streams: int
    mbps: int


def limits_of(subnet: Subnet | None, boot: BootSettings) -> Limits:
    """The limits of a machine's subnet: its parameters image_streams and image_mbps, else the settings."""
    if subnet is None:
        return Limits("(none)", boot.image_streams_per_subnet, boot.image_mbps_per_subnet)
    return Limits(
        subnet.name,
        _number(subnet, "image_streams", boot.image_streams_per_subnet),
        _number(subnet, "image_mbps", boot.image_mbps_per_subnet),
    )


def _number(subnet: Subnet, name: str, default: int) -> int:
    value = subnet.parameters.get(name, default)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    log.warning("boot.bad_parameter", subnet=subnet.name, parameter=name, wants="a whole number, 0 or more")
    return default


class Share:
    """One machine's stream. A context manager; leaving it frees its place."""

    def __init__(self, lane: _Lane, machine: str) -> None:
        self._lane, self._machine, self._over = lane, machine, False

    async def grant(self, wanted: int) -> int:
        """How many bytes (1 to ``wanted``) may be sent now, when it is this stream's turn. Give back what was not sent.

        Raises ConnectionAbortedError when the machine has begun another transfer in place of this one.
        """
        granted = await self._lane.grant(wanted)
        if self._over:
            self._lane.give_back(granted)
            raise ConnectionAbortedError("the machine has asked for its image anew")
        return granted

    def used(self, granted: int, sent: int) -> None:
        """Settle a grant."""
        self._lane.give_back(granted - sent)
        self._lane.shares.bytes_sent += sent

    def supersede(self) -> None:
        """The machine asks anew: its older connection is dead or given up."""
        self._over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lane.active.get(self._machine) is self:
            del self._lane.active[self._machine]
        self._lane.shares.forget_idle()


class _Lane:
    """A subnet: who is sent something, who waits, and the bucket of bytes."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.active: dict[str, Share] = {}
        self.waiting: dict[str, float] = {}  # machine -> until when its place is kept, in the order they came
        self._rate, self._tokens, self._then = 0.0, 0.0, shares.clock()
        self._queue: deque[tuple[asyncio.Future[int], int]] = deque()
        self._timer: Any = None

    def limit(self, mbps: int) -> None:
        """The bytes a second from now on."""
        rate = mbps * 125_000.0
        if rate != self._rate:
            self._refill()
            self._rate, self._tokens = rate, min(self._tokens, self._burst(rate))
            self._pump()

    async def grant(self, wanted: int) -> int:
        if not self._rate:
            await asyncio.sleep(0)  # the other streams' turn
            return min(wanted, GRANT)
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, min(wanted, LIMITED_GRANT)))
        self._pump()
        return await turn

    def give_back(self, unused: int) -> None:
        self._tokens += unused

    def expire(self) -> None:
        """Forget those who did not come back."""
        now = self.shares.clock()
        for machine in [m for m, until in self.waiting.items() if until < now]:
            del self.waiting[machine]

    def _burst(self, rate: float) -> float:
        return max(2.0 * LIMITED_GRANT, rate / 20)

    def _refill(self) -> None:
        now = self.shares.clock()
        self._tokens = min(self._burst(self._rate), self._tokens + (now - self._then) * self._rate)
        self._then = now

    def _pump(self) -> None:
        """Serve whoever waits, in turn, as far as the bytes go; and come again when there are enough for the next."""
        self._refill()
        while self._queue:
            turn, wanted = self._queue[0]
            if turn.done():  # its request was broken off
                self._queue.popleft()
                continue
            if self._rate and self._tokens + 1 < wanted:  # a byte of rounding
                if self._timer is None:
                    self._timer = self.shares.later((wanted - self._tokens) / self._rate, self._again)
                return
            self._queue.popleft()
            self._tokens -= wanted
            turn.set_result(wanted)

    def _again(self) -> None:
        self._timer = None
        self._pump()


class Shares:
    """All lanes of one daemon. ``clock`` in seconds and ``later`` (delay, callback) are the event loop's unless a test brings its own."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
    ) -> None:
        self.clock = clock
        self.later = later or (lambda delay, call: asyncio.get_running_loop().call_later(delay, call))
        self.bytes_sent = self.refused = 0
        self._lanes: dict[str, _Lane] = {}

    def enter(self, limits: Limits, machine: str) -> Share:
        """A place for ``machine``. Raises Busy; asked again in time, the machine keeps its place in the queue.

        A machine has one stream: when it asks anew, the new one takes the older one's place.
        """
        lane = self._lanes.get(limits.lane)
        if lane is None:
            lane = self._lanes[limits.lane] = _Lane(self)
        lane.limit(limits.mbps)
        lane.expire()
        if (older := lane.active.pop(machine, None)) is not None:
            older.supersede()
        elif limits.streams:
            free = limits.streams - len(lane.active)
            line = list(lane.waiting)
            place = line.index(machine) if machine in lane.waiting else len(line)
            if place >= free:
                retry_after = min(15, 2 + place // 4)
                lane.waiting[machine] = self.clock() + retry_after + PATIENCE
                self.refused += 1
                raise Busy(limits.lane, place - max(0, free) + 1, retry_after)
        lane.waiting.pop(machine, None)
        share = lane.active[machine] = Share(lane, machine)
        return share

    def figures(self) -> dict[str, float]:
        """For observe.metrics: streams now, machines that wait, bytes sent and requests put off since the start."""
        for lane in self._lanes.values():
            lane.expire()
        return {
            "streams": float(sum(len(lane.active) for lane in self._lanes.values())),
            "waiting": float(sum(len(lane.waiting) for lane in self._lanes.values())),
            "bytes": float(self.bytes_sent),
            "put_off": float(self.refused),
        }

    def forget_idle(self) -> None:
        """Drop lanes that nobody is in, so that renamed subnets leave nothing behind."""
        for name in [n for n, lane in self._lanes.items() if not lane.active and not lane.waiting]:
            del self._lanes[name]
