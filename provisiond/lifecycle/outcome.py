"""What a step says when it has run, and what a step is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

if TYPE_CHECKING:
    from provisiond.inventory.resolve import ResolvedHost
    from provisiond.lifecycle.world import World

Write = Callable[[AsyncSession], Awaitable[None]]


@dataclass(frozen=True)
class Note:
    """An event a step adds to the history beside those of its own start and end."""

    kind: str
    message: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Common to the three answers.

    ``host`` are columns of the host's row to set; ``write`` is further work for the very transaction that stores the
    outcome (it may touch nothing but the session); ``notes`` go into the history.
    """

    message: str = ""
    host: Mapping[str, Any] = field(default_factory=dict)
    write: Write | None = None
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Continue(Outcome):
    """Not yet: look again after ``after`` seconds, or (None) when something arrives for the host or its time is up."""

    after: float | None = None


@dataclass(frozen=True)
class Complete(Outcome):
    """The step has reached what it wanted."""


@dataclass(frozen=True)
class Failed(Outcome):
    """It did not work. ``retryable``: try again with back-off; else it stands until somebody acts. ``kind`` is a short word."""

    retryable: bool = True
    kind: str = "error"


Run = Callable[["ResolvedHost", "World"], Awaitable[Outcome]]


def _always(_host: ResolvedHost) -> bool:
    return True


@dataclass(frozen=True)
class Step:
    """One step of a state. ``run`` finds what is already there before it makes anything: it may run more than once.

    ``applies`` leaves the step out for hosts that do not need it; ``timeout`` bounds one run, in seconds; ``retry_from``
    names the step that an operator's retry begins at (default: this one).
    """

    name: str
    run: Run
    applies: Callable[[ResolvedHost], bool] = _always
    timeout: float = 120.0
    retry_from: str = ""
