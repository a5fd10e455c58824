"""Live steps of a host on its way: a line for each step, a bar with the time left, and why it failed if it did."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from provisiond.ctl.client import Client, ServerEvent, place
from provisiond.ctl.output import length, stderr

# The states on the way to each goal, for a bar that knows how much is still to come.
WAYS: dict[str, tuple[str, ...]] = {
    "ready": ("enrolled", "inspecting"),
    "active": ("enrolled", "inspecting", "building", "provisioned", "configuring"),
    "rescue": ("rescue",),
    "retired": ("retired",),
}
_REST = {"discovered", "ready", "active", "retired"}
_LOOK_SECONDS = 10.0  # between two looks at the hosts themselves when nothing is heard
_TRAIL_SECONDS = 0.3  # of silence after the end, so that the last events are shown too
_GUESS = 60.0  # seconds for a state that no host has been through yet


@dataclass
class Wait:
    """One host on its way to ``goal``; ``durations`` are seconds per state of earlier hosts."""

    client: Client
    name: str
    goal: str
    durations: dict[str, float] = field(default_factory=dict)
    state: str = ""
    since: float = field(default_factory=time.monotonic)
    percent: int = 0
    text: str = ""
    deadline: str | None = None

    def look(self) -> tuple[bool, str | None]:
        """(whether it is over, the cause if it failed), read from the host itself."""
        host = self.client.get(place("hosts", self.name))
        if host["state"] != self.state:
            self.state, self.since, self.percent, self.text = host["state"], time.monotonic(), 0, host["step"]
        self.deadline = host["deadline_at"]
        if host["failure"] and not host["retry_at"]:
            return True, f"{host['state']}, step {host['step'] or '-'}: {host['failure']}"
        if self.goal == "retired":
            return host["state"] == "retired" and not host["step"], None
        if self.goal == "rescue" and host["state"] == "rescue":
            return host["step"] == "stay", None
        if host["state"] == self.goal and not (self.goal == "ready" and host.get("wanted")):
            return True, None
        if host["state"] in _REST and not host.get("wanted"):
            return (
                True,
                f"it went to {host['state']} instead of {self.goal}: somebody asked for something else",
            )
        return False, None

    def fraction(self) -> float:
        """How far it is, 0 to 1, by the time the states took earlier."""
        way = WAYS[self.goal]
        total = sum(self._expected(state) for state in way)
        if self.state not in way:
            return 1.0 if self.state == self.goal else 0.0
        before = sum(self._expected(state) for state in way[: way.index(self.state)])
        return min(0.99, (before + self._inside()) / total)

    def left(self) -> str:
        """Time left in words: from earlier hosts, or else what the state's limit allows."""
        way = WAYS[self.goal]
        if self.state in way and self.state in self.durations:
            ahead = sum(self._expected(state) for state in way[way.index(self.state) + 1 :])
            return f"about {length(ahead + self._expected(self.state) - self._inside())} left"
        if self.deadline:
            limit = datetime.fromisoformat(self.deadline).timestamp() - time.time()
            return f"{length(limit)} at most for this"
        return ""

    def _expected(self, state: str) -> float:
        return self.durations.get(state, _GUESS)

    def _inside(self) -> float:
        expected = self._expected(self.state)
        by_time = min(0.95, (time.monotonic() - self.since) / expected) if expected > 0 else 0.95
        told = self.percent / 100 if self.state == "building" and self.percent else 0.0
        return expected * max(by_time, told)


