"""What operators ask of rollouts: start one, look at it, and its verbs. Each is checked and recorded in one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field, field_validator
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.config import RolloutSettings
from provisiond.errors import Conflict, FieldError, Invalid, NotFound
from provisiond.inventory import history
from provisiond.inventory.fields import Line
from provisiond.inventory.release_tables import EVERYWHERE, Release, Rollout
from provisiond.inventory.shapes import EventView, Request, View
from provisiond.inventory.store import EVENTS, RELEASES, Store
from provisiond.inventory.tables import Event as HistoryEvent
from provisiond.inventory.tables import HostGroup, new_id, new_row, table, utcnow
from provisiond.rollouts import moves
from provisiond.rollouts.gates import fails_already, parse, parse_all
from provisiond.rollouts.measure import Facts, measure
from provisiond.rollouts.metrics_query import servers
from provisiond.rollouts.moves import Move
from provisiond.rollouts.rollout import TRANSITIONS, VERBS, Event, State, allowed, step_name
from provisiond.rollouts.subset import check_steps
from provisiond.templating.current import load_standing, places_of
from provisiond.templating.pointers import lock_pointers
from provisiond.templating.releases import find_release

_rollout, _release, _group, _event = (table(t) for t in (Rollout, Release, HostGroup, HistoryEvent))


class RolloutStart(Request):
    """``group`` None: all hosts. ``rebuild``: hosts rebuilt at a time, 0 leaves building to others."""

    release: Line = Field(min_length=1)
    group: Line | None = None
    steps: list[Line] = Field(default=["1", "5%", "25%", "100%"], max_length=64)
    gates: list[Line] = Field(default=["success>=95%"], max_length=64)
    window_seconds: int = Field(default=1800, ge=0, le=30 * 86400)
    rebuild: int = Field(default=0, ge=0, le=10_000)
    rebuild_back: bool = False
    min_builds: int = Field(default=1, ge=0, le=100_000)
    seed: Line = Field(default="", max_length=64)
    reason: Line = ""

    @field_validator("steps", "gates")
    @classmethod
    def _no_blanks(cls, value: list[str]) -> list[str]:
        return [item.strip() for item in value]


class RolloutVerb(Request):
    """``reason`` goes into the history."""

    reason: Line = ""


class RolloutSummary(View):
    """``release`` and ``before`` are numbers of releases; ``step`` is told as ``5% (2 of 4)``; ``why`` is why it stands where it does."""

    number: int
    state: str
    group: str | None
    release: int
    before: int | None
    step: str
    why: str
    actor: str
    created_at: datetime
    ended_at: datetime | None


class RolloutView(RolloutSummary):
    """``numbers`` and ``gates_now`` are of this moment while it is not over; ``verdicts`` are the last ones that decided something."""

    steps: list[str]
    gates: list[str]
    window_seconds: int
    rebuild: int
    rebuild_back: bool
    min_builds: int
    seed: str
    step_since: datetime | None
    window_until: datetime | None
    numbers: dict[str, Any]
    failing: list[str]
    verdicts: list[dict[str, Any]]
    report: bool
    can: list[str]


class RolloutReport(View):
    """``report`` as rollouts/report.py makes it."""

    number: int
    release: int
    group: str | None
    report: dict[str, Any]


Also = Callable[[AsyncSession, RolloutView], Awaitable[None]]


async def start(
    store: Store, settings: RolloutSettings, spec: RolloutStart, *, actor: str, also: Also | None = None
) -> RolloutView:
    """Begin a rollout; ``also`` is further work for the same transaction.

    Raises Invalid that names every wrong field, Conflict when another one is under way at that place.
    """
    wrong = check_steps(spec.steps)
    try:
        gates = parse_all(spec.gates, servers(settings))
    except Invalid as error:
        wrong += error.fields
        gates = []
    found_id = new_id()

    async def work(session: AsyncSession) -> RolloutView:
        problems = list(wrong)
        await lock_pointers(session)
        release = None
        try:
            release = await find_release(session, spec.release)
        except (NotFound, Conflict) as error:
            problems.append(FieldError("release", str(error)))
        group = None
        if spec.group is not None:
            group = (
                await session.execute(select(_group.c.id, _group.c.name).where(_group.c.name == spec.group))
            ).first()
            if group is None:
                problems.append(FieldError("group", f"there is no group {spec.group!r}"))
        if problems:
            raise Invalid(problems)
        assert release is not None
        place = group.id if group else EVERYWHERE
        taken = select(_rollout.c.number).where(_rollout.c.active_place == place)
        if (other := (await session.execute(taken)).scalar()) is not None:
            raise Conflict(
                f"rollout {other} is under way {_where(spec.group)}; see 'provisionctl rollout show {other}', then cancel it or let it end"
            )
        before = await _current_at(session, group.id if group else None)
        if before == release.id:
            raise Conflict(
                f"release #{release.number} is current {_where(spec.group)} already; there is nothing to roll out"
            )
        number = (
            int((await session.execute(select(func.coalesce(func.max(_rollout.c.number), 0)))).scalar_one())
            + 1
        )
        row = new_row(
            Rollout, id=found_id, number=number, group_id=group.id if group else None, group_name=group.name if group else "",
            active_place=place, release_id=release.id, before_id=before, steps=list(spec.steps), gates=[g.text for g in gates],
            window_seconds=spec.window_seconds, rebuild=spec.rebuild, rebuild_back=spec.rebuild_back, min_builds=spec.min_builds,
            seed=spec.seed or secrets.token_hex(8), actor=actor, step=-1, work={"release": release.number},
        )  # fmt: skip
        await session.execute(insert(_rollout), row)
        said = f"release #{release.number} {_where(spec.group)} in steps {', '.join(spec.steps)}" + (
            f": {spec.reason}" if spec.reason else ""
        )
        told = {
            "release": release.number,
            "steps": spec.steps,
            "gates": row["gates"],
            "seed": row["seed"],
            "rebuild": spec.rebuild,
        }
        began = (await session.execute(select(_rollout).where(_rollout.c.id == found_id))).one()
        await history.add(session, **moves.event(began, "started", said, actor, **told))
        made = await _view(session, number)
        if also is not None:
            await also(session, made)
        return made

    try:
        return await store.transact(work, EVENTS, RELEASES)
    except IntegrityError:
        raise Conflict(
            f"another rollout has just begun {_where(spec.group)}; see 'provisionctl rollout list'"
        ) from None


async def act(store: Store, number: int, verb: str, *, actor: str, reason: str = "") -> RolloutView:
    """Pause, resume, approve, back or cancel. Raises NotFound, Invalid, Conflict when its state does not know the verb."""
    if verb not in VERBS:
        raise Invalid([FieldError("verb", f"{verb!r} is no verb; there are: {', '.join(VERBS)}")])

    async def work(session: AsyncSession) -> None:
        row = await _row(session, number, lock=True)
        state = State(row.state)
        if (state, Event(verb)) not in TRANSITIONS:
            raise Conflict(
                f"rollout {number} is {state} and cannot {verb} now; it can: {', '.join(allowed(state)) or 'nothing: it is over'}"
            )
        now = await store.now(session)
        move = await _move_of(session, row, Event(verb), reason, actor, now)
        await session.execute(
            update(_rollout)
            .where(_rollout.c.id == row.id)
            .values(version=row.version + 1, updated_at=utcnow(), **move.columns)
        )
        for line in move.events:
            await history.add(session, **line)

    await store.transact(work, EVENTS, RELEASES)
    return await show(store, number)


async def list_all(store: Store, *, active: bool = False, limit: int = 200) -> list[RolloutSummary]:
    """The newest first."""
    found = select(_rollout).order_by(_rollout.c.number.desc()).limit(max(1, min(limit, 10_000)))
    if active:
        found = found.where(_rollout.c.active_place.isnot(None))
    async with store.read() as session:
        rows = (await session.execute(found)).all()
        numbers = await _numbers(session)
    return [RolloutSummary(**_facts(row, numbers)) for row in rows]


async def show(store: Store, number: int) -> RolloutView:
    """One, with its numbers of this moment. Raises NotFound."""
    async with store.read() as session:
        return await _view(session, number)


async def report(store: Store, number: int) -> RolloutReport:
    """The report it opened when it went back. Raises NotFound when it opened none."""
    async with store.read() as session:
        row = await _row(session, number)
        numbers = await _numbers(session)
    if not row.report:
        raise NotFound("rollout", f"{number} with a report")
    return RolloutReport(
        number=row.number,
        release=numbers.get(row.release_id, 0),
        group=row.group_name or None,
        report=row.report,
    )


async def past(store: Store, number: int) -> list[EventView]:
    """Its lines of the history, and those of the hosts it asked. Raises NotFound."""
    async with store.read() as session:
        row = await _row(session, number)
        found = (
            select(_event)
            .where(_event.c.kind.like("rollout.%"), _event.c.at >= row.created_at)
            .order_by(_event.c.id)
        )
        lines = (await session.execute(found)).all()
    return [history.view(line) for line in lines if line.data.get("rollout") == number]


# --- inner ------------------------------------------------------------------------------------------------


async def _move_of(
    session: AsyncSession, row: Any, verb: Event, reason: str, actor: str, now: datetime
) -> Move:
    to = str(TRANSITIONS[State(row.state), verb])
    why = f": {reason}" if reason else ""
    if verb is Event.BACK:
        facts = await measure(session, row)
        return moves.go_back(row, facts, [], now, why=f"{actor} asked for it{why}", actor=actor)
    if verb is Event.CANCEL:
        return moves.cancelled(row, f"{actor} asked for it{why}", now, event_=verb, actor=actor)
    if verb is Event.PAUSE:
        columns: dict[str, Any] = {"state": to, "why": f"{actor} asked for it{why}", "due_at": None}
        return Move("pause", columns, [moves.event(row, "paused", f"paused by {actor}{why}", actor)])
    if verb is Event.APPROVE:
        columns = {
            "state": to,
            "why": "",
            "due_at": now,
            "work": {**row.work, "approved": row.step, "tries": 0},
        }
        said = f"step {step_name(row.step, row.steps)} approved by {actor}{why}"
        return Move("approve", columns, [moves.event(row, "approved", said, actor)])
    until = now + timedelta(seconds=row.window_seconds)
    columns = {
        "state": to,
        "why": "",
        "due_at": until,
        "work": {**row.work, "until": until.isoformat(), "tries": 0},
    }
    return Move(
        "resume",
        columns,
        [moves.event(row, "resumed", f"resumed by {actor}; its window begins anew{why}", actor)],
    )


async def _current_at(session: AsyncSession, group_id: str | None) -> str | None:
    """What is current at a place by pointers: the group's own, or the nearest above it."""
    pointers = (await load_standing(session)).pointers
    path: list[str] = []
    at = group_id
    while at is not None and at not in path:
        path.insert(0, at)
        at = (await session.execute(select(_group.c.parent_id).where(_group.c.id == at))).scalar()
    return next((pointers[place] for place in places_of(path) if place in pointers), None)


