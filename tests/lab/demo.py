"""`make demo`: the whole thing on this machine, and two machines brought to service while you look on.

    python -m tests.lab.demo          start (what an earlier demo left is removed first), and leave it running
    python -m tests.lab.demo clean    end it: no process, namespace, mount or disk stays

Everything happens in the network namespace provisiond-demo, which has no way outside, and below /var/lib/provisiond-demo.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.lab.kit.lab import Lab
from tests.lab.kit.libvirtd import Libvirtd, domain_type
from tests.lab.kit.netns import RUN, Netns, end, reap

ROOT = Path("/var/lib/provisiond-demo")
NAME = "provisiond-demo"
WAY = ("enrolled", "inspecting", "ready", "building", "provisioned", "configuring", "active")
QUIET = {
    "step.started",
    "callback.progress",
    "handover.output",
}  # shown by the bars, or too much for a screen
PATIENCE = 1200.0  # seconds for both machines; an emulated one takes two to three minutes

console = Console(highlight=False)


@dataclass
class Follower:
    """One host and its bar."""

    name: str
    bar: Any
    seen: int = 0
    step: str = ""
    failure: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)


def main(argv: list[str]) -> int:
    if os.geteuid() != 0:
        console.print("[red]the lab makes network namespaces and virtual machines: run it as root[/]")
        return 1
    clean(loud=argv == ["clean"])
    if argv == ["clean"]:
        return 0
    started = time.monotonic()
    lab = Lab(ROOT, NAME)
    try:
        _bring_up(lab)
        followers = _create(lab)
        failed = _follow(lab, followers)
    except BaseException:
        console.print(
            "[red]the demo broke off; what runs is left for you to look at, 'make clean-lab' removes it[/]"
        )
        raise
    _tell(lab, time.monotonic() - started)
    return 1 if failed else 0


def clean(*, loud: bool) -> None:
    """End the demo, if there is one, and what killed test runs left."""
    namespace = Netns.attach(NAME)
    found = namespace.exists or ROOT.exists()
    pid_file = ROOT / "daemon/provisiond.pid"
    with contextlib.suppress(OSError, ValueError):  # the daemon first, as an operator stops it
        pid = int(pid_file.read_text())
        if pid in namespace.pids():
            end(lambda: [pid] if pid in namespace.pids() else [], patience=30)
    Libvirtd.attach(ROOT / "lv").stop()
    namespace.down()
    shutil.rmtree(ROOT, ignore_errors=True)
    left = reap()
    for path in Path("/tmp").glob("pvlab-*"):  # what test runs that were killed left
        maker = re.fullmatch(r"pvlab-(\d+)-\w+", path.name)
        if maker and not Path(f"/proc/{maker[1]}").exists():
            Libvirtd.attach(path / "lv").stop()
            shutil.rmtree(path, ignore_errors=True)
    if RUN.exists() and not any(RUN.iterdir()):  # `ip netns` mounts it over itself for the first namespace
        subprocess.run(["umount", RUN], capture_output=True, check=False)
    if loud:
        console.print(
            "the demo is gone" if found else "no demo was there", *[f"; removed {name}" for name in left]
        )


def _bring_up(lab: Lab) -> None:
    """The lab's own parts, each a line when it is done."""
    console.rule("[bold]The lab")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        last = [time.monotonic(), ""]

        def say(text: str) -> None:
            now = time.monotonic()
            if last[1]:
                progress.console.print(
                    f"  [green]✓[/] [dim]{now - float(last[0]):5.1f} s[/] {escape(str(last[1]))}",
                    no_wrap=True,
                    overflow="ellipsis",
                )
            last[:] = [now, text]
            progress.update(task, description=escape(text))

        lab.up(say)
        machine = lab.bare_metal("metal1")
        say(f"a blank machine {machine.mac} behind a BMC")
        say("")
    if domain_type() == "qemu":
        console.print(
            "  KVM does not work here: processors are emulated, and everything takes some ten times longer."
        )


