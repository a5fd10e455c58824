"""Whose turn it is to report, by a clock of the test's own."""

from __future__ import annotations

import pytest

from provisiond.boot.turns import GONE_SECONDS, TAKEN_SECONDS, Turns


class Clock:
    """Stands still until it is told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_turns() -> None:
    """A burst at once, then in the order of asking; a turn stays until it is taken; a quiet time gives a burst again."""
    clock = Clock()
    turns = Turns(10, 3, clock)
    waits = [round(turns.wait(f"m{number}"), 3) for number in range(6)]
    assert waits == [0, 0, 0, 0.1, 0.2, 0.3]
    assert round(turns.wait("m4"), 3) == 0.2 and turns.wait("m0") == 0
    clock.now += 0.21
    assert turns.wait("m5") > 0  # the others were first
    assert turns.wait("m3") == turns.wait("m4") == 0 < turns.wait("m5")
    turns.end("m4", 0.01)
    turns.end("nobody", 0.01)
    clock.now += 60
    assert [turns.wait(f"n{number}") == 0 for number in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(("lasts", "seconds"), [(0.001, 2.0), (0.8, 4.0)])
def test_everybody_has_a_turn(lasts: float, seconds: float) -> None:
    """Who asks again when told to has its turn after as long as all before it take, also where each takes long."""
    clock = Clock()
    turns = Turns(10, 1, clock)
    for number in range(40):  # it has seen some
        turns.end(f"before{number}", lasts)
    due = {f"m{number}": clock.now for number in range(21)}
    begun = clock.now
    while due:
        who, clock.now = min(due.items(), key=lambda item: item[1])
        if wait := turns.wait(who):
            due[who] = clock.now + wait
        else:
            del due[who]
            turns.end(who, lasts)
    assert clock.now - begun == pytest.approx(seconds, rel=0.05)


def test_who_went_away_is_forgotten() -> None:
    """Machines that vanish hold nobody up and leave nothing in memory, whether they had a turn or waited for one."""
    clock = Clock()
    turns = Turns(10, 1, clock)
    for number in range(50):
        turns.wait(f"m{number}")
    clock.now += GONE_SECONDS + 1
    assert turns.wait("next") == 0
    clock.now += TAKEN_SECONDS + 1
    assert turns.wait("last") == 0
    assert list(turns._given) == ["last"] and not turns._asked
