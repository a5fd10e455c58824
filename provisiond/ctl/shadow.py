"""provisionctl release shadow: a release tried on the whole fleet without serving it, and what came of it."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.syntax import Syntax

from provisiond.ctl.client import place
from provisiond.ctl.common import FAILED, Session, done, given, session
from provisiond.ctl.output import Format, length, show_list, show_one, stderr, stdout

RUNS = "/shadow-runs"
COLUMNS = (
    "number",
    "release",
    "group",
    "state",
    "total",
    "done",
    "unchanged",
    "changed",
    "failing",
    "seconds",
    "created_at",
)
HOST_COLUMNS = ("host", "outcome", "size_before", "size", "milliseconds_before", "milliseconds")
_HEADLINES = {
    "failing": "[bold red]{hosts} would fail[/]",
    "failing-already": "[yellow]{hosts} fail, and would with what is current too[/]",
    "changed": "[bold]{hosts} change[/]",
}


class _OrRun(typer.core.TyperGroup):
    """``shadow 12`` is ``shadow run 12``: what is no command is the release."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Try a release on every host without serving it: 'shadow RELEASE' begins.",
    cls=_OrRun,
    no_args_is_help=True,
)
Number = Annotated[int, typer.Argument(help="The run's number.", min=1)]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", "-w", help="Stay and show the progress and what was found.")
]


@app.command("run")
def run(
    context: typer.Context,
    release: Annotated[str, typer.Argument(help="The release: its number, or the beginning of its digest.")],
    group: Annotated[str | None, typer.Option(help="Only hosts of this group and those below it.")] = None,
    no_validate: Annotated[
        bool, typer.Option("--no-validate", help="Render and compare only: no validators.")
    ] = False,
    boot: Annotated[
        int, typer.Option(min=0, help="Make so many throw-away machines at the end and boot them with it.")
    ] = 0,
    on: Annotated[
        str | None, typer.Option(help="Hypervisor of those; default: where the host is that each is like.")
    ] = None,
    wait: Wait = True,
) -> None:
    """Render it for every host beside what is current, and say what would change and what would fail.

    Ends with 1 where hosts would fail that do not fail already."""
    here = session(context)
    body = given(release=release, group=group, validate_results=not no_validate, boot=boot, on=on)
    begun = here.client.post(RUNS, body)
    if not wait:
        _told(here, begun)
        return
    _follow(here, begun["number"])


@app.command("list")
def list_runs(context: typer.Context) -> None:
    """List shadow runs, the newest first."""
    here = session(context)
    show_list(here.client.get(RUNS)["items"], COLUMNS, here.format, empty="there was no shadow run yet")


@app.command("show")
def show(
    context: typer.Context,
    number: Number,
    hosts: Annotated[bool, typer.Option("--hosts", help="List its hosts instead.")] = False,
    outcome: Annotated[
        str | None, typer.Option(help="With --hosts: only unchanged, changed or failing ones.")
    ] = None,
    difference: Annotated[
        str | None, typer.Option(help="With --hosts: only those with this difference (its digest).")
    ] = None,
) -> None:
    """What a run found: differences that hosts have in common, and why hosts would fail."""
    here = session(context)
    if hosts:
        query = given(outcome=outcome, difference=difference)
        items = here.client.every(f"{RUNS}{place(str(number))}/hosts", **query)
        show_list(items, HOST_COLUMNS, here.format, empty="no such hosts")
        return
    _report(here, number)


@app.command("cancel")
def cancel(context: typer.Context, number: Number) -> None:
    """End a run; what it has found stays."""
    here = session(context)
    ended = here.client.post(f"{RUNS}{place(str(number))}/cancel", {})
    done(f"shadow run {number} is cancelled after {ended['done']} of {ended['total']} hosts")


@app.command("resume")
def resume(context: typer.Context, number: Number, wait: Wait = True) -> None:
    """Go on with a run that was cancelled or failed."""
    here = session(context)
    begun = here.client.post(f"{RUNS}{place(str(number))}/resume", {})
    if not wait:
        _told(here, begun)
        return
    _follow(here, number)


