"""Gates: how they are written, when they are decided early, and what they come to at the end of the window."""

from __future__ import annotations

import pytest

from provisiond.errors import Invalid
from provisiond.rollouts.gates import Numbers, Reading, fails_already, judge, parse, parse_all


@pytest.mark.parametrize(
    ("text", "kind", "limit"),
    [
        ("success>=95%", "success", 0.95),
        ("success >= 99.5 %", "success", 0.995),
        ("duration<=1.5x", "duration", 1.5),
        ("handover>=90%", "handover", 0.9),
        ("handover.failed<=0", "tasks", 0),
        ("approval", "approval", 0),
        ("metric:prometheus rate(errors[5m]) <= 0.5", "metric", 0.5),
        ("metric:graphite alias(a.b,'x') > -1e3", "metric", -1000),
    ],
)
def test_what_can_be_written(text: str, kind: str, limit: float) -> None:
    """Blanks do not matter."""
    gate = parse(text)
    assert (gate.kind, gate.limit) == (kind, limit)


def test_the_last_comparison_is_the_gates() -> None:
    """PromQL has comparisons of its own."""
    gate = parse("metric:prometheus count(up == 0 or x >= 3) <= 2")
    assert (gate.query, gate.compare, gate.limit) == ("count(up == 0 or x >= 3)", "<=", 2)


@pytest.mark.parametrize(
    "text",
    ["", "success", "success>95%", "success>=0%", "success>=101%", "duration<=0x", "duration<=1.5", "handover.failed<=-1", "speed>=1%",
     "metric:http://10.0.0.1/x <= 1", "metric:prometheus up", "approval!", "metric:prometheus x <= 1e999"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    """With a sentence that says what there is."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_every_wrong_gate_is_named() -> None:
    """Also a metric server that the settings do not name, and one given twice."""
    with pytest.raises(Invalid) as caught:
        parse_all(
            ["success>=1%", "x", "metric:graphite a <= 1", "success>=1%", "metric:prometheus a <= 1"],
            {"prometheus"},
        )
    assert {wrong.field for wrong in caught.value.fields} == {"gates.1", "gates.2", "gates.3"}
    assert "rollout.graphite" in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "failed"),
    [
        (Numbers(new=1, expected=1, failed=1), True),
        (Numbers(new=20, expected=20, failed=1), False),
        (Numbers(new=20, expected=20, failed=2), True),
        (Numbers(new=20, expected=20, active=18, failed=1, under_way=1), False),
        (Numbers(new=2, expected=2, failed=1, under_way=1), True),
        (Numbers(new=1, expected=1), False),
    ],
)
def test_success_fails_as_soon_as_it_can_no_more_be_reached(numbers: Numbers, failed: bool) -> None:
    """However well the builds still to come may end."""
    verdict = fails_already(parse("success>=95%"), numbers)
    assert (verdict is not None) == failed


def test_handovers_fail_early_too() -> None:
    """Failed tasks only grow; a share by what can still come."""
    assert fails_already(parse("handover.failed<=1"), Numbers(handovers=3, tasks_failed=2)) is not None
    assert fails_already(parse("handover.failed<=2"), Numbers(handovers=3, tasks_failed=2)) is None
    assert (
        fails_already(parse("handover>=90%"), Numbers(expected=5, handovers=2, handovers_failed=1))
        is not None
    )
    assert fails_already(parse("handover>=80%"), Numbers(expected=5, handovers=2, handovers_failed=1)) is None


NONE = Numbers(hosts=3, new=3, expected=3)
WELL = Numbers(
    hosts=3, new=3, expected=3, active=3, seconds=(10, 12, 30), seconds_before=(10, 10), handovers=3
)


@pytest.mark.parametrize(
    ("text", "numbers", "state"),
    [
        ("success>=95%", WELL, "passed"),
        ("success>=95%", NONE, "undecided"),
        ("success>=95%", Numbers(), "passed"),  # no new host
        ("success>=50%", Numbers(new=3, expected=3, active=2, failed=1), "passed"),
        ("success>=70%", Numbers(new=3, expected=3, active=2, failed=1), "failed"),
        ("duration<=1.2x", WELL, "passed"),
        ("duration<=1.1x", WELL, "failed"),
        ("duration<=1.5x", Numbers(new=1, expected=1, active=1, seconds=(10,)), "undecided"),
        ("duration<=1.5x", Numbers(new=1, expected=1, failed=1, seconds_before=(10,)), "undecided"),
        ("handover>=95%", WELL, "passed"),
        ("handover>=95%", Numbers(new=1, expected=1, active=1), "undecided"),
        ("handover>=50%", Numbers(new=2, expected=2, active=1, failed=1, handovers=2, handovers_failed=1), "passed"),
        ("handover.failed<=0", WELL, "passed"),
        ("approval", WELL, "waiting"),
    ],
)  # fmt: skip
def test_verdicts(text: str, numbers: Numbers, state: str) -> None:
    """At the end of the window, with at least one build asked for."""
    verdict = judge(parse(text), numbers, {}, least=min(1, numbers.new))
    assert verdict.state == state, verdict.why


def test_too_few_builds_say_how_many() -> None:
    """And that hosts are locked, if that is why."""
    verdict = judge(
        parse("success>=95%"), Numbers(new=9, expected=9, active=2, left_alone={"a": "locked"}), {}, least=5
    )
    assert verdict.state == "undecided" and "2 of 5" in verdict.why and "1 hosts are locked" in verdict.why


@pytest.mark.parametrize(
    ("reading", "state"),
    [
        (Reading((0.4,)), "passed"),
        (Reading((0.4, 0.6)), "failed"),
        (Reading(()), "undecided"),
        (Reading(problem="it gave no answer in 10 s"), "undecided"),
    ],
)
def test_a_metric_holds_for_every_series(reading: Reading, state: str) -> None:
    """One series over the limit is enough to fail; none at all decides nothing."""
    gate = parse("metric:prometheus x <= 0.5")
    verdict = judge(gate, NONE, {gate.text: reading}, least=1)
    assert verdict.state == state
    assert not reading.problem or reading.problem in verdict.why


def test_an_approval_is_given_once_per_step() -> None:
    """By somebody, not by numbers."""
    assert judge(parse("approval"), NONE, {}, least=1, approved=True).state == "passed"
