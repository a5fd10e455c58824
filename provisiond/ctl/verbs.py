"""provisionctl host: the verbs of a host's life, with what may be said beside each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import FAILED, Name, Yes, confirm, done, session, usage
from provisiond.ctl.output import Format, show_one
from provisiond.ctl.watch import wait_for

GOAL = {"build": "active", "rebuild": "active", "inspect": "ready", "configure": "active", "release": "ready", "retire": "retired",
        "cancel": "ready", "retry": "active", "approve": "ready", "rescue": "rescue", "unrescue": "active"}  # fmt: skip
_RETRIED = {
    "enrolled": "ready",
    "inspecting": "ready",
    "releasing": "ready",
    "rescue": "rescue",
}  # state -> where a retry leads

Wait = Annotated[
    bool, typer.Option("--wait", "-w", help="Follow it live until it is there; end non-zero if it fails.")
]
Cause = Annotated[str, typer.Option(help="Why; goes into the history.")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="Build it so from now on: image or installer. Default: as it is set."),
]
Erase = Annotated[
    str | None,
    typer.Option("--erase", help="auto, full, quick or none. Default: the host's parameter erase, or the setting erase.default."),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add every verb to ``app``."""
    for verb, text in (
        ("configure", "Hand an active host to configuration management again."),
        ("retry", "Try the failed step again."),
        ("approve", "Take in a machine that was discovered."),
        ("unrescue", "Start a host that is in rescue from its disk again."),
    ):
        app.command(verb, help=text)(_plain(verb))
    for command in (build, rebuild, inspect, rescue, release, retire, cancel):
        app.command()(command)


def build(
    context: typer.Context, name: Name, method: Method = None, cause: Cause = "", wait: Wait = False
) -> None:
    """Put an operating system on a host that is ready (or will be)."""
    act(context, name, "build", _said(cause, method=method), wait=wait)


def rebuild(
    context: typer.Context, name: Name, method: Method = None, cause: Cause = "", wait: Wait = False, yes: Yes = False
) -> None:  # fmt: skip
    """Build a host again from scratch; what is on its disks is lost."""
    confirm(f"Rebuild {name}, losing what is on its disks?", yes)
    act(context, name, "rebuild", _said(cause, method=method), wait=wait)


def inspect(
    context: typer.Context,
    name: Name,
    test: Annotated[list[str] | None, typer.Option("--test", help="A hardware test to run; again for more.")] = None,
    tests: Annotated[str | None, typer.Option("--tests", help="all, or none (as without it).")] = None,
    cause: Cause = "",
    wait: Wait = False,
) -> None:  # fmt: skip
    """Start a host that is ready from the ramdisk, to see what it is made of and to test it."""
    if tests not in (None, "all", "none"):
        raise usage(f"--tests is all or none, not {tests!r}; name single ones with --test")
    if tests == "none" and test:
        raise usage("give either --test NAME, or --tests none")
    names = [*(test or ()), *(["all"] if tests == "all" else [])]
    act(context, name, "inspect", _said(cause, tests=names), wait=wait)


def rescue(
    context: typer.Context,
    name: Name,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="SSH public key, or a file with some; again for more. Without: the host's ssh_authorized_keys only."),
    ] = None,
    cause: Cause = "",
    wait: Wait = False,
) -> None:  # fmt: skip
    """Start a host in service from the ramdisk, with SSH by your key; its disks are left alone."""
    act(context, name, "rescue", _said(cause, keys=_keys(key or [])), wait=wait)


def release(
    context: typer.Context, name: Name, erase: Erase = None, cause: Cause = "", wait: Wait = False, yes: Yes = False
) -> None:  # fmt: skip
    """Take a host out of service and erase its disks; it becomes ready again."""
    confirm(f"Take {name} out of service?", yes)
    act(context, name, "release", _said(cause, erase=erase), wait=wait)


def retire(
    context: typer.Context, name: Name, cause: Cause = "", wait: Wait = False, yes: Yes = False
) -> None:
    """Take a host away for good, with everything that was made for it. Its disks are not erased: release it first."""
    confirm(f"Retire {name} for good?", yes)
    act(context, name, "retire", _said(cause), wait=wait)


def cancel(
    context: typer.Context, name: Name, erase: Erase = None, cause: Cause = "", wait: Wait = False
) -> None:
    """Stop what is being done to a host, and clean up after it. Disks are erased only with --erase."""
    act(context, name, "cancel", _said(cause, erase=erase), wait=wait)


def act(context: typer.Context, name: str, verb: str, body: dict[str, Any], *, wait: bool) -> None:
    """Ask ``verb`` of the host, and follow it if wanted."""
    here = session(context)
    path = place("hosts", name, "actions", verb)
    if not wait:
        host = here.client.post(path, body)
        show_one(host, here.format) if here.format is not Format.TABLE else done(
            f"{verb} asked for {name}: it is {host['state']}"
        )
        return
    goal = GOAL[verb]
    if verb == "retry":
        goal = _RETRIED.get(here.client.get(place("hosts", name))["state"], goal)
    failed = wait_for(here.client, [name], goal, after=None, start=lambda: here.client.post(path, body))
    raise typer.Exit(FAILED if failed else 0)


def _plain(verb: str) -> Callable[..., None]:
    def command(context: typer.Context, name: Name, cause: Cause = "", wait: Wait = False) -> None:
        act(context, name, verb, {"cause": cause}, wait=wait)

    return command


def _said(cause: str, **more: Any) -> dict[str, Any]:
    """The body: what was said beside the verb, as far as anything was."""
    return {"cause": cause, **{name: value for name, value in more.items() if value}}


def _keys(words: list[str]) -> list[str]:
    """Keys as they are given, and those in the files that are named."""
    found: list[str] = []
    for word in words:
        if " " in word.strip():
            found.append(word.strip())
            continue
        try:
            lines = Path(word).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise usage(
                f"--key {word}: neither a key (such as 'ssh-ed25519 AAAA... name') nor a file that can be read: {error}"
            ) from None
        if any("PRIVATE KEY" in line for line in lines):
            raise usage(f"--key {word}: that is a private key; give the file with the public one, {word}.pub")
        found += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return found
