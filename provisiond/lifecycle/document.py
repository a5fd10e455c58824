"""Writes docs/lifecycle.md out of the table and the states' steps: ``python -m provisiond.lifecycle.document > docs/lifecycle.md``."""

from __future__ import annotations

import inspect
import sys

from provisiond.lifecycle.path import PATH
from provisiond.lifecycle.table import (
    DONE,
    LEAVING,
    LIMITS,
    MEANING,
    RESTING,
    TRANSITIONS,
    WANTED_LATER,
    State,
)

_HEAD = """# The life of a host

Generated from `provisiond/lifecycle/table.py` and the modules of `provisiond/lifecycle/states/`; do not edit by hand
(`make docs` writes it anew, and a test fails when it is out of date).

A host is a row. Its `state` and `step` say where it is, `failure`, `attempts` and `retry_at` what went wrong, `deadline_at`
until when it must have left the state. A verb changes the state in one transaction and returns; the reconciler
(`provisiond/lifecycle/reconciler.py`) claims the host, runs the step, and stores the outcome together with its events. A step may
run more than once: it finds what is already there before it makes anything.

A step that fails in a way that may pass (no answer, busy) is tried again with growing pauses. One that fails for good stands with
its reason until somebody mends it and says `provisionctl host retry NAME`, or `cancel`.
"""


def document() -> str:
    """The whole page as Markdown."""
    lines = [_HEAD, "## States\n", "| state | meaning | time limit | steps |", "|---|---|---|---|"]
    for state in State:
        limit = f"{LIMITS[state].total_seconds() / 60:.0f} min" if state in LIMITS else "none"
        steps = " → ".join(step.name for step in PATH[state]) or "none"
        lines.append(
            f"| `{state}` | {MEANING[state]}{' (at rest)' if state in RESTING else ''} | {limit} | {steps} |"
        )
    lines += [
        "",
        "A host's parameter `limits: {building: 120}` (minutes) overrides the time limit of a state.\n",
    ]
    lines += ["## Transitions\n", "| from | on | to |", "|---|---|---|"]
    lines += [
        f"| `{here}` | {'its last step is done' if verb == DONE else f'`{verb}`'} | `{there}` |"
        for (here, verb), there in TRANSITIONS.items()
    ]
    lines += [
        f"| `{here}` | `{verb}`, and its step `{step}` is done | `{TRANSITIONS[here, DONE]}` |"
        for (here, verb), step in LEAVING.items()
    ]
    later = [f"`{verb}` in `{state}`" for state, verbs in WANTED_LATER.items() for verb in sorted(verbs)]
    lines += [
        "",
        f"{', '.join(later)}: remembered, and followed as soon as the host is ready.\n",
        "## Steps\n",
    ]
    for state in State:
        for step in PATH[state]:
            text = " ".join((inspect.getdoc(step.run) or "").split())
            module = step.run.__module__.rpartition(".")[2]
            lines.append(
                f"- `{state}` / **{step.name}** (`lifecycle/states/{module}.py`, at most {step.timeout:.0f} s a run): {text}"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
