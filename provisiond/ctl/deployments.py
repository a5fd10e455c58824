"""provisionctl deployment: the builds of a host, with which release, and what each was served."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import session
from provisiond.ctl.output import Format, show_list, show_one, stderr, stdout

app = typer.Typer(help="Builds of hosts, and what they were served.", no_args_is_help=True)
Host = Annotated[str, typer.Argument(help="The host's name.")]


@app.command("list")
def list_(context: typer.Context, host: Host) -> None:
    """List the builds of a host, the newest first."""
    here = session(context)
    items = here.client.every("/hosts" + place(host, "deployments"))
    if here.format is Format.TABLE:
        items = [{**i, "release": _release(i["release_number"], i["release"])} for i in items]
    columns = ("number", "release", "method", "created_at", "built_at", "ended_at", "outcome", "failure")
    show_list(items, columns, here.format, empty=f"host {host} was never built")


@app.command("show")
def show(
    context: typer.Context,
    host: Host,
    number: Annotated[str, typer.Argument(help="Which build; default: the newest.")] = "newest",
    file: Annotated[
        str | None,
        typer.Option("--file", help="Print what it was served of this kind, secrets masked.", metavar="KIND"),
    ] = None,
) -> None:
    """Show a build: its release, and digest, size and times of every file its machine was served."""
    here = session(context)
    path = "/hosts" + place(host, "deployments", number)
    if file is not None:
        found = here.client.get(path + place("files", file))["items"]
        if here.format is not Format.TABLE:
            show_list(found, (), here.format)
            return
        for text in found:
            if len(found) > 1:
                stderr().print(f"# {text['digest']}, {text['first_at']} to {text['last_at']}", markup=False)
            sys.stdout.write(text["text"] if text["text"].endswith("\n") else text["text"] + "\n")
        return
    build = here.client.get(path)
    if here.format is not Format.TABLE:
        show_one(build, here.format)
        return
    files = build.pop("files")
    show_one({**build, "release": _release(build.pop("release_number"), build["release"])}, here.format)
    stdout().print()
    files = [{**f, "digest": f["digest"][:16]} for f in files]
    columns = ("kind", "template", "digest", "size", "times", "first_at", "last_at")
    show_list(files, columns, here.format, empty="its machine was served nothing yet")


def _release(number: int | None, digest: str | None) -> str:
    return f"#{number} {(digest or '')[:12]}" if number else "-"