def wait_for(
    client: Client, names: list[str], goal: str, *, after: int | None, start: Callable[[], Any] | None = None
) -> int:
    """Follow ``names`` until each has reached ``goal`` or failed; returns how many failed.

    ``start`` is called once the event stream stands, so that nothing is missed; ``after`` is the last event already seen.
    """
    path = place("hosts", names[0], "events") if len(names) == 1 else "/events"
    durations = client.get("/lifecycle/durations")["states"]
    waits = {name: Wait(client, name, goal, durations) for name in names}
    console = stderr()
    events = client.events(path, after=after)
    next(events)  # the stream stands
    with _bars(console) as progress:
        if start is not None:
            start()
        tasks = {name: progress.add_task(name, total=1.0, left="", where="") for name in names}
        seen = heard = time.monotonic()
        ends: dict[str, str | None] = {}
        _look_all(waits, ends)
        for event in _ticking(events):
            now = time.monotonic()
            if event is not None and event.data["host"] in tasks:
                name, heard = event.data["host"], now
                _print_event(console, event, many=len(names) > 1)
                if name in waits:
                    _note(waits[name], event)
                    if _matters(event):
                        _look_all({name: waits[name]}, ends)
            elif now - seen > _LOOK_SECONDS:
                seen = now
                _look_all(waits, ends)
            for name in ends:
                waits.pop(name, None)
            for name, task in tasks.items():
                _draw(progress, task, waits.get(name), failed=ends.get(name) is not None, goal=goal)
            if not waits and now - heard > _TRAIL_SECONDS:
                break
    for name in names:
        _conclude(console, name, goal, ends[name])
    return sum(cause is not None for cause in ends.values())


def _look_all(waits: dict[str, Wait], ends: dict[str, str | None]) -> None:
    """Look at the hosts themselves; those that are through, or have failed, go into ``ends`` with the cause."""
    for name, wait in waits.items():
        over, cause = wait.look()
        if over:
            ends[name] = cause


def _draw(progress: Progress, task: TaskID, wait: Wait | None, *, failed: bool, goal: str) -> None:
    if wait is not None:
        where = f"{wait.state} {wait.text}".strip()
        progress.update(task, completed=wait.fraction(), left=wait.left(), where=where)
    else:
        progress.update(task, completed=0.0 if failed else 1.0, left="", where="failed" if failed else goal)


def _conclude(console: Console, name: str, goal: str, cause: str | None) -> None:
    if cause is None:
        console.print(f"[green]✓[/] host {escape(name)} is {goal}")
        return
    console.print(f"[bold red]error:[/] host {escape(name)} failed: {escape(cause)}")
    console.print(
        f"  look: provisionctl host history {escape(name)}; then: provisionctl host retry {escape(name)}"
    )


def _matters(event: ServerEvent) -> bool:
    return event.kind in ("state.changed", "step.failed", "rescue.up") or event.kind.startswith(
        ("intent.", "host.")
    )


def _note(wait: Wait, event: ServerEvent) -> None:
    if event.kind in ("callback.progress", "task.progress"):
        wait.percent = int(event.data["data"].get("percent", 0))
        wait.text = event.data["message"]
    elif event.kind == "step.started":
        wait.text = event.data["step"]


def _print_event(console: Console, event: ServerEvent, *, many: bool) -> None:
    data = event.data
    at = str(data["at"])[11:19]
    host = f"{data['host']:<16} " if many else ""
    took = f" ({data['duration_ms'] / 1000:.1f} s)" if data["duration_ms"] is not None else ""
    where = " ".join(part for part in (data["state"], data["step"]) if part)
    text = data["message"] or data["cause"]
    if event.kind == "state.changed":
        text = f"{data['data'].get('from', '')} -> {data['data'].get('to', '')}"
    line = f"{at} {host}{event.kind:<18} {where:<24} {text}{took}".rstrip()
    style = "red" if "fail" in event.kind else "bold" if event.kind == "state.changed" else "dim"
    console.print(f"[{style}]{escape(line)}[/]")


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("[dim]{task.fields[where]}"),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _ticking(events: Iterator[ServerEvent | None]) -> Iterator[ServerEvent | None]:
    """The events, and None now and then, so that a bar moves while nothing happens."""
    lines: queue.Queue[ServerEvent | BaseException | None] = queue.Queue()

    def pump() -> None:
        try:
            for event in events:
                lines.put(event)
        except BaseException as error:
            lines.put(error)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            item = lines.get(timeout=0.5)
        except queue.Empty:
            yield None
            continue
        if isinstance(item, BaseException):
            raise item
        yield item
