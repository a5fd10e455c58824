"""The report that a rollout opens when it goes back: which gate, the numbers, the hosts that failed and what they said last."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from provisiond.rollouts.gates import Verdict
from provisiond.rollouts.measure import REPORTED, Facts
from provisiond.rollouts.rollout import step_name

TAIL = 4096  # characters of a log that the report keeps; the deployment has the rest


def report_of(
    rollout: Any, facts: Facts, verdicts: Sequence[Verdict], why: str, actor: str, now: datetime
) -> dict[str, Any]:
    """As it is stored in Rollout.report. ``links`` are paths of the API."""
    failing = list(facts.failing)
    return {
        "opened_at": now.isoformat(),
        "why": why,
        "actor": actor,
        "step": step_name(rollout.step, rollout.steps),
        "gates": [verdict.plain() for verdict in verdicts],
        "numbers": facts.numbers.plain(),
        "failing": len(failing),
        "hosts": [
            {
                "host": one.host,
                "host_id": one.host_id,
                "deployment_id": one.deployment_id,
                "number": one.number,
                "state": one.state,
                "step": one.step,
                "failure": one.failure,
                "log_tail": one.log_tail[-TAIL:],
                "links": {
                    "host": f"/api/v1/hosts/{one.host}",
                    "history": f"/api/v1/hosts/{one.host}/history",
                    "deployments": f"/api/v1/hosts/{one.host}/deployments",
                },
            }
            for one in failing[:REPORTED]
        ],
        "what_next": (
            "the hosts that failed keep the release their build is pinned to: mend the templates and start another rollout, "
            "or say 'provisionctl host rebuild NAME' to build them with what is current now"
        ),
    }


def in_words(report: dict[str, Any]) -> str:
    """One paragraph, for a notice."""
    hosts = ", ".join(one["host"] for one in report["hosts"][:5])
    first = next((one["failure"] for one in report["hosts"] if one["failure"]), "")
    words = f"At step {report['step']}: {report['why']}."
    if hosts:
        words += f" Failing: {hosts}{' ...' if report['failing'] > 5 else ''}."
    return words + (f" The first says: {first[:300]}" if first else "")
