"""Hardware tests: how the agent runs them, and each shipped script for real with small sizes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import checks
from ramdisk_agent.client import Client
from ramdisk_agent.log import LOG
from ramdisk_agent.work import Failed, Stopped, Work

CHECKS = Path(__file__).parents[3] / "pxe/ramdisk/checks"


class Door(Client):
    """A daemon that serves scripts and remembers results."""

    def __init__(self, scripts: dict[str, bytes]) -> None:
        super().__init__("http://127.0.0.1:9")
        self.scripts, self.results = scripts, []  # type: tuple[dict[str, bytes], list[dict[str, Any]]]
        self.stop_at = 10**9
        self.reports = 0

    def fetch(self, url: str, idle: Any = None) -> bytes:
        return self.scripts[url.removeprefix("agent/test/")]

    def test(self, result: dict[str, Any]) -> None:
        self.results.append(result)

    def report(self, id: str, percent: int, text: str, done: int, total: int) -> None:
        self.reports += 1
        if self.reports >= self.stop_at:
            raise Stopped("an operator cancelled it")


def sh(body: str, header: str = "") -> bytes:
    return f"#!/bin/sh\n# provisiond: about=a test{header}\n{body}\n".encode()


def started(
    tmp_path: Path, scripts: dict[str, bytes], timeout: float = 60, **more: Any
) -> tuple[dict[str, str], Door]:
    door = Door(scripts)
    tests = [
        {"name": n, "timeout": timeout, "sha256": hashlib.sha256(s).hexdigest()} for n, s in scripts.items()
    ]
    return checks.run_tests(Work({"id": "t-1"}, door), tests, directory=str(tmp_path / "run"), **more), door


def test_verdicts_and_output(tmp_path: Path) -> None:
    """0 passes, 2 is degraded, all else fails; both streams are kept in their order, and each result is posted with its task."""
    scripts = {
        "good": sh("echo one; echo two >&2; exit 0"),
        "so-so": sh("echo hot; exit 2"),
        "bad": sh("exit 1"),
        "odd": sh("exit 77"),
        "killed": sh("kill -9 $$"),
        "no-program": b"#!/no/such/interpreter\n",
    }
    verdicts, door = started(tmp_path, scripts)
    assert list(verdicts.values()) == ["pass", "degraded", "fail", "fail", "fail", "fail"]
    results = {r["name"]: r for r in door.results}
    assert results["good"]["output"] == "one\ntwo" and results["good"]["id"] == "t-1"
    assert "exit code 77" in results["odd"]["output"] and "signal 9" in results["killed"]["output"]
    assert "could not be started" in results["no-program"]["output"]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_test_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    """Everything that it started in its group ends, and what it said until then is kept."""
    pid = tmp_path / "pid"
    began = time.monotonic()
    verdicts, door = started(
        tmp_path, {"slow": sh(f"echo begun; sleep 600 & echo $! >{pid}; wait")}, timeout=2
    )
    assert verdicts == {"slow": "fail"} and time.monotonic() - began < 60
    assert "begun" in door.results[0]["output"] and "not through within 2 s" in door.results[0]["output"]
    until = time.monotonic() + 30
    while Path(f"/proc/{pid.read_text().strip()}").exists() and time.monotonic() < until:
        state = Path(f"/proc/{pid.read_text().strip()}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_a_test_ends_when_the_daemon_calls_it_off(tmp_path: Path) -> None:
    """Stopped comes out of a running test, which is ended first."""
    door = Door({"slow": sh("sleep 600")})
    door.stop_at = 3
    test = {"name": "slow", "timeout": 600, "sha256": hashlib.sha256(door.scripts["slow"]).hexdigest()}
    with pytest.raises(Stopped):
        checks.run_tests(Work({"id": "t"}, door), [test], directory=str(tmp_path))
    assert door.results == [] and list(tmp_path.iterdir()) == []


def test_output_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    """A talkative test has the last 64 KiB of what it said."""
    _, door = started(tmp_path, {"loud": sh("yes line | head -n 200000; echo the end")})
    output = door.results[0]["output"]
    assert output.endswith("the end") and len(output.encode()) <= checks.KEEP


def test_secrets_stay_out_of_output(tmp_path: Path) -> None:
    """A test that prints its environment does not tell the secret of the session."""
    door_secret = "s3cret-of-this-session"
    LOG.hide(door_secret)

    class Proven(Door):
        def headers_for(self, url: str) -> dict[str, str]:
            return {"Authorization": f"Bearer s:{door_secret}"}

    door = Proven({"env": sh("env; echo TEST $PROVISIOND_URL")})
    test = {"name": "env", "timeout": 30, "sha256": hashlib.sha256(door.scripts["env"]).hexdigest()}
    checks.run_tests(Work({"id": "t"}, door), [test], directory=str(tmp_path))
    assert "TEST http://127.0.0.1:9" in door.results[0]["output"]
    assert door_secret not in json.dumps(door.results) and "Bearer s:***" in door.results[0]["output"]


def test_another_script_than_promised_is_not_run(tmp_path: Path) -> None:
    """The digest in the plan must fit."""
    door = Door({"x": sh(f"touch {tmp_path}/ran")})
    with pytest.raises(Failed, match="changed"):
        checks.run_tests(
            Work({"id": "t"}, door),
            [{"name": "x", "timeout": 5, "sha256": "0" * 64}],
            directory=str(tmp_path / "d"),
        )
    assert not (tmp_path / "ran").exists()


def test_what_writes_to_disks_runs_only_with_disks_to_write_to(tmp_path: Path) -> None:
    """An inspection refuses it whatever the plan says; an erasure names the disks."""
    script = {"w": sh("echo on $PROVISIOND_DISKS", ", destructive=yes")}
    with pytest.raises(Failed, match="writes to disks"):
        started(tmp_path, script)
    _, door = started(tmp_path, script, disks=["/dev/a", "/dev/b"])
    assert door.results[0]["output"] == "on /dev/a /dev/b"
    _, door = started(tmp_path, script, disks=[])
    assert door.results[0]["output"] == "on"


# --- the shipped scripts ------------------------------------------------------------------------------------------


def script(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one, as the agent does."""
    return subprocess.run(
        [sys.executable, "-I", str(CHECKS / name)],
        env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_memory() -> None:
    """Patterns over a small part of memory come back."""
    ran = script("memory", PROVISIOND_TEST_MIB="16", PROVISIOND_TIMEOUT="5")
    assert ran.returncode == 0 and "without an error" in ran.stdout, ran
    ran = script("memory", PROVISIOND_TEST_MIB="64", PROVISIOND_TIMEOUT="0.0001")
    assert ran.returncode == 1 and "too little" in ran.stdout, ran


def test_memory_that_forgets_is_found() -> None:
    """A bit that flips between writing and reading is seen, in every pattern."""
    from tests.unit.ramdisk.test_facts_samples import check

    module = check("memory")

    class Forgetful(bytearray):
        def __getitem__(self, where: Any) -> Any:
            read = bytearray(super().__getitem__(where))
            if where.start == module.CHUNK:
                read[100] ^= 4
            return bytes(read)

    with pytest.raises(module.Late):
        module.round_of(bytearray(module.CHUNK), module.CHUNK, 0x55, time.monotonic() - 1)
    for pattern in (None, 0x00, 0x55):
        assert module.round_of(Forgetful(3 * module.CHUNK), 3 * module.CHUNK, pattern) == module.CHUNK
        assert module.round_of(bytearray(2 * module.CHUNK), 2 * module.CHUNK, pattern) is None


def test_cpu_burn() -> None:
    """All processors give the right results; one that does not is told."""
    ran = script("cpu-burn", PROVISIOND_TEST_SECONDS="0.2")
    assert ran.returncode == 0 and "all results were right" in ran.stdout, ran
    from tests.unit.ramdisk.test_facts_samples import check

    module = check("cpu-burn")
    assert module.compute() == module.RIGHT
    module.RIGHT = ("other", 0, "0")
    affinity = os.sched_getaffinity(0)
    try:
        assert module.burn(min(affinity), time.monotonic()) == 1
    finally:
        os.sched_setaffinity(0, affinity)


def test_disk_smart_runs_here() -> None:
    """Whatever disks this machine has, it says something about each."""
    ran = script("disk-smart")
    assert ran.returncode in (0, 2) and "Traceback" not in ran.stderr, ran


@pytest.mark.parametrize(
    ("said", "verdict", "words"),
    [
        ({"smart_status": {"passed": False}}, 1, "it fails"),
        ({"smart_status": {"passed": True}, "nvme_smart_health_information_log": {"media_errors": 2}}, 1, "2 media errors"),
        ({"critical_warning": 4, "percent_used": 3}, 1, "not reliable"),
        ({"critical_warning": 2, "percent_used": 85}, 2, "85 %"),
        ({"smart_status": {"passed": True}, "ata_smart_attributes": {"table": [{"id": 5, "name": "R", "raw": {"value": 8}}]}}, 2, "8 sectors"),
        ({"smart_status": {"passed": True}, "ata_smart_attributes": {"table": [{"id": 197, "name": "P", "raw": {"value": 1}}]}}, 1, "cannot be read"),
        ({"smart_status": {"passed": True}, "scsi_grown_defect_list": 7}, 2, "7 sectors"),
        ({"scsi_error_counter_log": {"read": {"total_uncorrected_errors": 3}}}, 1, "3 errors"),
    ],
)  # fmt: skip
def test_what_disks_admit(said: dict[str, Any], verdict: int, words: str) -> None:
    """Failures that were reported, media errors, worn out, sectors given up."""
    from tests.unit.ramdisk.test_facts_samples import check

    judged = check("disk-smart").judge(json.dumps(said))
    assert judged[0] == verdict and words in "; ".join(judged[1])


def test_disk_read(tmp_path: Path) -> None:
    """A file that stands for a disk is read; one that is not there fails."""
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(1 << 20) * 20)
    ran = script("disk-read", PROVISIOND_DISKS=str(disk), PROVISIOND_TEST_MIB="4", PROVISIOND_TIMEOUT="30")
    assert ran.returncode == 0 and "disk: " in ran.stdout and "MB/s" in ran.stdout, ran
    ran = script("disk-read", PROVISIOND_DISKS=f"{disk} {tmp_path}/gone")
    assert ran.returncode == 1 and "gone: FAIL: No such file" in ran.stdout, ran


