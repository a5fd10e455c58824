"""What a rollout has come to: its hosts, their builds, and who could be asked next, read in a handful of statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from provisiond.inventory.release_tables import EVERYWHERE, RolloutHost
from provisiond.inventory.tables import Deployment, Host, HostGroup, table
from provisiond.lifecycle.table import State
from provisiond.rollouts.gates import Numbers
from provisiond.rollouts.subset import EVERYBODY
from provisiond.templating.current import Portion, Standing, host_hash, load_standing, release_for

BUILDS = (State.BUILDING, State.PROVISIONED, State.CONFIGURING)
NEVER = (State.DISCOVERED, State.RETIRED)
_THIS = "this rollout's"
REPORTED = 20  # failing hosts whose logs are read for a report
COMPARED = 200  # builds with the release before, the newest

_host, _deployment, _group, _asked = (table(t) for t in (Host, Deployment, HostGroup, RolloutHost))
_HOSTS = select(
    *(
        _host.c[n]
        for n in ("id", "name", "group_id", "state", "step", "state_since", "locked", "maintenance", "failure", "failure_kind",
                  "due_at", "deployment_id")
    ),
    _deployment.c.release_id,
    _deployment.c.created_at.label("built_since"),
).select_from(_host.outerjoin(_deployment, _deployment.c.id == _host.c.deployment_id))  # fmt: skip
_BUILDS = select(
    *(
        _deployment.c[n]
        for n in ("id", "host_id", "number", "created_at", "ended_at", "outcome", "failed_at", "failure", "result", "runs")
    )
)  # fmt: skip


@dataclass(frozen=True)
class Failing:
    """A build that failed, or whose handover did, and where the host stands."""

    host_id: str
    host: str
    deployment_id: str | None
    number: int | None
    state: str
    step: str
    failure: str
    log_tail: str = field(default="", repr=False)


@dataclass(frozen=True)
class Facts:
    """``hosts`` maps the id of every host that the rollout may come to, to its row; ``taken`` are those within the threshold.

    ``askable`` are hosts to be rebuilt yet, in the order of their hashes; ``busy`` counts hosts that were asked and are under
    way. ``failing`` have the tails of their logs for the first REPORTED. ``group_gone``: the rollout's group was deleted.
    """

    hosts: Mapping[str, Any] = field(repr=False)
    taken: frozenset[str] = frozenset()
    numbers: Numbers = field(default_factory=Numbers)
    failing: Sequence[Failing] = ()
    askable: Sequence[str] = ()
    busy: int = 0
    group_gone: bool = False


async def measure(session: AsyncSession, rollout: Any) -> Facts:
    """Look at the rollout (its row) as it stands now."""
    connection = await session.connection()
    place = rollout.group_id or EVERYWHERE
    parents = await _parents(connection)
    if place != EVERYWHERE and place not in parents:
        return Facts({}, group_gone=True)
    paths = {group: _path(group, parents) for group in parents}
    inside = [group for group, path in paths.items() if place in path]
    found = _HOSTS.where(_host.c.state.not_in(NEVER))
    if place != EVERYWHERE:
        found = found.where(_host.c.group_id.in_(inside))
    standing = _taking_all(await load_standing(session), place, rollout)
    hosts = {
        row.id: row
        for row in await connection.execute(found)
        if release_for(row.id, paths.get(row.group_id, ()), standing) == _THIS
    }
    asked = {
        row.host_id: row
        for row in await connection.execute(
            select(_asked).where(_asked.c.rollout_id == rollout.id, _asked.c.purpose == "forth")
        )
    }
    taken = {i for i in hosts if rollout.threshold and host_hash(rollout.seed, i) <= rollout.threshold}
    facts = Facts(hosts, frozenset(taken))
    if rollout.step < 0:
        return facts
    this_step = {i: row.number for i, row in asked.items() if row.step == rollout.step}
    with_it = _BUILDS.where(
        _deployment.c.release_id == rollout.release_id,
        or_(_deployment.c.created_at >= rollout.step_since, _deployment.c.host_id.in_(_asked_in(rollout))),
    ).order_by(_deployment.c.created_at)
    builds = [
        row
        for row in await connection.execute(with_it)
        if row.host_id in hosts
        and (
            row.number > this_step[row.host_id]
            if row.host_id in this_step
            else row.created_at >= rollout.step_since
        )
    ]
    before: list[float] = []
    if rollout.before_id:
        older = (
            select(_deployment.c.host_id, _deployment.c.created_at, _deployment.c.ended_at)
            .where(
                and_(
                    _deployment.c.release_id == rollout.before_id,
                    _deployment.c.outcome == "active",
                    _deployment.c.runs == 1,
                )
            )
            .order_by(_deployment.c.created_at.desc())
            .limit(10 * COMPARED)
        )
        mine = [row for row in await connection.execute(older) if row.host_id in hosts]
        before = [_seconds(row) for row in mine[:COMPARED]]
    counted = _counted(facts, rollout, builds, set(this_step), set(asked), before)
    return replace(counted, failing=await _with_tails(session, counted.failing))


def _counted(
    facts: Facts,
    rollout: Any,
    builds: Sequence[Any],
    this_step: set[str],
    forth: set[str],
    before: Sequence[float],
) -> Facts:
    hosts = facts.hosts
    active: list[Any] = []
    failing: list[Failing] = []
    under_way: set[str] = set()
    for build in builds:
        host = hosts[build.host_id]
        if build.outcome == "active":
            active.append(build)
        elif build.failed_at is not None or (
            build.outcome is None and host.deployment_id == build.id and stands(host)
        ):
            failing.append(_failing(host, build))
        elif build.outcome is None and build.ended_at is None:
            under_way.add(host.id)
    for (
        host_id
    ) in facts.taken:  # what failed before it had a build: a template that does not render for this host
        host = hosts[host_id]
        if host.state != State.BUILDING or host.deployment_id is not None:
            continue
        if host_id not in this_step and host.state_since < rollout.step_since:
            continue
        if stands(host):
            failing.append(_failing(host, None))
        else:
            under_way.add(host_id)
    fresh = _new(facts, rollout, this_step)
    could = [
        i
        for i in facts.taken
        if i not in forth and hosts[i].state == State.ACTIVE and hosts[i].release_id != rollout.release_id
    ]
    alone = {hosts[i].name: _why_alone(hosts[i]) for i in could if _why_alone(hosts[i])}
    askable = [i for i in could if not _why_alone(hosts[i])] if rollout.rebuild else []
    begun = len(active) + len(failing) + len(under_way)
    handed = [
        b
        for b in builds
        if b.result
        or (hosts[b.host_id].failure_kind == "handover" and hosts[b.host_id].deployment_id == b.id)
    ]
    troubled = [b for b in handed if _tasks_failed(b) or (b.outcome != "active" and stands(hosts[b.host_id]))]
    numbers = Numbers(
        hosts=len(facts.taken), new=len(fresh), expected=begun + len(askable) if rollout.rebuild else max(len(fresh), begun),
        active=len(active), failed=len(failing), under_way=len(under_way), unasked=len(askable),
        seconds=tuple(_seconds(b) for b in active if b.runs == 1), seconds_before=tuple(before),
        handovers=len(handed), handovers_failed=len(troubled), tasks_failed=sum(map(_tasks_failed, handed)),
        left_alone=alone if rollout.rebuild else {},
    )  # fmt: skip
    busy = sum(1 for i in forth if i in hosts and hosts[i].state in BUILDS and not stands(hosts[i]))
    known = {one.deployment_id for one in failing}
    troubles = [
        _failing(hosts[b.host_id], b) for b in troubled if b.id not in known
    ]  # not given up yet, but told of in a report
    return replace(
        facts, numbers=numbers, failing=[*failing, *troubles], busy=busy,
        askable=sorted(askable, key=lambda i: host_hash(rollout.seed, i)),
    )  # fmt: skip


async def to_go_back(session: AsyncSession, rollout: Any) -> Facts:
    """For one that goes back: ``askable`` are hosts that got, or are getting, its release by it, and were not asked to go back yet."""
    connection = await session.connection()
    place = rollout.group_id or EVERYWHERE
    parents = await _parents(connection)
    if place != EVERYWHERE and place not in parents:
        return Facts({}, group_gone=True)
    if not rollout.rebuild_back or not rollout.work.get("since"):
        return Facts({})
    since, reached = datetime.fromisoformat(rollout.work["since"]), str(rollout.work.get("reached", ""))
    back = select(_asked.c.host_id).where(_asked.c.rollout_id == rollout.id, _asked.c.purpose == "back")
    asked = set((await connection.execute(back)).scalars())
    with_it = _HOSTS.where(
        _host.c.state.in_([*BUILDS, State.ACTIVE]),
        _deployment.c.release_id == rollout.release_id,
        _deployment.c.created_at >= since,
    )
    hosts = {
        row.id: row
        for row in await connection.execute(with_it)
        if (place == EVERYWHERE or place in _path(row.group_id, parents))
        and host_hash(rollout.seed, row.id) <= reached
    }
    waiting = (await connection.execute(_HOSTS.where(_host.c.id.in_(back)))).all()
    askable = [i for i, row in hosts.items() if i not in asked and not _why_alone(row)]
    busy = sum(1 for row in waiting if row.state in BUILDS and not stands(row))
    return Facts(hosts, askable=sorted(askable, key=lambda i: host_hash(rollout.seed, i)), busy=busy)


def _asked_in(rollout: Any) -> Any:
    """The hosts that were asked in the present step, as a subquery: there may be more of them than a statement takes parameters."""
    return select(_asked.c.host_id).where(
        _asked.c.rollout_id == rollout.id, _asked.c.purpose == "forth", _asked.c.step == rollout.step
    )


async def _with_tails(session: AsyncSession, failing: Sequence[Failing]) -> list[Failing]:
    ids = [one.deployment_id for one in failing[:REPORTED] if one.deployment_id]
    if not ids:
        return list(failing)
    found = await session.execute(
        select(_deployment.c.id, _deployment.c.log_tail).where(_deployment.c.id.in_(ids))
    )
    tails = {row.id: row.log_tail for row in found}
    return [replace(one, log_tail=tails.get(one.deployment_id or "", "")) for one in failing]


def stands(host: Any) -> bool:
    """Whether the host has failed and nobody tries again by itself."""
    return host.failure is not None and host.due_at is None


async def _parents(connection: AsyncConnection) -> dict[str, str | None]:
    """The id of every group, with its parent's."""
    found = await connection.execute(select(_group.c.id, _group.c.parent_id))
    return {row.id: row.parent_id for row in found}


