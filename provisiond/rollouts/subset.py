"""Which hosts a step takes in. Pure.

Hosts stand in an order of their own for every seed, by ``host_hash``. A step takes as many from its beginning as it says, and what
is kept is the hash of the last one: the threshold. From then on the threshold alone decides, so that no host flaps: one that
joins the group later is in or out by its own hash, and whoever was in stays in, as thresholds only rise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from provisiond.errors import FieldError
from provisiond.templating.current import host_hash

NOBODY, EVERYBODY = "", "f" * 64
MAX_STEPS = 32

_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")


def check_steps(steps: Sequence[str]) -> list[FieldError]:
    """What is wrong with the steps of a rollout: every wrong one by its place."""
    wrong: list[FieldError] = []
    if not 1 <= len(steps) <= MAX_STEPS:
        return [FieldError("steps", f"a rollout has 1 to {MAX_STEPS} steps, such as 1,5%,25%,100%")]
    before: dict[bool, float] = {}
    for place, step in enumerate(steps):
        share = _share(step)
        if share is None and not _NUMBER.fullmatch(step):
            wrong.append(
                FieldError(
                    f"steps.{place}", f"{step!r} is no number of hosts (1) and no share of them above 0% (5%)"
                )
            )
            continue
        size = share if share is not None else float(step)
        kind = share is not None
        if size <= before.get(kind, 0.0):
            wrong.append(FieldError(f"steps.{place}", f"{step} is no more than the step before it"))
        before[kind] = size
    if not wrong and _share(steps[-1]) != 100:
        wrong.append(
            FieldError(f"steps.{len(steps) - 1}", "the last step is 100%: only then is the release current")
        )
    return wrong


def size_of(step: str, hosts: int) -> int:
    """How many of ``hosts`` the step takes: percentages round up, at least one, at most all."""
    share = _share(step)
    wanted = int(step) if share is None else math.ceil(round(hosts * share / 100, 6))
    return min(hosts, max(1, wanted))


def threshold_of(step: str, host_ids: Iterable[str], seed: str, before: str = NOBODY) -> str:
    """The greatest hash that the step takes in, never below the one ``before``. 100% takes whoever comes later, too."""
    if _share(step) == 100:
        return EVERYBODY
    order = sorted(host_hash(seed, host_id) for host_id in host_ids)
    return max(before, order[size_of(step, len(order)) - 1]) if order else before


def _share(step: str) -> float | None:
    """The percentage; None where it is none."""
    found = _PERCENT.fullmatch(step)
    share = float(found[1]) if found else 0.0
    return share if 0 < share <= 100 else None
