"""provisionctl flag: feature flags that templates ask for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import Name, noun, session, usage
from provisiond.ctl.output import show_one

app = noun(
    "flag", "/flags", ("name", "percent", "groups", "hosts", "off_hosts", "about"), plural="feature flags"
)

About = Annotated[str | None, typer.Option(help="What it is for.")]
Percent = Annotated[float | None, typer.Option(min=0, max=100, help="On for this share of all hosts.")]
Groups = Annotated[
    list[str] | None,
    typer.Option("--group", help="On for this group and those below; again for more; '' for none."),
]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="On for this host; again for more; '' for none.")
]
NotHosts = Annotated[
    list[str] | None,
    typer.Option("--not-host", help="Off for this host whatever else says; again for more; '' for none."),
]


@app.command("create")
def create(
    context: typer.Context,
    name: Name,
    about: About = None,
    percent: Percent = None,
    group: Groups = None,
    host: Hosts = None,
    not_host: NotHosts = None,
) -> None:
    """Make a feature flag; it is off wherever nothing says on."""
    here = session(context)
    body = {"name": name, **_settings(about, percent, group, host, not_host)}
    show_one(here.client.post("/flags", body, once=True), here.format)


@app.command("set")
def change(
    context: typer.Context,
    name: Name,
    about: About = None,
    percent: Percent = None,
    group: Groups = None,
    host: Hosts = None,
    not_host: NotHosts = None,
) -> None:
    """Change where a flag is on. A list is replaced as a whole; builds that began keep what they began with."""
    here = session(context)
    body = _settings(about, percent, group, host, not_host)
    if not body:
        raise usage("nothing to change: give --percent, --group, --host, --not-host or --about")
    show_one(here.client.patch("/flags" + place(name), body), here.format)


def _settings(
    about: str | None,
    percent: float | None,
    group: list[str] | None,
    host: list[str] | None,
    not_host: list[str] | None,
) -> dict[str, Any]:
    """What was given; an empty name in a list empties it."""
    lists = {"groups": group, "hosts": host, "off_hosts": not_host}
    told: dict[str, Any] = {"about": about, "percent": percent}
    told |= {name: [item for item in items if item] for name, items in lists.items() if items}
    return {name: value for name, value in told.items() if value is not None}
