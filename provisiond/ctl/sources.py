"""provisionctl source: where templates come from, directories and git repositories."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from provisiond.ctl.client import ApiProblem, place
from provisiond.ctl.common import Name, done, given, noun, session, usage
from provisiond.ctl.output import Format, show_one

app = noun(
    "source",
    "/template-sources",
    ("name", "kind", "location", "ref", "poll_seconds", "polled_at", "commit", "failure"),
    plural="sources of templates",
)
PATIENCE = 300.0  # seconds

Ref = Annotated[str | None, typer.Option(help="Branch, tag or commit; default: the repository's own branch.")]
Subdirectory = Annotated[str | None, typer.Option(help="Where in it the templates are.")]
Poll = Annotated[str | None, typer.Option(help="Seconds between two looks; '' for none.", metavar="SECONDS")]
Key = Annotated[
    str | None,
    typer.Option("--key-file", help="Deploy key (OpenSSH private key); '' takes it away.", metavar="FILE"),
]
KnownHosts = Annotated[
    Path | None,
    typer.Option(
        "--known-hosts", help="Host keys it may talk to, as ssh-keyscan writes them.", metavar="FILE"
    ),
]
Hook = Annotated[
    str | None,
    typer.Option(
        "--hook-secret-file", help="What webhooks prove themselves with; '' takes it away.", metavar="FILE"
    ),
]


@app.command("create")
def create(
    context: typer.Context,
    name: Name,
    location: Annotated[
        str,
        typer.Argument(
            help="https://, ssh://, user@host:path, file:///path, or a directory on the daemon's machine."
        ),
    ],
    ref: Ref = None,
    subdirectory: Subdirectory = None,
    poll: Poll = None,
    key_file: Key = None,
    known_hosts: KnownHosts = None,
    hook_secret_file: Hook = None,
) -> None:
    """Make a source known. A path is a directory, anything else a git repository."""
    here = session(context)
    kind = "directory" if location.startswith("/") else "git"
    fields = _fields(None, ref, subdirectory, poll, key_file, known_hosts, hook_secret_file)
    body = {"name": name, "kind": kind, "location": location, **fields}
    show_one(here.client.post("/template-sources", body), here.format)


@app.command("update")
def update(
    context: typer.Context,
    name: Name,
    location: Annotated[str | None, typer.Option(help="Where it is.")] = None,
    ref: Ref = None,
    subdirectory: Subdirectory = None,
    poll: Poll = None,
    key_file: Key = None,
    known_hosts: KnownHosts = None,
    hook_secret_file: Hook = None,
) -> None:
    """Change what is given."""
    here = session(context)
    body = _fields(location, ref, subdirectory, poll, key_file, known_hosts, hook_secret_file)
    if not body:
        raise usage("nothing to change: give an option")
    show_one(here.client.patch("/template-sources" + place(name), body), here.format)


@app.command("poll")
def poll(
    context: typer.Context,
    name: Name,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", "-w", help="Stay until it was looked at.")] = True,
) -> None:
    """Look at a source now. What is new there becomes a release, which is not current yet."""
    here = session(context)
    path = "/template-sources" + place(name)
    before = here.client.get(path)["polled_at"]
    found = here.client.post(path + "/poll", {})
    until = time.monotonic() + PATIENCE
    while wait and found["polled_at"] == before:
        if time.monotonic() > until:
            raise ApiProblem(
                504, f"source {name} was not looked at within {PATIENCE:.0f} s; the daemon's log says why", []
            )
        time.sleep(0.2)
        found = here.client.get(path)
    if wait and found["failure"]:
        raise ApiProblem(502, f"source {name}: {found['failure']}", [])
    if here.format is not Format.TABLE:
        show_one(found, here.format)
    elif wait:
        done(f"source {name} was looked at: {(found['commit'] or '')[:12] or 'no commit'}")
    else:
        done(f"source {name} will be looked at")


def _fields(
    location: str | None, ref: str | None, subdirectory: str | None, poll: str | None, key: str | None,
    known_hosts: Path | None, hook: str | None,
) -> dict[str, Any]:  # fmt: skip
    if poll and not poll.isdigit():
        raise usage("--poll is a number of seconds")
    fields: dict[str, Any] = {
        n: v
        for n, v in (("location", location), ("ref", ref), ("subdirectory", subdirectory))
        if v is not None
    }
    fields |= given(poll_seconds=int(poll) if poll else poll, key=_text(key), hook_secret=_text(hook))
    if known_hosts is not None:
        fields["known_hosts"] = _text(str(known_hosts))
    return fields


def _text(file: str | None) -> str | None:
    """The content of a file; None and "" stay."""
    if not file:
        return file
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"cannot read {file}: {error}") from None
