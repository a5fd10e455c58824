"""Which release is a host's current one: pointers and rollouts of its groups, the nearest first, and at last those of everywhere.

Pure, but for ``load_standing``, which reads in two statements what the rest decides by; its size goes with the pointers and
the rollouts under way, never with the hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import NotFound
from provisiond.inventory.release_tables import EVERYWHERE, ReleasePointer, Rollout
from provisiond.inventory.tables import table

TAKING = ("running", "waiting", "paused")
"""The states of a rollout in which it gives its release to the hosts it has taken in; one that goes back does not."""

_pointer, _rollout = table(ReleasePointer), table(Rollout)
_POINTERS = select(_pointer.c.place, _pointer.c.release_id)
_ROLLOUTS = select(
    *(_rollout.c[n] for n in ("active_place", "release_id", "before_id", "seed", "threshold", "state"))
).where(_rollout.c.active_place.isnot(None))


@dataclass(frozen=True)
class Portion:
    """The hosts that a rollout has taken in by now: those whose ``host_hash`` with ``seed`` is at most ``threshold`` ("": nobody)."""

    release_id: str
    before_id: str | None
    seed: str
    threshold: str

    def takes(self, host_id: str) -> bool:
        return self.threshold != "" and host_hash(self.seed, host_id) <= self.threshold


@dataclass(frozen=True)
class Standing:
    """What was current where at one moment. The keys are places: ids of groups, or EVERYWHERE."""

    pointers: Mapping[str, str] = field(default_factory=dict)
    rollouts: Mapping[str, Portion] = field(default_factory=dict)


async def load_standing(session: AsyncSession) -> Standing:
    """Read all pointers and the rollouts that are under way."""
    connection = await session.connection()
    pointers = {r.place: r.release_id for r in await connection.execute(_POINTERS)}
    rollouts = {
        r.active_place: Portion(r.release_id, r.before_id, r.seed, r.threshold)
        for r in await connection.execute(_ROLLOUTS)
        if r.state in TAKING
    }
    return Standing(pointers, rollouts)


def places_of(group_ids: Sequence[str]) -> tuple[str, ...]:
    """The places that count for a host whose groups are these, from the root to the leaf: the nearest first."""
    return (*reversed(group_ids), EVERYWHERE)


def release_for(host_id: str, group_ids: Sequence[str], standing: Standing) -> str:
    """The id of the release that a build of this host would get now; ``group_ids`` from the root to the leaf.

    At each place, the nearest first, a rollout takes the host if it is among its portion, else the pointer there if there is
    one. Raises NotFound when there is none anywhere.
    """
    for place in places_of(group_ids):
        portion = standing.rollouts.get(place)
        if portion is not None and portion.takes(host_id):
            return portion.release_id
        if place in standing.pointers:
            return standing.pointers[place]
    raise NotFound("release", "current")


def host_hash(seed: str, host_id: str) -> str:
    """A host's fixed place among all hosts, as 64 hex digits: spread evenly, and another order for every seed."""
    return hashlib.sha256(f"{seed}:{host_id}".encode()).hexdigest()
