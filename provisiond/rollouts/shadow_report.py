"""What shadow runs have found, as it is shown: runs, the differences their hosts have in common, and single hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, func, select

from provisiond.errors import NotFound
from provisiond.inventory.release_tables import Release, ShadowDiff, ShadowResult, ShadowRun
from provisiond.inventory.shapes import View
from provisiond.inventory.store import Store
from provisiond.inventory.tables import table

EXAMPLES = 5  # hosts named beside a difference
DIFFERENCES = 100  # shown with a run, the most common first

_run, _diff, _result, _release = (table(t) for t in (ShadowRun, ShadowDiff, ShadowResult, Release))
_WITH_RELEASE = select(
    *_run.c, _release.c.number.label("release"), _release.c.digest.label("release_digest")
).join(_release, _release.c.id == _run.c.release_id)


class ShadowRunSummary(View):
    """A run as one line of a list. ``state``: running, cancelled, done, failed; ``seconds`` it took so far."""

    number: int
    release: int
    release_digest: str
    group: str | None
    state: str
    total: int
    done: int
    unchanged: int
    changed: int
    failing: int
    boot: int
    seconds: float
    actor: str
    created_at: datetime
    ended_at: datetime | None
    failure: str


class ShadowDifference(View):
    """A difference that ``hosts`` hosts have in common, or why they fail; ``examples`` names a few of them.

    ``kind``: changed, failing, or failing-already (what is current fails for them too).
    """

    digest: str
    kind: str
    template: str
    hosts: int
    examples: list[str]
    text: str


class ShadowBoot(View):
    """How far a throw-away machine came: ``state`` is active, failed, or what it was in when time was up."""

    host: str
    like: str
    state: str
    step: str = ""
    progress: int = 0
    progress_text: str = ""
    failure: str = ""
    log_tail: str = ""
    seconds: float = 0.0


class ShadowWork(View):
    """Sums and means over hosts: of the release, and of what is current. Sizes in bytes, times of one host in milliseconds."""

    size: int
    size_before: int
    mean_milliseconds: float
    mean_milliseconds_before: float
    longest_milliseconds: float
    slowest_host: str | None


class ShadowRunView(ShadowRunSummary):
    """A run with what it found. ``not_validated`` counts renderings by why no validator looked; ``checked`` were looked at, of which
    ``validated`` were told apart; ``gone`` hosts were deleted meanwhile; ``more_differences`` are not shown."""

    validate_results: bool
    checked: int
    validated: int
    not_validated: dict[str, int]
    gone: int
    work: ShadowWork
    differences: list[ShadowDifference]
    more_differences: int
    boots: list[ShadowBoot]


class ShadowHost(View):
    """What a run found for one host; ``differences`` are digests of the run's."""

    host: str
    host_id: str
    outcome: str
    differences: list[str]
    milliseconds: float
    milliseconds_before: float
    size: int
    size_before: int


async def list_runs(store: Store, limit: int = 100) -> list[ShadowRunSummary]:
    """The newest first."""
    async with store.connect() as connection:
        rows = (await connection.execute(_WITH_RELEASE.order_by(_run.c.number.desc()).limit(limit))).all()
    return [ShadowRunSummary(**_summary(row)) for row in rows]


async def show_summary(store: Store, number: int) -> ShadowRunSummary:
    """How far a run is. Raises NotFound."""
    async with store.connect() as connection:
        row = (await connection.execute(_WITH_RELEASE.where(_run.c.number == number))).first()
    if row is None:
        raise NotFound("shadow run", str(number))
    return ShadowRunSummary(**_summary(row))