def test_a_disk_far_behind_its_like_is_degraded() -> None:
    """Three or more of a model are compared with their median."""
    from tests.unit.ramdisk.test_facts_samples import check

    module = check("disk-read")
    assert module.slow({"a": ("X", 200.0), "b": ("X", 210.0), "c": ("X", 90.0), "d": ("Y", 10.0)}) == ["c"]
    assert module.slow({"a": ("X", 200.0), "c": ("X", 9.0)}) == []


def test_disk_write(tmp_path: Path) -> None:
    """Random data comes back from a file that stands for a disk; nothing is written where no disk is named."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(24 << 20))
    ran = script("disk-write", PROVISIOND_DISKS=str(disk), PROVISIOND_TEST_MIB="12", PROVISIOND_TIMEOUT="60")
    assert ran.returncode == 0 and "all of it right" in ran.stdout, ran
    written = disk.read_bytes()
    assert written[: 4 << 20].count(0) < 1 << 20 and written[-(4 << 20) :].count(0) < 1 << 20
    ran = script("disk-write")
    assert ran.returncode == 0 and "nothing was written" in ran.stdout


def test_a_disk_that_loses_what_is_written_is_found(tmp_path: Path) -> None:
    """A device that takes everything and keeps nothing fails (one that is no disk, /dev/full, too)."""
    from tests.unit.ramdisk.test_facts_samples import check

    module = check("disk-write")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 << 20))
    fsync = os.fsync

    def losing(fd: int) -> None:
        fsync(fd)
        with disk.open("r+b") as file:
            file.seek((4 << 20) + 77)
            file.write(b"\0" * 4096)

    module.os.fsync = losing
    try:
        with pytest.raises(ValueError, match="MiB 4 was read back differently"):
            module.write_and_compare(str(disk), time.monotonic() + 30)
    finally:
        module.os.fsync = fsync
    assert script("disk-write", PROVISIOND_DISKS="/dev/full").returncode == 1


class _Speed(BaseHTTPRequestHandler):
    """GET /agent/speed?mib=N, as the daemon answers it."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        if server.status != 200:
            self.send_error(server.status)
            return
        mib = int(self.path.partition("mib=")[2])
        self.send_response(200)
        self.send_header("Content-Length", str(mib << 20))
        self.end_headers()
        self.wfile.write(bytes((mib << 20) // server.part))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def speed() -> Iterator[Any]:
    """A server that serves zeros."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Speed)
    server.asked, server.status, server.part = [], 200, 1
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_network(speed: Any) -> None:
    """What a download carries is measured, with the proof of the session; less than promised fails, and so does a refusal."""
    url = f"http://127.0.0.1:{speed.server_address[1]}"
    ran = script(
        "network", PROVISIOND_URL=url, PROVISIOND_AUTHORIZATION="Bearer s:x", PROVISIOND_TEST_MIB="4"
    )
    assert ran.returncode in (0, 2) and "Mbit/s from http" in ran.stdout, ran
    assert speed.asked == [("/agent/speed?mib=4", "Bearer s:x")]
    speed.part = 2
    ran = script("network", PROVISIOND_URL=url, PROVISIOND_TEST_MIB="4")
    assert ran.returncode == 1 and "then the connection ended" in ran.stdout, ran
    speed.status = 401
    ran = script("network", PROVISIOND_URL=url, PROVISIOND_TEST_MIB="4")
    assert ran.returncode == 1 and "401" in ran.stdout, ran
    assert script("network").returncode == 1
    assert script("network", PROVISIOND_URL="http://127.0.0.1:1").returncode == 1