def _path(group: str | None, parents: Mapping[str, str | None]) -> tuple[str, ...]:
    """Ids from the root to ``group``."""
    path: list[str] = []
    while group is not None and group not in path:
        path.append(group)
        group = parents.get(group)
    return tuple(reversed(path))


def _taking_all(standing: Standing, place: str, rollout: Any) -> Standing:
    """As if the rollout took everybody: the hosts whose release is _THIS then are those that nothing nearer decides about."""
    all_in = Portion(_THIS, rollout.before_id, rollout.seed, EVERYBODY)
    return replace(standing, rollouts={**standing.rollouts, place: all_in})


def _new(facts: Facts, rollout: Any, this_step: set[str]) -> set[str]:
    """Hosts that this step took in, but for those that had the release before."""
    reached = str(rollout.work.get("before", ""))
    return {
        i
        for i in facts.taken
        if host_hash(rollout.seed, i) > reached
        and not (
            facts.hosts[i].release_id == rollout.release_id
            and facts.hosts[i].built_since < rollout.step_since
            and i not in this_step
        )
    }


def _why_alone(host: Any) -> str:
    return "locked" if host.locked else f"in maintenance: {host.maintenance}" if host.maintenance else ""


def _failing(host: Any, build: Any) -> Failing:
    why = host.failure or ""
    if build is None:
        return Failing(host.id, host.name, None, None, host.state, host.step, why)
    tasks = _tasks_failed(build)
    why = why or build.failure or (f"{tasks} tasks of its handover failed" if tasks else "")
    return Failing(host.id, host.name, build.id, build.number, host.state, host.step, why)


def _seconds(build: Any) -> float:
    return float((build.ended_at - build.created_at).total_seconds())


def _tasks_failed(build: Any) -> int:
    """Of the report's hosts: what Ansible counts as failures and as unreachable, a script as failures."""
    stats = (
        [v for v in build.result.values() if isinstance(v, Mapping)]
        if isinstance(build.result, Mapping)
        else []
    )
    return sum(int(v.get(name, 0) or 0) for v in stats for name in ("failures", "unreachable"))