def _told(here: Session, run: dict[str, Any]) -> None:
    if here.format is Format.TABLE:
        done(
            f"shadow run {run['number']} has begun; 'provisionctl release shadow show {run['number']}' shows it"
        )
    else:
        show_one(run, here.format)


def _follow(here: Session, number: int) -> None:
    """Show a bar until the run has ended, then what it found."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[found]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    path = f"{RUNS}{place(str(number))}/progress"
    with Progress(*columns, console=stderr(), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"shadow run {number}", total=None, found="")
        while True:
            run = here.client.get(path)
            found = f"{run['changed']} changed, {run['failing']} failing"
            booting = run["boot"] and run["total"] and run["done"] >= run["total"]
            what = f"shadow run {number}" + (": machines boot" if booting else "")
            progress.update(
                task, description=what, completed=run["done"], total=run["total"] or None, found=found
            )
            if run["state"] != "running":
                break
            time.sleep(0.3)
    view = _report(here, number)
    failing = any(d["kind"] == "failing" for d in view["differences"])
    if view["state"] != "done" or failing or any(b["state"] != "active" for b in view["boots"]):
        raise typer.Exit(FAILED)


def _report(here: Session, number: int) -> dict[str, Any]:
    view: dict[str, Any] = here.client.get(RUNS + place(str(number)))
    if here.format is not Format.TABLE:
        show_one(view, here.format)
        return view
    out = stdout()
    where = f"group {view['group']}" if view["group"] else "all hosts"
    out.print(
        f"shadow run {number} of release #{view['release']} ({view['release_digest'][:12]}) on {escape(where)}: [bold]{view['state']}[/]"
        f" after {length(view['seconds'])}{': ' + escape(view['failure']) if view['failure'] else ''}"
    )
    out.print(
        f"{view['done']} of {view['total']} hosts: {view['unchanged']} unchanged, {view['changed']} changed, {view['failing']} failing"
    )
    work = view["work"]
    out.print(
        f"rendered {_size(work['size'])} (now {_size(work['size_before'])}), {work['mean_milliseconds']:.2f} ms a host "
        f"(now {work['mean_milliseconds_before']:.2f} ms)"
    )
    if view["validate_results"]:
        out.print(f"validated {view['checked']} renderings, {view['validated']} of them told apart")
        for sentence, count in view["not_validated"].items():
            out.print(f"[yellow]not validated[/]: {count} renderings: {escape(sentence)}")
    else:
        out.print("[yellow]not validated[/]: --no-validate was said")
    for difference in view["differences"]:
        _difference(out, difference)
    if view["more_differences"]:
        out.print(
            f"\n{view['more_differences']} more differences, each of fewer hosts, are in the API's answer page by page"
        )
    for boot in view["boots"]:
        _boot(out, boot)
    return view


def _difference(out: Console, difference: dict[str, Any]) -> None:
    hosts = f"{difference['hosts']} host{'s' if difference['hosts'] != 1 else ''}"
    more = ", ..." if difference["hosts"] > len(difference["examples"]) else ""
    headline = _HEADLINES[difference["kind"]].format(hosts=hosts)
    out.print(
        f"\n{headline} {escape(difference['template'])} [dim]{difference['digest'][:12]}[/] {escape(', '.join(difference['examples']))}{more}"
    )
    if difference["kind"] == "changed" and out.is_terminal:
        out.print(Syntax(difference["text"], "diff", background_color="default"))
    else:
        out.print(difference["text"], markup=False)


def _boot(out: Console, boot: dict[str, Any]) -> None:
    good = boot["state"] == "active"
    out.print(
        f"\n[{'green' if good else 'bold red'}]booted[/] {escape(boot['host'])}, made like {escape(boot['like'])}: {boot['state']} "
        f"{escape(boot['step'])} {boot['progress']} % {escape(boot['progress_text'])} after {length(boot['seconds'])}"
    )
    if boot["failure"]:
        out.print(boot["failure"], markup=False)
    if boot["log_tail"]:
        out.print(boot["log_tail"], markup=False)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