def _create(lab: Lab) -> list[Follower]:
    """Two hosts: a physical machine by IPMI and PXE, and a virtual one on the hypervisor."""
    console.rule("[bold]Two machines into service")
    machine = lab.metal[0]
    bmc = lab.bmcs[machine.name]
    console.print(
        f"  $ provisionctl host create metal1 --group web --mac {machine.mac} --bmc ipmi://admin@{bmc.address}:{bmc.port} --build"
    )
    lab.create_metal(machine, "--build")
    console.print("  $ provisionctl host create vm1 --group web --on hv1 --build")
    lab.daemon.ctl("host", "create", "vm1", "--group", "web", "--on", "hv1", "--build")
    return [Follower(name, None) for name in ("metal1", "vm1")]


def _follow(lab: Lab, followers: list[Follower]) -> bool:
    """Until each is in service or has failed; whether one failed."""
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("[bold]{task.description:<7}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[where]}"),
    )
    progress = Progress(*columns, console=console)
    for follower in followers:
        follower.bar = progress.add_task(follower.name, total=100.0, where="")
    until = time.monotonic() + PATIENCE
    waiting = list(followers)
    with Live(progress, console=console, refresh_per_second=8):
        while waiting and time.monotonic() < until:
            for follower in list(waiting):
                host = lab.daemon.host(follower.name)
                for event in lab.history(follower.name, after=follower.seen):
                    follower.seen = event["id"]
                    _show(progress.console, event)
                _move(progress, follower, host)
                if host["failure"] and not host["retry_at"]:
                    follower.failure = host["failure"]
                    progress.update(follower.bar, where=f"[red]{escape(host['failure'])}")
                if host["state"] == "active" or follower.failure:
                    waiting.remove(follower)
            time.sleep(0.5)
    for follower in followers:
        if follower in waiting or follower.failure:
            why = follower.failure or f"it is not in service after {PATIENCE / 60:.0f} minutes"
            console.print(f"[red]{follower.name}: {escape(why)}[/]\n{escape(lab.story(follower.name))}")
    return bool(waiting) or any(follower.failure for follower in followers)


def _show(screen: Console, event: dict[str, Any]) -> None:
    if event["kind"] in QUIET:
        return
    at = datetime.fromisoformat(event["at"]).astimezone().strftime("%H:%M:%S")
    text = event["message"] or event["cause"]
    if event["kind"] == "state.changed":
        text = f"{event['data'].get('from', '')} -> [bold]{event['data'].get('to', '')}[/]"
    else:
        text = escape(text.splitlines()[0] if text else "")
    took = f" [dim]({event['duration_ms'] / 1000:.1f} s)[/]" if event["duration_ms"] else ""
    style = "red" if "fail" in event["kind"] else "cyan" if event["kind"].startswith("callback") else "white"
    screen.print(
        f"  [dim]{at}[/] {event['host']:<7} [{style}]{event['kind']:<18}[/] {event['step']:<10} {text}{took}",
        no_wrap=True,
        overflow="ellipsis",
    )


def _move(progress: Progress, follower: Follower, host: dict[str, Any]) -> None:
    """How far it is: the states behind it, and what the machine itself tells while it is built."""
    state = host["state"]
    at = WAY.index(state) if state in WAY else 0
    build = host["deployment"] or {}
    inside = build.get("progress", 0) / 100 if state == "building" else 0.0
    # a build is most of the way
    begin = {
        "enrolled": 0,
        "inspecting": 2,
        "ready": 4,
        "building": 5,
        "provisioned": 55,
        "configuring": 85,
        "active": 100,
    }
    share = begin[WAY[at]] + inside * 50
    where = (
        state
        if state == "active"
        else f"{state} {host['step']} {build.get('progress_text', '') if inside else ''}"
    )
    progress.update(follower.bar, completed=share, where=where.strip())


def _tell(lab: Lab, seconds: float) -> None:
    """How to look around, and how to stop."""
    key = lab.daemon.state / "ssh/id_ed25519"
    address = lab.daemon.host("metal1")["interfaces"][0]["ip"]
    console.rule(f"[bold]{seconds / 60:.1f} minutes")
    console.print(
        f"""\
Everything runs on. Look around:
  scripts/demo-ctl host list                    provisionctl, inside the demo's network
  scripts/demo-ctl host history metal1          every step, with its time
  scripts/demo-ctl host console vm1             what its serial port said
  scripts/demo-ctl host rebuild vm1 --wait      once more, before your eyes
  ip netns exec {NAME} ssh -i {key} root@{address}
  {lab.daemon.log_file}             the daemon's log
Stop and remove it all:
  make clean-lab""",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
