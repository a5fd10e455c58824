"""Driving a machine to a state, against machines that are slow, deaf or contradict themselves."""

from __future__ import annotations

import pytest

from provisiond.drivers.power import PowerState, reach
from provisiond.errors import DriverRejected, DriverUnavailable

ON, OFF = PowerState.ON, PowerState.OFF


class Machine:
    """Reads what is scripted, then its last word; counts the orders."""

    def __init__(self, *reads: PowerState | Exception, orders: list[Exception | None] | None = None) -> None:
        self.reads, self.orders, self.asked = list(reads), orders or [], 0

    async def read(self) -> PowerState:
        answer = self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask(self) -> None:
        self.asked += 1
        if self.orders and (error := self.orders.pop(0)):
            raise error


async def drive(machine: Machine, timeout: float = 3.0) -> PowerState:
    return await reach.reach("web01", ON, machine.read, machine.ask, timeout=timeout)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real waiting."""
    monkeypatch.setattr(reach, "POLL_FIRST", 0.01)
    monkeypatch.setattr(reach, "POLL_LAST", 0.02)
    monkeypatch.setattr(reach, "ASK_AGAIN", 0.05)


async def test_already_there_is_done() -> None:
    """Nothing is asked of it."""
    machine = Machine(ON)
    assert await drive(machine) is ON and machine.asked == 0


async def test_refusal_after_success_counts_as_success() -> None:
    """A no to an order that was carried out."""
    machine = Machine(OFF, ON, orders=[DriverRejected("web01: HTTP 400")])
    assert await drive(machine) is ON and machine.asked == 1


async def test_refusal_stands_when_nothing_came_of_it() -> None:
    """A no is a no, at the next look and not after the time limit."""
    machine = Machine(OFF, orders=[DriverRejected("web01: HTTP 403")])
    with pytest.raises(DriverRejected, match="403"):
        await drive(machine)


async def test_refused_for_a_while() -> None:
    """An order that comes too early is given again."""
    machine = Machine(
        OFF, OFF, OFF, OFF, OFF, OFF, OFF, OFF, ON, orders=[DriverUnavailable("web01: not now")] * 2
    )
    assert await drive(machine) is ON and machine.asked >= 2


async def test_gone_for_a_moment() -> None:
    """A controller that drops off the network while the machine starts."""
    machine = Machine(OFF, DriverUnavailable("web01: silence"), DriverUnavailable("web01: silence"), ON)
    assert await drive(machine) is ON


async def test_never_gets_there() -> None:
    """The error says what it still reads; the order was given more than once."""
    machine = Machine(OFF)
    with pytest.raises(
        DriverUnavailable, match=r"web01 did not reach power on within 0.3 s: it still reads off"
    ):
        await drive(machine, timeout=0.3)
    assert machine.asked > 1
