"""provisionctl rollout: bring a release to hosts in steps, watch it, and what can be asked of it on the way."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from provisiond.ctl.client import place
from provisiond.ctl.common import FAILED, OK, done, given, session, usage
from provisiond.ctl.output import Format, show_list, show_one, stderr, stdout

app = typer.Typer(help="Rollouts: a release comes to hosts in steps.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(help="Its number.", min=1)]
Reason = Annotated[str, typer.Option(help="Why, for the history.")]
LOOK_SECONDS = 1.0
OVER = {"done": OK, "back": FAILED, "cancelled": FAILED}
STYLES = {"done": "green", "back": "red", "going-back": "red", "paused": "yellow", "waiting": "yellow"}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command("start")
def start(
    context: typer.Context,
    release: Annotated[str, typer.Argument(help="The release: its number, or the beginning of its digest.")],
    group: Annotated[
        str | None, typer.Option(help="Group, with the groups below it; default: all hosts.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Hosts or shares of them, the last one 100%.")] = "1,5%,25%,100%",
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="What must hold to go on: success>=95%, duration<=1.5x, handover>=95%, handover.failed<=0, "
            "'metric:prometheus QUERY <= 0.5', approval; again for more. Default: success>=95%."
        ),
    ] = None,
    window: Annotated[str, typer.Option(help="Least time of a step, such as 90s, 30m, 2h.")] = "30m",
    rebuild: Annotated[
        int, typer.Option(min=0, help="Rebuild hosts of the step, so many at a time; 0: none.")
    ] = 0,
    rebuild_back: Annotated[
        bool,
        typer.Option("--rebuild-back", help="When it goes back, rebuild what was built with the release."),
    ] = False,
    min_builds: Annotated[
        int, typer.Option(min=0, help="Builds that a step must have seen to be judged.")
    ] = 1,
    seed: Annotated[
        str | None, typer.Option(help="Fixes which hosts come first; default: a new order each time.")
    ] = None,
    reason: Reason = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", "-w", help="Stay and watch; end non-zero if it goes back.")
    ] = False,
) -> None:
    """Begin to bring a release to hosts. Every host keeps what it has until it is built anew."""
    here = session(context)
    body = given(
        release=release, group=group, steps=[s.strip() for s in steps.split(",") if s.strip()], gates=gate,
        window_seconds=_seconds(window), rebuild=rebuild, rebuild_back=rebuild_back, min_builds=min_builds, seed=seed,
        reason=reason or None,
    )  # fmt: skip
    made = here.client.post("/rollouts", body, once=True)
    if wait:
        raise typer.Exit(_watch(context, made["number"]))
    if here.format is Format.TABLE:
        done(f"rollout {made['number']} has begun; 'provisionctl rollout watch {made['number']}' follows it")
    show_one(made, here.format)


@app.command("list")
def list_rollouts(
    context: typer.Context,
    active: Annotated[bool, typer.Option("--active", help="Only those that are not over.")] = False,
) -> None:
    """List rollouts, the newest first."""
    here = session(context)
    items = here.client.get("/rollouts", active="true" if active else "false")["items"]
    columns = (
        "number",
        "state",
        "group",
        "release",
        "before",
        "step",
        "actor",
        "created_at",
        "ended_at",
        "why",
    )
    show_list(items, columns, here.format, empty="there are no rollouts yet")


@app.command("show")
def show(context: typer.Context, number: Number) -> None:
    """Show a rollout, with the numbers of this moment."""
    here = session(context)
    show_one(here.client.get(place("rollouts", str(number))), here.format)


@app.command("watch")
def watch(context: typer.Context, number: Number) -> None:
    """Follow a rollout to its end; 0 if the release is current then, 1 if it went back or was cancelled."""
    raise typer.Exit(_watch(context, number))


@app.command("history")
def past(context: typer.Context, number: Number) -> None:
    """What happened to a rollout, line by line."""
    here = session(context)
    lines = here.client.get(place("rollouts", str(number), "history"))["items"]
    show_list(lines, ("at", "kind", "actor", "message"), here.format)


@app.command("report")
def report(context: typer.Context, number: Number) -> None:
    """Why a rollout went back: the gate, the numbers, and what the failing hosts said last."""
    here = session(context)
    found = here.client.get(place("rollouts", str(number), "report"))
    if here.format is not Format.TABLE:
        show_one(found, here.format)
        return
    told, console = found["report"], stdout()
    console.print(
        f"[bold]Rollout {number}[/] of release #{found['release']} went back at step {escape(told['step'])}"
    )
    console.print(f"  [red]{escape(told['why'])}[/]")
    for gate in told["gates"]:
        console.print(f"  gate {escape(gate['gate'])}: {gate['state']}: {escape(gate['why'])}")
    numbers = {name: value for name, value in told["numbers"].items() if value not in (None, {}, [])}
    console.print("  " + escape(", ".join(f"{name} {value}" for name, value in numbers.items())))
    for host in told["hosts"]:
        console.print(
            f"\n[bold]{escape(host['host'])}[/] ({host['state']}, step {host['step'] or '-'}): {escape(host['failure'])}"
        )
        for line in host["log_tail"].splitlines()[-15:]:
            console.print(f"    {escape(line)}", style="dim")
        console.print(f"    {escape(host['links']['history'])}")
    if told["failing"] > len(told["hosts"]):
        console.print(f"... and {told['failing'] - len(told['hosts'])} more")
    console.print(f"\n{escape(told['what_next'])}")


def _verb(name: str, help_text: str) -> None:
    @app.command(name, help=help_text)
    def _act(context: typer.Context, number: Number, reason: Reason = "") -> None:
        here = session(context)
        found = here.client.post(
            place("rollouts", str(number), "actions", name), given(reason=reason or None)
        )
        if here.format is Format.TABLE:
            done(f"rollout {number} is {found['state']}")
        else:
            show_one(found, here.format)


_verb("pause", "Let nothing move until somebody says resume, approve, back or cancel.")
_verb("resume", "Go on after a pause; the step's window begins anew.")
_verb("approve", "Go on although a gate is undecided, or asks for approval.")
_verb("back", "Go back now, with a report.")
_verb("cancel", "Call it off: hosts get what was current before; without report and rebuilds.")


def _watch(context: typer.Context, number: int) -> int:
    here, console = session(context), stderr()
    seen, said = 0, ""
    while True:
        view = here.client.get(place("rollouts", str(number)))
        for line in here.client.get(place("rollouts", str(number), "history"))["items"]:
            if line["id"] > seen:
                seen = line["id"]
                console.print(f"{str(line['at'])[11:19]} {escape(line['message'])}", style=_style(line))
        n = view["numbers"]
        now = f"  {view['state']}, step {view['step']}: " + ", ".join(
            f"{n.get(name, 0)} {name.replace('_', ' ')}"
            for name in ("hosts", "active", "failed", "under_way", "unasked")
            if name in n
        )
        if now != said and view["state"] not in OVER:
            said = now
            console.print(escape(now), style=STYLES.get(view["state"], "dim"))
        if view["state"] in OVER:
            if view["report"]:
                console.print(f"its report: provisionctl rollout report {number}")
            if here.format is not Format.TABLE:
                show_one(view, here.format)
            return OVER[view["state"]]
        sys.stderr.flush()
        time.sleep(LOOK_SECONDS)


def _style(line: dict[str, Any]) -> str:
    kind, state = line["kind"], line["data"].get("state")
    if kind in ("rollout.going-back", "rollout.gone-back", "rollout.report") or state == "failed":
        return "red"
    return (
        "yellow"
        if kind in ("rollout.paused", "rollout.waiting")
        else "green"
        if kind == "rollout.done"
        else "none"
    )


def _seconds(text: str) -> int:
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise usage(f"--window {text!r}: write a time such as 90s, 30m or 2h")
    return round(float(found[1]) * _UNITS[found[2]])
