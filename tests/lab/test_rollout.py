"""A rollout with a deliberately broken release, on virtual machines that boot for real.

It stops at its first step, goes back, leaves the other machine untouched, and opens one report with what the machine said.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from provisiond.templating.catalogue import shipped_directory
from tests.lab.kit.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

NAMES = ("canary1", "canary2")
KINDS = (
    "cloud-init",
    "fixtures",
    "grub",
    "ipxe",
    "pxelinux",
    "snippets",
)  # all that a machine made from an image is served


def test_a_broken_release_stops_at_its_first_step(lab: Lab, tmp_path: Path) -> None:
    """Two machines in service on a good release; the script of the broken one's first boot ends with 1."""
    begun = time.monotonic()
    for name in NAMES:
        lab.daemon.ctl("host", "create", name, "--group", "web", "--on", "hv1", "--build")
    before = {name: lab.wait(name, "active") for name in NAMES}
    boots = {name: _boot_id(lab, before[name]) for name in NAMES}
    _say(begun, "two machines are in service")
    good = json.loads(lab.daemon.ctl("-o", "json", "release", "show"))["number"]

    lab.daemon.ctl(
        "release", "import", str(_broken(tmp_path)), "--message", "does not start", "--force", timeout=200
    )
    bad = json.loads(lab.daemon.ctl("-o", "json", "release", "list"))[0]["number"]
    assert bad != good
    _say(begun, "the broken release is imported")
    lab.daemon.ctl("rollout", "start", str(bad), "--group", "web", "--steps", "1,100%", "--gate", "success>=95%", "--window", "10m",
                   "--rebuild", "1")  # fmt: skip
    rollout = _until_over(lab, 1)
    _say(begun, f"the rollout is {rollout['state']}: {rollout['why']}")

    assert rollout["state"] == "back" and rollout["step"] == "1 (1 of 2)"
    assert "success>=95% failed: 0 of 1 builds came into service, 1 failed" in rollout["why"]
    [failing] = rollout["failing"]
    [other] = set(NAMES) - {failing}
    host = lab.daemon.host(failing)
    assert host["state"] != "active" and "first_boot_script ended with status" in host["failure"]
    untouched = lab.daemon.host(other)
    assert (
        untouched["state"] == "active" and untouched["deployment"]["id"] == before[other]["deployment"]["id"]
    )
    assert _boot_id(lab, untouched) == boots[other], "the other machine was started again"

    events = lab.daemon.api("GET", "/rollouts/1/history")["items"]
    kinds = [event["kind"] for event in events]
    assert (
        kinds.count("rollout.report") == 1
        and kinds.count("rollout.step") == 1
        and "rollout.done" not in kinds
    )
    [reported] = lab.daemon.api("GET", "/rollouts/1/report")["report"]["hosts"]
    assert reported["host"] == failing and "this release is broken" in reported["log_tail"]
    shown = lab.daemon.ctl("rollout", "report", "1")
    assert failing in shown and "first_boot_script ended with status" in shown
    assert json.loads(lab.daemon.ctl("-o", "json", "release", "show"))["number"] == good
    _say(begun, "end")


def _broken(tmp_path: Path) -> Path:
    """The shipped templates, as far as an image's machine needs them, with a script at the first boot that fails."""
    directory = tmp_path / "templates"
    for kind in KINDS:
        shutil.copytree(shipped_directory() / kind, directory / kind)
    path = directory / "cloud-init" / "user-data.j2"
    text = path.read_text()
    line = "first_boot_script: {type: string, default: null"
    assert line in text
    path.write_text(
        text.replace(
            line,
            r'first_boot_script: {type: string, default: "#!/bin/sh\necho this release is broken >&2\nexit 1\n"',
        )
    )
    return directory


def _until_over(lab: Lab, number: int, timeout: float = 420.0) -> dict[str, Any]:
    end = time.monotonic() + timeout
    while True:
        rollout: dict[str, Any] = lab.daemon.api("GET", f"/rollouts/{number}")
        if rollout["state"] in ("done", "back", "cancelled"):
            return rollout
        assert time.monotonic() < end, (
            f"rollout {number} is {rollout['state']}: {rollout}\n{lab.daemon.log()[-3000:]}"
        )
        time.sleep(0.5)


def _boot_id(lab: Lab, host: dict[str, Any]) -> str:
    return lab.ssh(host["interfaces"][0]["ip"], "cat /proc/sys/kernel/random/boot_id")


def _say(begun: float, what: str) -> None:
    print(f"  {time.monotonic() - begun:6.1f} s  {what}", flush=True)
