"""Templates of the current release, and what one of them makes for a host, with its secrets masked."""

from __future__ import annotations

from typing import Any

from provisiond.api.deps import ApiDeps
from provisiond.errors import NotFound
from provisiond.inventory.hosts import get_host
from provisiond.inventory.masking import mask
from provisiond.inventory.resolve import ResolvedHost, resolve_host
from provisiond.inventory.shapes import View
from provisiond.templating.catalogue import Catalogue


class TemplateView(View):
    """A template: ``families`` and ``versions`` empty means all."""

    id: str
    kind: str
    about: str
    families: list[str]
    versions: list[str]
    parameters: dict[str, Any]


class TemplateText(TemplateView):
    text: str


class ReleaseView(View):
    """The release that new builds are pinned to."""

    digest: str
    git_commit: str | None
    templates: list[TemplateView]


class MergedParameters(View):
    """``origins`` maps the dotted path of every value to its place, such as `group web`."""

    values: dict[str, Any]
    origins: dict[str, str]


async def list_templates(deps: ApiDeps) -> ReleaseView:
    """Of the current release."""
    catalogue = (await deps.renderings.renderer()).catalogue
    return ReleaseView(
        digest=catalogue.digest,
        git_commit=catalogue.git_commit,
        templates=[TemplateView(**_facts(catalogue, path)) for path in catalogue.headers],
    )


async def show_template(deps: ApiDeps, id: str) -> TemplateText:
    """With its text."""
    catalogue = (await deps.renderings.renderer()).catalogue
    if id not in catalogue.files:
        raise NotFound("template", id)
    return TemplateText(**_facts(catalogue, id), text=catalogue.files[id])


async def show_parameters(deps: ApiDeps, name: str) -> MergedParameters:
    """What the templates and the handover see, merged from everywhere, and from where each value came."""
    host = _masked(await resolved(deps, name))
    return MergedParameters(values=host.merged.values, origins=host.merged.origins)


async def resolved(deps: ApiDeps, name: str) -> ResolvedHost:
    """The host of that name or id with all it refers to. Raises NotFound."""
    view = await get_host(deps.store, name)
    async with deps.store.read() as session:
        return await resolve_host(session, view.id)


def _masked(host: ResolvedHost) -> ResolvedHost:
    return host.with_parameters(mask(host.parameters))


def _facts(catalogue: Catalogue, path: str) -> dict[str, Any]:
    header = catalogue.headers[path]
    parameters = {name: parameter.model_dump(mode="json") for name, parameter in header.parameters.items()}
    return {
        "id": path,
        "kind": header.kind,
        "about": header.about,
        "families": list(header.families),
        "versions": list(header.versions),
        "parameters": parameters,
    }
