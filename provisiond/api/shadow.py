"""Shadow runs: a release rendered for every host beside what is current, and served to nobody."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.routing import Route, number_of
from provisiond.inventory.access import Principal
from provisiond.inventory.fields import Line, Name, Word
from provisiond.inventory.shapes import Request
from provisiond.rollouts import shadow_report, shadow_requests
from provisiond.rollouts.shadow_report import ShadowHost, ShadowRunSummary, ShadowRunView

MAX_BOOTS = 20


class ShadowStart(Request):
    """``release``: its number or the beginning of its digest. Without ``group`` all hosts; ``boot`` throw-away machines are made and
    booted at the end, on the hypervisor ``on`` or, without it, where the host that each is like is."""

    release: Line = Field(min_length=1)
    group: Name | None = None
    validate_results: bool = True
    boot: int = Field(0, ge=0, le=MAX_BOOTS)
    on: Name | None = None


class ShadowHostQuery(Request):
    """``difference`` is the digest of one of the run's; ``cursor`` the last host of the page before."""

    outcome: Literal["unchanged", "changed", "failing"] | None = None
    difference: Word | None = None
    limit: int = Field(1000, ge=1, le=10_000)
    cursor: str = ""


async def start_shadow_run(deps: ApiDeps, body: ShadowStart, who: Principal) -> ShadowRunSummary:
    """Begins at once; look at `/shadow-runs/{number}/progress` until it is done, failed or cancelled."""
    number = await shadow_requests.begin(
        deps.store, body.release, body.group, actor=who.actor, validating=body.validate_results, boot=body.boot, on=body.on
    )  # fmt: skip
    return await shadow_report.show_summary(deps.store, number)


async def list_shadow_runs(deps: ApiDeps) -> Page[ShadowRunSummary]:
    """The newest first."""
    return Page(items=await shadow_report.list_runs(deps.store))


async def show_shadow_run(deps: ApiDeps, number: str) -> ShadowRunView:
    """With the differences that its hosts have in common, the most common first, and why hosts would fail."""
    return await shadow_report.show_run(deps.store, number_of("shadow run", number))


async def show_shadow_progress(deps: ApiDeps, number: str) -> ShadowRunSummary:
    """How far it is, without what it found."""
    return await shadow_report.show_summary(deps.store, number_of("shadow run", number))


async def list_shadow_hosts(deps: ApiDeps, number: str, query: ShadowHostQuery) -> Page[ShadowHost]:
    """In order of their names."""
    items = await shadow_report.list_hosts(
        deps.store, number_of("shadow run", number), outcome=query.outcome, difference=query.difference, limit=query.limit, cursor=query.cursor
    )  # fmt: skip
    more = len(items) == query.limit
    return Page(items=items, next=items[-1].host if more else None)


async def cancel_shadow_run(deps: ApiDeps, number: str, who: Principal) -> ShadowRunSummary:
    """Within two seconds nothing is rendered any more; what it has found stays."""
    await shadow_requests.cancel(deps.store, number_of("shadow run", number), actor=who.actor)
    return await shadow_report.show_summary(deps.store, number_of("shadow run", number))


async def resume_shadow_run(deps: ApiDeps, number: str, who: Principal) -> ShadowRunSummary:
    """A cancelled or failed run goes on after the last host it has settled."""
    await shadow_requests.resume(deps.store, number_of("shadow run", number), actor=who.actor)
    return await shadow_report.show_summary(deps.store, number_of("shadow run", number))


ROUTES: list[Route] = [
    Route("GET", "/shadow-runs", list_shadow_runs, "viewer", "List shadow runs"),
    Route("POST", "/shadow-runs", start_shadow_run, "operator", "Begin a shadow run", status=202),
    Route("GET", "/shadow-runs/{number}", show_shadow_run, "viewer", "What a shadow run found"),
    Route("GET", "/shadow-runs/{number}/progress", show_shadow_progress, "viewer", "How far a shadow run is"),
    Route("GET", "/shadow-runs/{number}/hosts", list_shadow_hosts, "viewer", "The hosts of a shadow run"),
    Route(
        "POST", "/shadow-runs/{number}/cancel", cancel_shadow_run, "operator", "End a shadow run", status=202
    ),
    Route(
        "POST",
        "/shadow-runs/{number}/resume",
        resume_shadow_run,
        "operator",
        "Go on with a shadow run",
        status=202,
    ),
]
