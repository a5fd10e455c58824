"""Whose turn it is to report, by a clock of the test's own."""

from __future__ import annotations

from provisiond.boot.turns import FORGOTTEN_SECONDS, Turns


def test_turns() -> None:
    """A burst at once, then one after another at the rate; asking again changes nothing; a quiet time gives a burst again."""
    now = 1000.0
    turns = Turns(10, 3, lambda: now)
    waits = [round(turns.wait(f"m{number}"), 3) for number in range(6)]
    assert waits == [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    assert round(turns.wait("m4"), 3) == 0.2
    now += 0.25
    assert turns.wait("m4") <= 0 < turns.wait("m5")
    turns.end("m4")
    turns.end("nobody")
    now += 60
    assert [turns.wait(f"n{number}") <= 0 for number in range(4)] == [True, True, True, False]


def test_turns_nobody_takes_are_forgotten() -> None:
    """Machines that vanish leave nothing in memory."""
    now = 0.0
    turns = Turns(10, 1, lambda: now)
    for number in range(50):
        turns.wait(f"m{number}")
    now += FORGOTTEN_SECONDS + 10
    turns.wait("last")
    assert list(turns._given) == ["last"]
