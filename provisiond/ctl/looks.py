"""provisionctl host, for looking closer: console, agent-log, history, events, parameters, deployments."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated, Any

import typer

from provisiond.ctl.client import ApiProblem, place
from provisiond.ctl.common import Name, session
from provisiond.ctl.output import Format, length, show_list, show_one


def console(
    context: typer.Context,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes.")] = False,
    tail: Annotated[int, typer.Option(help="Bytes from the end to begin with.")] = 65536,
) -> None:
    """Print what the host wrote to its serial console."""
    out = sys.stdout.buffer
    for piece in session(context).client.text(place("hosts", name, "console"), follow=follow, tail=tail):
        out.write(piece)
        out.flush()


def agent_log(
    context: typer.Context,
    name: Name,
    work: Annotated[
        str | None, typer.Option(help="Id of the deployment or task; default: the newest log.")
    ] = None,
) -> None:
    """Print what the host's ramdisk logged while it wrote an image, inspected, erased or rescued."""
    out = sys.stdout.buffer
    for piece in session(context).client.text(place("hosts", name, "agent-log"), work=work):
        out.write(piece)


def history(
    context: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many of the newest events.")] = 200,
) -> None:
    """Every step and change of a host, oldest first."""
    here = session(context)
    events = here.client.get(place("hosts", name, "history"), limit=limit, newest=True)["items"]
    if here.format is not Format.TABLE:
        show_list(events, (), here.format)
        return
    if not events:
        raise ApiProblem(404, f"there is no host {name!r}, and there never was one", [])
    rows = [
        {**event, "time": event["at"][:19].replace("T", " "), "took": _took(event), "what": _what(event)}
        for event in events
    ]
    show_list(rows, ("time", "kind", "state", "step", "attempt", "took", "actor", "what"), here.format)


def events(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One host; all without it.")] = None,
) -> None:
    """Print events as they happen, until interrupted."""
    here = session(context)
    path = place("hosts", name, "events") if name else "/events"
    for event in here.client.events(path):
        if event is None:
            continue
        if here.format is Format.TABLE:
            data = event.data
            where = " ".join(part for part in (data["state"], data["step"]) if part)
            typer.echo(
                f"{data['at'][:19].replace('T', ' ')} {data['host']:<16} {event.kind:<18} {where:<24} {_what(data)}".rstrip()
            )
        else:
            typer.echo(json.dumps(event.data))
        sys.stdout.flush()


def parameters(context: typer.Context, name: Name) -> None:
    """The parameters of a host as its templates see them, and where each comes from. Secrets are masked."""
    here = session(context)
    merged = here.client.get(place("hosts", name, "parameters"))
    if here.format is not Format.TABLE:
        show_one(merged, here.format)
        return
    rows = [
        {"parameter": path, "value": _at(merged["values"], path), "from": place}
        for path, place in sorted(merged["origins"].items())
    ]
    show_list(rows, ("parameter", "value", "from"), here.format, empty=f"host {name} has no parameters")


def deployments(context: typer.Context, name: Name) -> None:
    """The builds of a host, newest first."""
    here = session(context)
    builds = here.client.every(place("hosts", name, "deployments"))
    show_list(
        builds,
        ("number", "created_at", "method", "progress", "boots", "outcome", "ended_at", "failure"),
        here.format,
    )


def facts(
    context: typer.Context,
    name: Name,
    history: Annotated[bool, typer.Option("--history", help="What changed, and when.")] = False,
) -> None:
    """What a host's machine says it is made of, and where that differs from its hardware profile."""
    here = session(context)
    if history:
        snapshots = here.client.get(place("hosts", name, "hardware", "history"))["items"]
        if here.format is not Format.TABLE:
            show_list(snapshots, (), here.format)
            return
        rows = [
            {"at": s["at"], "until": s["seen_at"][:19].replace("T", " "), "changed": "\n".join(s["text"]) or "first seen"}
            for s in snapshots
        ]  # fmt: skip
        show_list(rows, ("at", "until", "changed"), here.format)
        return
    shown = here.client.get(place("hosts", name, "hardware"))
    if here.format is not Format.TABLE:
        show_one(shown, here.format)
        return
    told = {k: v for k, v in shown["facts"].items() if k != "version"}
    differs = {"differs": "\n".join(shown["differs"])} if shown["profile"] else {}
    show_one({k: shown[k] for k in ("host", "at", "seen_at", "profile")} | differs | told, here.format)


def _at(values: Any, path: str) -> Any:
    """The value at a dotted path, in which a dot of a key is written \\. ."""
    for part in re.split(r"(?<!\\)\.", path):
        values = values[part.replace("\\.", ".").replace("\\\\", "\\")]
    return values


def _took(event: dict[str, Any]) -> str:
    took = event["duration_ms"]
    return "-" if took is None else f"{took} ms" if took < 10_000 else length(took / 1000)


def _what(event: dict[str, Any]) -> str:
    if event["kind"] == "state.changed":
        return f"{event['data'].get('from', '')} -> {event['data'].get('to', '')}"
    return str(event["message"] or event["cause"])
