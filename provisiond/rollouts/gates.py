"""Gates: what must hold before a rollout goes on. Their grammar, and their judgement on the numbers of a step. Pure.

success>=95%                      builds with the release that came into service, of those that ended
duration<=1.5x                    median time of a build, against builds with the release before
handover>=95%                     handovers that ended well, of those that ended
handover.failed<=0                failed tasks in the reports of the handovers, together
metric:prometheus QUERY <= 0.5    the last comparison is the gate's; the query is the server's own language
metric:graphite TARGET <= 10
approval                          somebody says ``provisionctl rollout approve``
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from provisiond.errors import FieldError, Invalid

Kind = Literal["success", "duration", "handover", "tasks", "metric", "approval"]
MAX_GATES = 16

_SHARE = re.compile(r"(success|handover)\s*>=\s*([0-9]{1,3}(?:\.[0-9]+)?)\s*%")
_FACTOR = re.compile(r"duration\s*<=\s*([0-9]{1,4}(?:\.[0-9]+)?)\s*x")
_TASKS = re.compile(r"handover\.failed\s*<=\s*([0-9]{1,6})")
_METRIC = re.compile(
    r"metric:\s*([a-z]+)\s+(\S.*?)\s*(<=|>=|<|>)\s*([+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)", re.DOTALL
)
_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": lambda value, limit: value <= limit,
    ">=": lambda value, limit: value >= limit,
    "<": lambda value, limit: value < limit,
    ">": lambda value, limit: value > limit,
}


@dataclass(frozen=True)
class Gate:
    """One gate. ``limit`` is a share (0 to 1), a factor, a number of tasks, or the metric's; ``server`` and ``query`` are a metric's."""

    text: str
    kind: Kind
    limit: float = 0.0
    server: str = ""
    query: str = ""
    compare: str = ""


@dataclass(frozen=True)
class Numbers:
    """What a step has come to so far.

    ``hosts`` are taken in by now, ``new`` of them by this step and not on the release before it. ``expected`` is how many builds
    the step may come to at most; ``active``, ``failed`` and ``under_way`` are those that began since it did. ``seconds`` are the
    times of builds from their beginning to service, ``seconds_before`` those with the release before. ``unasked`` are to be
    rebuilt yet, and ``left_alone`` (host: why) cannot be.
    """

    hosts: int = 0
    new: int = 0
    expected: int = 0
    active: int = 0
    failed: int = 0
    under_way: int = 0
    unasked: int = 0
    seconds: tuple[float, ...] = ()
    seconds_before: tuple[float, ...] = ()
    handovers: int = 0
    handovers_failed: int = 0
    tasks_failed: int = 0
    left_alone: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        return self.active + self.failed

    def plain(self) -> dict[str, Any]:
        """For the history, the API and a report."""
        return {
            "hosts": self.hosts, "new": self.new, "expected": self.expected, "active": self.active, "failed": self.failed,
            "under_way": self.under_way, "unasked": self.unasked, "handovers": self.handovers,
            "handovers_failed": self.handovers_failed, "tasks_failed": self.tasks_failed,
            "seconds": round(median(self.seconds), 1) if self.seconds else None,
            "seconds_before": round(median(self.seconds_before), 1) if self.seconds_before else None,
            "left_alone": dict(sorted(self.left_alone.items())[:50]),
        }  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What a metric's server said: the values of all series, or why there are none."""

    values: tuple[float, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """``state``: passed | failed | undecided | waiting (an approval). ``why`` is a sentence's end with the numbers in it."""

    gate: str
    state: Literal["passed", "failed", "undecided", "waiting"]
    why: str

    def plain(self) -> dict[str, str]:
        return {"gate": self.gate, "state": self.state, "why": self.why}


def parse(text: str) -> Gate:
    """Read one gate. ValueError says what is wrong with it."""
    text = text.strip()
    if text == "approval":
        return Gate(text, "approval")
    if found := _SHARE.fullmatch(text):
        share = float(found[2])
        if not 0 < share <= 100:
            raise ValueError("a share is above 0% and at most 100%")
        return Gate(text, "success" if found[1] == "success" else "handover", share / 100)
    if found := _FACTOR.fullmatch(text):
        if float(found[1]) <= 0:
            raise ValueError("a factor is above 0, such as 1.5x")
        return Gate(text, "duration", float(found[1]))
    if found := _TASKS.fullmatch(text):
        return Gate(text, "tasks", float(found[1]))
    if found := _METRIC.fullmatch(text):
        limit = float(found[4])
        if not math.isfinite(limit):
            raise ValueError("its limit is no number")
        return Gate(text, "metric", limit, found[1], found[2].strip(), found[3])
    if text.startswith("metric:"):
        raise ValueError(
            "write a metric as 'metric:prometheus QUERY <= 0.5' or 'metric:graphite TARGET <= 10'"
        )
    raise ValueError(
        "there are success>=95%, duration<=1.5x, handover>=95%, handover.failed<=0, metric:prometheus QUERY <= 0.5 and approval"
    )


def parse_all(texts: Sequence[str], servers: Collection[str]) -> list[Gate]:
    """Read the gates of a rollout. ``servers`` are the metric servers that the settings name. Raises Invalid that names every wrong one."""
    gates: list[Gate] = []
    wrong: list[FieldError] = []
    if len(texts) > MAX_GATES:
        raise Invalid([FieldError("gates", f"a rollout has at most {MAX_GATES} gates")])
    for place, text in enumerate(texts):
        try:
            gate = parse(text)
            if gate.kind == "metric" and gate.server not in servers:
                raise ValueError(
                    f"the settings name no {gate.server} (rollout.{gate.server}); "
                    f"there is: {', '.join(sorted(servers)) or 'none'}"
                )
            if any(gate.text == other.text for other in gates):
                raise ValueError("it is given twice")
        except ValueError as error:
            wrong.append(FieldError(f"gates.{place}", f"{text!r}: {error}"))
        else:
            gates.append(gate)
    if wrong:
        raise Invalid(wrong)
    return gates


def fails_already(gate: Gate, numbers: Numbers) -> Verdict | None:
    """A verdict that nothing can mend any more, however the builds that are still to come end. None where there is none."""
    if gate.kind == "success" and numbers.failed:
        possible = max(numbers.expected, numbers.ended + numbers.under_way)
        if (possible - numbers.failed) / possible < gate.limit:
            return Verdict(gate.text, "failed", _builds(numbers))
    if gate.kind == "tasks" and numbers.tasks_failed > gate.limit:
        return Verdict(
            gate.text, "failed", f"{numbers.tasks_failed} tasks failed in {numbers.handovers} handovers"
        )
    if gate.kind == "handover" and numbers.handovers_failed:
        possible = max(numbers.expected, numbers.ended + numbers.under_way, numbers.handovers)
        if (possible - numbers.handovers_failed) / possible < gate.limit:
            return Verdict(gate.text, "failed", _handovers(numbers))
    return None


def judge(
    gate: Gate, numbers: Numbers, readings: Mapping[str, Reading], *, least: int, approved: bool = False
) -> Verdict:
    """The verdict now that the window is over. ``least`` is how many builds must have ended; ``readings`` are by gate text.

    A step that brings the release to no further host has nothing to build: what is judged by builds passes.
    """
    if gate.kind == "approval":
        return Verdict(
            gate.text, "passed" if approved else "waiting", "approved" if approved else "not approved yet"
        )
    if gate.kind == "metric":
        return _judge_metric(gate, readings.get(gate.text, Reading(problem="it was not asked yet")))
    if early := fails_already(gate, numbers):
        return early
    if not numbers.ended and not numbers.under_way and not numbers.new:
        return Verdict(gate.text, "passed", "this step brings the release to no further host")
    if numbers.ended < least:
        alone = (
            f"; {len(numbers.left_alone)} hosts are locked or in maintenance" if numbers.left_alone else ""
        )
        return Verdict(
            gate.text, "undecided", f"too few builds: {numbers.ended} of {least} have ended{alone}"
        )
    if gate.kind == "success":
        share = numbers.active / numbers.ended if numbers.ended else 1.0
        return Verdict(gate.text, "passed" if share >= gate.limit else "failed", _builds(numbers))
    if gate.kind == "duration":
        return _judge_duration(gate, numbers)
    if not numbers.handovers:
        return Verdict(gate.text, "undecided", "no build has a report of its handover")
    if gate.kind == "tasks":
        return Verdict(
            gate.text, "passed", f"{numbers.tasks_failed} tasks failed in {numbers.handovers} handovers"
        )
    share = (numbers.handovers - numbers.handovers_failed) / numbers.handovers
    return Verdict(gate.text, "passed" if share >= gate.limit else "failed", _handovers(numbers))


def _judge_duration(gate: Gate, numbers: Numbers) -> Verdict:
    if not numbers.seconds:
        return Verdict(gate.text, "undecided", "no build with the release has come into service yet")
    if not numbers.seconds_before:
        return Verdict(gate.text, "undecided", "there is no build with the release before to compare with")
    now, before = median(numbers.seconds), median(numbers.seconds_before)
    said = f"{now:.1f} s (median of {len(numbers.seconds)}) against {before:.1f} s before (median of {len(numbers.seconds_before)})"
    return Verdict(gate.text, "passed" if now <= gate.limit * before else "failed", said)


def _judge_metric(gate: Gate, reading: Reading) -> Verdict:
    if reading.problem:
        return Verdict(gate.text, "undecided", f"{gate.server}: {reading.problem}")
    if not reading.values:
        return Verdict(gate.text, "undecided", f"{gate.server} has no value for it")
    holds = _HOLDS[gate.compare]
    bad = [value for value in reading.values if not holds(value, gate.limit)]
    shown = ", ".join(f"{value:g}" for value in (bad or list(reading.values))[:5])
    return Verdict(gate.text, "failed" if bad else "passed", f"it is {shown}")


def _builds(numbers: Numbers) -> str:
    return f"{numbers.active} of {numbers.ended} builds came into service, {numbers.failed} failed, {numbers.under_way} are under way"


def _handovers(numbers: Numbers) -> str:
    return f"{numbers.handovers - numbers.handovers_failed} of {numbers.handovers} handovers ended well"
