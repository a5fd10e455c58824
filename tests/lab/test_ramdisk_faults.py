"""What goes wrong while the ramdisk works, on machines that boot for real: each ends as docs/ramdisk.md says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lab.kit.daemon import BOOT
from tests.lab.kit.lab import Lab
from tests.lab.kit.machines import BareMetal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture
def metal(lab: Lab, request: pytest.FixtureRequest) -> Iterator[BareMetal]:
    """A blank machine as the test asks for it; at the end its build is called off and it is switched off."""
    options: dict[str, Any] = request.param
    machine = lab.bare_metal(**options)
    yield machine
    lab.daemon.ctl("host", "retire", machine.name, "--yes", check=False)
    machine.power(False)


@pytest.mark.parametrize("metal", [{"name": "tossed"}], indirect=True)
def test_killed_daemon_and_cut_network(lab: Lab, metal: BareMetal) -> None:
    """The daemon dies without a word in the middle of an image, then the network is gone for 30 s: the image is whole, once."""
    lab.create_metal(metal, "--build", "--handover", "none")
    _until(lambda: _progress(lab, metal) > 2, "the image to be written", lab, metal)
    killed_at = _progress(lab, metal)
    lab.daemon.kill()
    time.sleep(3)
    lab.daemon.start()
    metal.unplug_live()
    cut_at = _progress(lab, metal)
    time.sleep(30)
    metal.unplug_live(False)
    _until(lambda: _deployment(lab, metal)["built_at"], "the image to be whole", lab, metal)
    print(
        f"  killed at {killed_at} %, cut at {cut_at} %: {_deployment(lab, metal)['progress_text']}",
        flush=True,
    )
    kinds = [event["kind"] for event in lab.history(metal.name)]
    assert kinds.count("boot.asked") == 1 and kinds.count("callback.built") == 1
    assert "callback.failed" not in kinds
    lab.wait(metal.name, "active")


@pytest.mark.parametrize("metal", [{"name": "tiny", "disk_gib": 1, "memory_mib": 512}], indirect=True)
def test_disk_too_small(lab: Lab, metal: BareMetal) -> None:
    """The failure names the disk and both sizes, and nothing was written. The machine has 512 MiB of memory."""
    lab.create_metal(metal, "--build", "--handover", "none")
    failure = _failure(lab, metal)
    assert "1024 MiB" in failure and "2048" in failure and metal.name in failure, failure
    assert metal.disk.stat().st_size < 1 << 20, "something was written to the disk"


@pytest.mark.parametrize("metal", [{"name": "spoilt"}], indirect=True)
def test_wrong_checksum_then_power_loss(lab: Lab, metal: BareMetal) -> None:
    """An image that changed on the daemon's disk is not taken for built; mended, a power loss in the middle is told and retried."""
    lab.create_metal(metal, "--handover", "none", "--param", "silent_minutes=1")
    lab.wait(metal.name, "ready")
    [raw] = [path for path in (lab.daemon.state / "images").rglob("*.raw") if path.is_file()]
    with _spoilt(raw):
        lab.daemon.ctl("host", "build", metal.name)
        failure = _failure(lab, metal)
        assert "SHA-256" in failure, failure
        assert _deployment(lab, metal)["built_at"] is None

    lab.daemon.ctl("host", "retry", metal.name)
    _until(lambda: _progress(lab, metal) > 2, "the image to be written", lab, metal)
    metal.power(False)
    failure = _failure(lab, metal)
    assert "silent" in failure and f"host retry {metal.name}" in failure, failure
    lab.daemon.ctl("host", "retry", metal.name)
    _until(lambda: _deployment(lab, metal)["built_at"], "the image to be whole", lab, metal)


def test_ticket_of_another_machine(lab: Lab) -> None:
    """A boot ticket is one machine's, once: another one's card, or another one's secret, is refused and told in the history."""
    mine, other = "52:54:00:0b:0b:01", "52:54:00:0b:0b:02"
    lab.daemon.ctl(
        "host", "create", "ticketed", "--group", "web", "--mac", mine, "--handover", "none", "--build"
    )

    def claim(ticket: str, mac: str, secret: str) -> int:
        identity = {"macs": [mac], "serial": None, "uuid": None}
        body = {"ticket": ticket, "secret": secret * 64, "identity": identity, "version": 1}
        return http.post("/agent/claim", json=body).status_code

    with lab.ns.enter():
        http = httpx.Client(base_url=BOOT, timeout=20)
        end, found = time.monotonic() + 60, None
        while found is None:
            assert time.monotonic() < end, lab.story("ticketed")
            script = http.get("/boot/ipxe", params={"mac": mine}).raise_for_status().text
            found = re.search(r"provisiond\.ticket=(\S+)", script)
            time.sleep(0.2)
        assert claim(found[1], other, "b") == 403
        assert claim(found[1], mine, "a") == 200
        assert claim(found[1], mine, "a") == 200, "the same machine, whose answer was lost"
        assert claim(found[1], mine, "b") == 403
        assert claim(found[1][:-1] + ("A" if found[1][-1] != "A" else "B"), mine, "a") == 403
        http.close()
    assert found[1] not in lab.daemon.log()
    assert "agent.ticket_reused" in [event["kind"] for event in lab.history("ticketed")], lab.story(
        "ticketed"
    )
    lab.daemon.ctl("host", "retire", "ticketed", "--yes")


class _spoilt:
    """A file with one byte changed, for the length of a with block."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, (2 << 20) + 700  # in the boot sector of its EFI system partition

    def __enter__(self) -> None:
        self._turn()

    def __exit__(self, *_: object) -> None:
        self._turn()

    def _turn(self) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.at)
            [byte] = file.read(1)
            file.seek(self.at)
            file.write(bytes([byte ^ 0xFF]))


def _deployment(lab: Lab, metal: BareMetal) -> dict[str, Any]:
    deployment: dict[str, Any] = lab.daemon.host(metal.name)["deployment"] or {}
    return deployment


def _progress(lab: Lab, metal: BareMetal) -> int:
    return int(_deployment(lab, metal).get("progress", 0))


def _failure(lab: Lab, metal: BareMetal) -> str:
    """The failure that stands, once there is one."""
    _until(lambda: lab.daemon.host(metal.name)["failure"], "a failure to be recorded", lab, metal)
    failure = str(lab.daemon.host(metal.name)["failure"])
    print(f"  {metal.name}: {failure}", flush=True)
    return failure


def _until(
    condition: Callable[[], Any], what: str, lab: Lab, metal: BareMetal, timeout: float = 300.0
) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:.0f} s for {what}\n{lab.story(metal.name)}")
        time.sleep(0.2)