async def _row(session: AsyncSession, number: int, *, lock: bool = False) -> Any:
    found = select(_rollout).where(_rollout.c.number == number)
    row = (await session.execute(found.with_for_update() if lock else found)).first()
    if row is None:
        raise NotFound("rollout", str(number))
    return row


async def _numbers(session: AsyncSession) -> dict[str, int]:
    return {row.id: row.number for row in await session.execute(select(_release.c.id, _release.c.number))}


def _facts(row: Any, numbers: dict[str, int]) -> dict[str, Any]:
    return {
        "number": row.number, "state": row.state, "group": row.group_name or None, "release": numbers.get(row.release_id, 0),
        "before": numbers.get(row.before_id), "step": step_name(row.step, row.steps), "why": row.why, "actor": row.actor,
        "created_at": row.created_at, "ended_at": row.ended_at,
    }  # fmt: skip


def _where(group: str | None) -> str:
    return f"in group {group}" if group else "everywhere"


async def _view(session: AsyncSession, number: int) -> RolloutView:
    row = await _row(session, number)
    numbers = await _numbers(session)
    facts = (
        await measure(session, row)
        if row.active_place is not None and row.state != State.GOING_BACK
        else Facts({})
    )
    verdicts = row.work.get("verdicts", [])
    if row.state in (State.RUNNING, State.WAITING):
        early = [v for text in row.gates if (v := fails_already(parse(text), facts.numbers))]
        verdicts = [v.plain() for v in early] or verdicts
    told = (
        facts.numbers.plain()
        if row.active_place is not None and not row.report
        else row.report.get("numbers", {})
    )
    return RolloutView(
        **_facts(row, numbers), steps=row.steps, gates=row.gates, window_seconds=row.window_seconds, rebuild=row.rebuild,
        rebuild_back=row.rebuild_back, min_builds=row.min_builds, seed=row.seed, step_since=row.step_since,
        window_until=datetime.fromisoformat(row.work["until"]) if row.work.get("until") else None, numbers=told,
        failing=[one.host for one in facts.failing] or [one["host"] for one in row.report.get("hosts", [])],
        verdicts=verdicts, report=bool(row.report), can=allowed(State(row.state)),
    )  # fmt: skip
