"""Feature flags over the API."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.idempotency import Remembered
from provisiond.api.routing import Answer, Once, Route
from provisiond.errors import Conflict
from provisiond.inventory import flags
from provisiond.inventory.access import Principal
from provisiond.inventory.flags import FlagCreate, FlagUpdate, FlagView


async def create_flag(
    deps: ApiDeps, body: FlagCreate, who: Principal, idempotency: Once | None
) -> FlagView | Answer[FlagView]:
    """Off everywhere unless the request says more; no host is woken."""
    remembered = Remembered(deps.store, who, idempotency)
    if answer := await remembered.recall():
        return answer

    async def keep(session: AsyncSession, made: FlagView) -> None:
        await remembered.keep(session, made, 201)

    try:
        return await flags.create(deps.store, body, actor=who.actor, also=keep if idempotency else None)
    except Conflict:
        if answer := await remembered.recall():  # the same request, a moment earlier
            return answer
        raise


async def list_flags(deps: ApiDeps) -> Page[FlagView]:
    """By name."""
    return Page(items=await flags.list_all(deps.store))


async def show_flag(deps: ApiDeps, name: str) -> FlagView:
    """Where it is on."""
    return await flags.get(deps.store, name)


async def update_flag(deps: ApiDeps, name: str, body: FlagUpdate, who: Principal) -> FlagView:
    """Builds that began keep what they began with."""
    return await flags.change(deps.store, name, body, actor=who.actor)


async def delete_flag(deps: ApiDeps, name: str, who: Principal) -> None:
    """For templates that ask for it, it is off."""
    await flags.remove(deps.store, name, actor=who.actor)


ROUTES: list[Route] = [
    Route("GET", "/flags", list_flags, "viewer", "List feature flags"),
    Route("POST", "/flags", create_flag, "operator", "Create a feature flag", status=201),
    Route("GET", "/flags/{name}", show_flag, "viewer", "Show a feature flag"),
    Route("PATCH", "/flags/{name}", update_flag, "operator", "Change a feature flag"),
    Route("DELETE", "/flags/{name}", delete_flag, "operator", "Delete a feature flag"),
]
