"""The real tables of steps keep what the engine relies on."""

from __future__ import annotations

from provisiond.lifecycle.path import PATH


def test_steps_have_names_of_their_own() -> None:
    """A host stands at a step by its name alone."""
    for state, steps in PATH.items():
        names = [step.name for step in steps]
        assert len(names) == len(set(names)), state


def test_a_retry_begins_at_or_before_its_step() -> None:
    """``retry_from`` names a step of the same state that comes earlier."""
    for steps in PATH.values():
        names = [step.name for step in steps]
        for step in steps:
            assert not step.retry_from or names.index(step.retry_from) < names.index(step.name)


def test_every_run_is_bounded() -> None:
    """No step may hold a worker for longer than ten minutes a run."""
    assert all(0 < step.timeout <= 600 for steps in PATH.values() for step in steps)
