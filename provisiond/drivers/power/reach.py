"""Drive a machine to a power state: ask, read back, ask again, until it is there or time is up.

Controllers accept an order and forget it, refuse it for a minute after the last one (iDRAC), report the old state for half
a minute, or drop off the network while the machine starts (a shared port): only what is read back counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from provisiond.drivers.power import PowerState
from provisiond.errors import DriverRejected, DriverUnavailable

ASK_AGAIN = 10.0  # seconds without effect after which the order is given once more
POLL_FIRST, POLL_LAST = 0.2, 2.0
CYCLE_SEEN = (
    5.0  # a cycle whose dark part nobody saw counts as done when the machine has been on for this long
)


async def reach(
    host: str,
    wanted: PowerState,
    read: Callable[[], Awaitable[PowerState]],
    ask: Callable[[], Awaitable[None]],
    *,
    timeout: float,
    asked: bool = False,
) -> PowerState:
    """Call ``ask`` until ``read`` says ``wanted``; nothing is asked of a machine that is there already.

    ``asked`` True when the order was given just before. Raises DriverUnavailable after ``timeout`` seconds, and what ``read``
    or ``ask`` say is final. An order that is refused counts as refused only when the state did not come about all the same.
    """
    end = time.monotonic() + timeout
    again = time.monotonic() + ASK_AGAIN if asked else 0.0
    pause, found = POLL_FIRST, "it did not answer"
    refused: DriverRejected | None = None
    while True:
        try:
            state = await read()
            if state is wanted:
                return state
            found = f"it still reads {state}"
            if refused is not None:
                raise refused
            if time.monotonic() >= again:
                again = time.monotonic() + ASK_AGAIN
                refused = await _order(ask)
        except DriverUnavailable as error:
            found = str(error).removeprefix(f"{host}: ")
        if time.monotonic() + pause > end:
            raise DriverUnavailable(
                f"{host} did not reach power {wanted} within {timeout:g} s: {found}; look at its console and its BMC's log"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, POLL_LAST)


async def came_back(
    host: str,
    read: Callable[[], Awaitable[PowerState]],
    turn_on: Callable[[], Awaitable[None]],
    *,
    timeout: float,
) -> PowerState:
    """Wait until a machine that was told to cycle is on again; one that stays off is told so."""
    end = time.monotonic() + timeout
    settled = time.monotonic() + min(CYCLE_SEEN, timeout / 2)
    while time.monotonic() < settled:
        try:
            if await read() is PowerState.OFF:
                break
        except DriverUnavailable:
            pass  # the controller is busy with the cycle; the read-back below decides
        await asyncio.sleep(POLL_FIRST)
    return await reach(
        host, PowerState.ON, read, turn_on, timeout=max(1.0, end - time.monotonic()), asked=True
    )


async def _order(ask: Callable[[], Awaitable[None]]) -> DriverRejected | None:
    try:
        await ask()
    except DriverRejected as refusal:
        return refusal
    return None
