"""Groups, subnets, domains, operating systems, media, images, hypervisors, flavors: the same five calls for each noun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.idempotency import Remembered
from provisiond.api.masking import for_eyes
from provisiond.api.routing import Answer, Once, Route
from provisiond.errors import Invalid
from provisiond.inventory import catalogue
from provisiond.inventory.access import Principal
from provisiond.inventory.catalogue import CATALOGUE, Noun
from provisiond.inventory.fields import Parameters
from provisiond.inventory.shapes import Request, View

IMPORTED = {"medium", "image"}  # these come in by an import (media.py), not by a create


class GlobalParameters(Request):
    """The parameters of all hosts, which everything else overrides."""

    parameters: Parameters = Field(default_factory=dict)


class GlobalParametersView(View):
    parameters: dict[str, Any]


async def show_global_parameters(deps: ApiDeps, who: Principal) -> GlobalParametersView:
    """The weakest in precedence."""
    return for_eyes(GlobalParametersView(parameters=await catalogue.get_parameters(deps.store)), who)


async def replace_global_parameters(
    deps: ApiDeps, body: GlobalParameters, who: Principal
) -> GlobalParametersView:
    """As a whole."""
    changed = await catalogue.set_parameters(deps.store, body.parameters, actor=who.actor)
    return GlobalParametersView(parameters=changed)


def noun_routes(noun: Noun) -> list[Route]:
    """The five calls of one noun."""
    called = noun.name.replace("_", " ")
    path, one = f"/{noun.plural}", f"/{noun.plural}/{{name}}"
    page: Any = Page[noun.view]  # type: ignore[name-defined]

    async def create(deps: ApiDeps, body: Any, who: Principal, idempotency: Once | None) -> Any:
        remembered = Remembered(deps.store, who, idempotency)
        if answer := await remembered.recall():
            return answer

        async def keep(session: AsyncSession, made: BaseModel) -> None:
            await remembered.keep(session, made, 201)

        try:
            return await catalogue.create(
                deps.store, noun, body, actor=who.actor, also=keep if idempotency else None
            )
        except Invalid:
            if answer := await remembered.recall():  # the same request, a moment earlier
                return answer
            raise

    async def list_all(deps: ApiDeps, who: Principal) -> Any:
        found = await catalogue.list_all(deps.store, noun)
        return Answer({"items": [for_eyes(view, who) for view in found], "next": None})

    async def show(deps: ApiDeps, name: str, who: Principal) -> Any:
        return for_eyes(await catalogue.get(deps.store, noun, name), who)

    async def update(deps: ApiDeps, name: str, body: Any, who: Principal) -> Any:
        return await catalogue.change(deps.store, noun, name, body, actor=who.actor)

    async def delete(deps: ApiDeps, name: str, who: Principal) -> None:
        await catalogue.remove(deps.store, noun, name, actor=who.actor)

    plural = noun.plural.replace("-", " ")
    routes = [
        Route("GET", path, _typed(list_all, f"list_{noun.name}s", page), "viewer", f"List {plural}"),
        Route("GET", one, _typed(show, f"show_{noun.name}", noun.view), "viewer", f"Show a {called}"),
        Route(
            "PATCH",
            one,
            _typed(update, f"update_{noun.name}", noun.view, noun.update),
            "operator",
            f"Change a {called}",
        ),
        Route(
            "DELETE",
            one,
            _typed(delete, f"delete_{noun.name}", None),
            "operator",
            f"Delete a {called} that nothing uses",
        ),
    ]
    if noun.name not in IMPORTED:
        made = _typed(create, f"create_{noun.name}", noun.view, noun.create)
        routes.append(Route("POST", path, made, "operator", f"Create a {called}", status=201))
    return routes


def _typed(
    handler: Callable[..., Awaitable[Any]], name: str, answer: Any, body: Any = None
) -> Callable[..., Awaitable[Any]]:
    """The handler with the noun's own types in its signature."""
    handler.__name__ = name
    handler.__annotations__["return"] = answer
    if body is not None:
        handler.__annotations__["body"] = body
    return handler


ROUTES: list[Route] = [
    *(route for noun in CATALOGUE.values() for route in noun_routes(noun)),
    Route("GET", "/parameters", show_global_parameters, "viewer", "The global parameters"),
    Route("PUT", "/parameters", replace_global_parameters, "operator", "Replace the global parameters"),
]
