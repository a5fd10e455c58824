"""What a template makes for a host, and where a value that it uses comes from."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field

from provisiond.api.deps import ApiDeps
from provisiond.api.routing import Route
from provisiond.api.templates import resolved
from provisiond.errors import Denied, NotFound, RenderError
from provisiond.inventory import history
from provisiond.inventory.access import Principal
from provisiond.inventory.explain import DESCRIPTIONS, places_of_description, places_of_parameter, reach
from provisiond.inventory.fields import HostName, Line, Parameters
from provisiond.inventory.masking import MASK, mask
from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.shapes import Request, View
from provisiond.inventory.store import EVENTS
from provisiond.templating.context import BootFiles, BuildUrls, build_context
from provisiond.templating.release import in_build
from provisiond.templating.releases import find_release
from provisiond.templating.render import Renderer
from provisiond.templating.served import kinds_served


class RenderRequest(Request):
    """``kind`` is a template's kind (user-data, preseed, ipxe-installer ...) or its id; ``release`` a number or a digest's beginning,
    by default the one of the host's build, or that a build would get now. ``parameters`` are laid over the host's, to try them."""

    host: HostName
    kind: Line = Field(min_length=1)
    release: Line | None = None
    secrets: bool = Field(False, description="Show secrets too. For admins; it is written to the history.")
    parameters: Parameters = Field(default_factory=dict)


class Rendered(View):
    """``text`` is what the machine would get; in loader scripts the addresses of kernel and initrd are the words KERNEL and INITRD."""

    host: str
    template: str
    release: str
    size: int
    text: str


class Said(View):
    """What one place says of a value; ``wins``: it counts, alone or, in a table, with others."""

    place: str
    value: Any
    wins: bool


class Declared(View):
    """How a template that the host is served declares the parameter."""

    template: str
    type: str
    default: Any
    required: bool
    choices: list[str | int]
    about: str


class Explained(View):
    """``origin`` is the place the value comes from ("several" of a table, "default" of the templates' headers), null if there is none."""

    host: str
    name: str
    value: Any
    origin: str | None
    places: list[Said]
    declared: list[Declared]


async def render(deps: ApiDeps, body: RenderRequest, who: Principal) -> Rendered:
    """The exact text, but for the build's token and parameters that are secrets by their names: those are masked unless asked for."""
    if body.secrets and who.role != "admin":
        raise Denied("only an admin may see secrets; render without them", authenticated=True)
    host = await resolved(deps, body.host)
    renderer, release_id = await _renderer(deps, host, body.release)
    values = merge([("", host.parameters), ("", body.parameters)]).values
    host = host.with_parameters(values if body.secrets else mask(values))
    token = deps.box.decrypt(host.deployment.secret_seed) if body.secrets and host.deployment else MASK
    if host.deployment is None:
        host = in_build(host, release_id)
    urls = BuildUrls.of(deps.boot_url, token)
    boot = BootFiles(
        mac=host.mac or "", why="rendered to be looked at", kernel="KERNEL", initrd="INITRD", url=urls.base
    )
    template = _template(renderer, host, body.kind)
    keys, other = deps.renderings.authorized_keys, body.release is not None
    context = build_context(host, urls, authorized_keys=keys, boot=boot, next_build=other)
    text = await asyncio.to_thread(renderer.render, template, context)
    if body.secrets:
        await _note(deps, host, who, template)
    return Rendered(
        host=host.name,
        template=template,
        release=renderer.catalogue.digest,
        size=len(text.encode()),
        text=text,
    )


async def explain(deps: ApiDeps, name: str, parameter: str) -> Explained:
    """Every place that sets it, the weakest first; how templates declare it; who describes `storage` and `network`. Secrets are masked."""
    host = await resolved(deps, name)
    async with deps.store.read() as session:
        if parameter in DESCRIPTIONS:
            places = await places_of_description(session, host, parameter)
            there, value = bool(places), getattr(host, parameter)
        else:
            places = await places_of_parameter(session, host, parameter)
            there, value = reach(host.parameters, parameter)
    table = isinstance(value, dict) and parameter not in DESCRIPTIONS
    winners = {p.name for p in places} if table else {p.name for p in places[-1:]}
    if table:
        prefix = ".".join(part.replace("\\", "\\\\") for part in parameter.split("."))
        winners = {o for at, o in host.merged.origins.items() if at == prefix or at.startswith(prefix + ".")}
    declared = await _declared(deps, host, parameter)
    origin = None
    if there:
        origin = next(iter(winners)) if len(winners) == 1 else "several"
    elif declared:
        origin, value = "default", declared[0].default
    if not there and not declared:
        raise NotFound("parameter", parameter)

    said = [Said(place=p.name, value=mask(p.value, parameter), wins=p.name in winners) for p in places]
    return Explained(
        host=host.name,
        name=parameter,
        value=mask(value, parameter),
        origin=origin,
        places=said,
        declared=declared,
    )


async def _declared(deps: ApiDeps, host: ResolvedHost, parameter: str) -> list[Declared]:
    renderer, _ = await _renderer(deps, host, None)
    try:
        kinds = kinds_served(host, renderer.catalogue)
    except RenderError:
        return []
    found = []
    for kind in kinds:
        try:
            template = _template(renderer, host, kind)
            one = renderer.parameters(template).get(parameter)
        except (NotFound, RenderError):
            continue
        if one is not None:
            facts = one.model_dump(mode="json", include={"type", "default", "required", "choices", "about"})
            found.append(Declared(template=template, **facts))
    return found


async def _renderer(deps: ApiDeps, host: ResolvedHost, said: str | None) -> tuple[Renderer, str]:
    if said is None:
        release_id = host.release_id or await deps.renderings.current_for(host)
    else:
        async with deps.store.read() as session:
            release_id = (await find_release(session, said)).id
    return await deps.renderings.renderer(release_id), release_id


def _template(renderer: Renderer, host: ResolvedHost, kind: str) -> str:
    if kind in renderer.catalogue.files:
        return kind
    return renderer.find(kind, *host.family_version)


async def _note(deps: ApiDeps, host: ResolvedHost, who: Principal, template: str) -> None:
    async def work(session: Any) -> None:
        message = f"{template} was rendered with its secrets shown"
        await history.add(session, kind="secrets.shown", host=host, actor=who.actor, message=message)

    await deps.store.transact(work, EVENTS)


ROUTES: list[Route] = [
    Route("POST", "/templates/render", render, "operator", "What a host would be given"),
    Route("GET", "/hosts/{name}/parameters/{parameter}", explain, "viewer", "Where a parameter comes from"),
]