async def show_run(store: Store, number: int) -> ShadowRunView:
    """With its differences, the most common first. Raises NotFound."""
    async with store.read() as session:
        row = (await session.execute(_WITH_RELEASE.where(_run.c.number == number))).first()
        if row is None:
            raise NotFound("shadow run", str(number))
        of_run = _diff.c.run_id == row.id
        found = select(_diff).where(of_run).order_by(_diff.c.hosts.desc(), _diff.c.digest).limit(DIFFERENCES)
        diffs = (await session.execute(found)).all()
        count = (await session.execute(select(func.count()).where(of_run))).scalar_one()
        examples: dict[str, list[str]] = {d.digest: [] for d in diffs}
        for diff in diffs:
            named = _of_difference(row.id, diff.digest).with_only_columns(_result.c.host_name).limit(EXAMPLES)
            examples[diff.digest] = list((await session.execute(named)).scalars())
        work = await _work(session, row.id)
    differences = [
        ShadowDifference(
            digest=d.digest, kind=d.kind, template=d.template, hosts=d.hosts, examples=examples[d.digest], text=d.text
        )
        for d in diffs
    ]  # fmt: skip
    report: dict[str, Any] = row.report
    return ShadowRunView(
        **_summary(row),
        validate_results=row.validate_results,
        checked=report.get("checked", 0),
        validated=report.get("validated", 0),
        not_validated=report.get("skipped", {}),
        gone=report.get("gone", 0),
        work=work,
        differences=differences,
        more_differences=count - len(diffs),
        boots=[
            ShadowBoot(
                **{n: boot[n] for n in ShadowBoot.model_fields if n in boot}
                | {"like": boot.get("like_name", "")}
            )
            for boot in report.get("boots", [])
        ],
    )


async def list_hosts(
    store: Store, number: int, *, outcome: str | None = None, difference: str | None = None, limit: int = 1000, cursor: str = ""
) -> list[ShadowHost]:  # fmt: skip
    """Hosts of a run by name, after ``cursor``; of one ``outcome``, of one ``difference`` (its digest). Raises NotFound."""
    async with store.read() as session:
        run_id = (await session.execute(select(_run.c.id).where(_run.c.number == number))).scalar()
        if run_id is None:
            raise NotFound("shadow run", str(number))
        found = (
            _of_difference(run_id, difference)
            if difference
            else select(_result).where(_result.c.run_id == run_id)
        )
        if outcome:
            found = found.where(_result.c.outcome == outcome)
        found = found.where(_result.c.host_name > cursor).order_by(_result.c.host_name).limit(limit)
        rows = (await session.execute(found)).all()
    return [
        ShadowHost(
            host=r.host_name, host_id=r.host_id, outcome=r.outcome, differences=r.diffs, milliseconds=r.milliseconds,
            milliseconds_before=r.milliseconds_before, size=r.size, size_before=r.size_before,
        )
        for r in rows
    ]  # fmt: skip


async def _work(session: Any, run_id: str) -> ShadowWork:
    r = _result.c
    sums = select(
        func.coalesce(func.sum(r.size), 0), func.coalesce(func.sum(r.size_before), 0), func.avg(r.milliseconds),
        func.avg(r.milliseconds_before),
    ).where(r.run_id == run_id)  # fmt: skip
    size, before, mean, mean_before = (await session.execute(sums)).one()
    slow = (
        select(r.host_name, r.milliseconds).where(r.run_id == run_id).order_by(r.milliseconds.desc()).limit(1)
    )
    slowest = (await session.execute(slow)).first()
    return ShadowWork(
        size=int(size),
        size_before=int(before),
        mean_milliseconds=round(mean or 0.0, 3),
        mean_milliseconds_before=round(mean_before or 0.0, 3),
        longest_milliseconds=round(slowest.milliseconds if slowest else 0.0, 3),
        slowest_host=slowest.host_name if slowest else None,
    )


def _of_difference(run_id: str, digest: str) -> Any:
    has_it = cast(_result.c.diffs, Text).contains(digest, autoescape=True)
    return select(_result).where(_result.c.run_id == run_id, has_it).order_by(_result.c.host_name)


def _summary(row: Any) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ShadowRunSummary.model_fields if name != "group"}
    return values | {"group": row.group_name or None, "seconds": round(row.seconds, 2)}
