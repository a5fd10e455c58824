"""Rollouts and feature flags over the API."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.idempotency import Remembered
from provisiond.api.routing import Answer, Once, Route, number_of
from provisiond.errors import Conflict
from provisiond.inventory.access import Principal
from provisiond.inventory.shapes import EventView, Request
from provisiond.rollouts import requests
from provisiond.rollouts.requests import RolloutReport, RolloutStart, RolloutSummary, RolloutVerb, RolloutView


class RolloutQuery(Request):
    """``active``: only those that are not over."""

    active: bool = False
    limit: int = 200


async def start_rollout(
    deps: ApiDeps, body: RolloutStart, who: Principal, idempotency: Once | None
) -> RolloutView | Answer[RolloutView]:
    """Each step makes the release current for more hosts; the last one, when its gates have passed, for all."""
    remembered = Remembered(deps.store, who, idempotency)
    if answer := await remembered.recall():
        return answer

    async def keep(session: AsyncSession, made: RolloutView) -> None:
        await remembered.keep(session, made, 201)

    try:
        return await requests.start(
            deps.store, deps.settings.rollout, body, actor=who.actor, also=keep if idempotency else None
        )
    except Conflict:
        if answer := await remembered.recall():  # the same request, a moment earlier
            return answer
        raise


async def list_rollouts(deps: ApiDeps, query: RolloutQuery) -> Page[RolloutSummary]:
    """The newest first."""
    return Page(items=await requests.list_all(deps.store, active=query.active, limit=query.limit))


async def show_rollout(deps: ApiDeps, number: str) -> RolloutView:
    """With the numbers of this moment."""
    return await requests.show(deps.store, number_of("rollout", number))


async def act_on_rollout(
    deps: ApiDeps, number: str, verb: str, body: RolloutVerb, who: Principal
) -> RolloutView:
    """pause, resume, approve, back or cancel."""
    return await requests.act(
        deps.store, number_of("rollout", number), verb, actor=who.actor, reason=body.reason
    )


async def show_rollout_report(deps: ApiDeps, number: str) -> RolloutReport:
    """Opened once, when it went back: which gate, the numbers, the hosts that failed and the tails of their logs."""
    return await requests.report(deps.store, number_of("rollout", number))


async def show_rollout_history(deps: ApiDeps, number: str) -> Page[EventView]:
    """Its own lines of the history."""
    return Page(items=await requests.past(deps.store, number_of("rollout", number)))


ROUTES: list[Route] = [
    Route("GET", "/rollouts", list_rollouts, "viewer", "List rollouts"),
    Route("POST", "/rollouts", start_rollout, "operator", "Start a rollout", status=201),
    Route("GET", "/rollouts/{number}", show_rollout, "viewer", "Show a rollout"),
    Route("GET", "/rollouts/{number}/report", show_rollout_report, "operator", "Why a rollout went back"),
    Route("GET", "/rollouts/{number}/history", show_rollout_history, "viewer", "The history of a rollout"),
    Route(
        "POST", "/rollouts/{number}/actions/{verb}", act_on_rollout, "operator", "Ask something of a rollout"
    ),
]
