"""The ramdisk's agent against a server that misbehaves: transfers, calls, and whole lives of the agent as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramdisk_agent import client as client_module
from ramdisk_agent import sources, stream
from ramdisk_agent.__main__ import Agent
from ramdisk_agent.client import Client, Refused
from ramdisk_agent.device import whole
from ramdisk_agent.log import LOG
from ramdisk_agent.work import Failed, Stopped, Work
from tests.integration.agent_world import MIB, Cut, Door, SmallImage, random_image

IMAGE = random_image([(0, 3), (5, 2), (9, 4)], 16)
SECRET = "ab" * 32


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are short here."""
    monkeypatch.setattr(stream, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(client_module, "EVERY", 0.1)
    monkeypatch.setattr(sources, "TICK", 0.1)


@pytest.fixture
def door() -> Iterator[Door]:
    """A server with the small image."""
    LOG._lines.clear()
    with Door(IMAGE) as running:
        yield running


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file that stands for a disk of 20 MiB that was used before."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xee" * (20 * MIB))
    return path


def claimed(door: Door) -> Client:
    """A client with a session."""
    client = Client(door.url)
    client.claim("ticket-of-this-boot", SECRET, {"macs": [], "serial": None, "uuid": None}, 30)
    return client


def write(door: Door, disk: Path, encoding: str = "raw", image: SmallImage = IMAGE, **more: Any) -> Work:
    """The image onto the disk, as the action does it."""
    plan: dict[str, Any] = {
        "id": "d-1",
        "action": "image",
        "image": {**image.plan(door.url, encoding), **more},
    }
    work = Work(plan, claimed(door))
    blocks = stream.read_map(work, plan["image"])
    target = whole(str(disk))
    try:
        stream.forget(work, target.devices[0], blocks.size_mib * MIB)
        stream.write(work, plan["image"], blocks, target)
    finally:
        target.close()
        work.client.quiet()
    return work


def is_written(disk: Path, image: SmallImage = IMAGE) -> bool:
    """The image, and zeros at the disk's end."""
    found = disk.read_bytes()
    return found[: len(image.disk)] == image.disk and found[-MIB:] == bytes(MIB)


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_image_is_written(door: Door, disk: Path, encoding: str) -> None:
    """Used blocks travel, gaps read as zeros, and progress has the bytes."""
    write(door, disk, encoding)
    assert is_written(disk)
    assert [path for path, _ in door.requests] == [f"/image-{encoding}"]


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_broken_connection_goes_on(door: Door, disk: Path, encoding: str) -> None:
    """Only what is missing is asked for again, from a whole piece on."""
    total = len(IMAGE.raw if encoding == "raw" else b"".join(IMAGE.frames))
    door.cuts = [Cut(after=total // 2 + 12345)]
    write(door, disk, encoding)
    assert is_written(disk)
    starts = [int(wanted[6:-1]) for _, wanted in door.requests if wanted]
    sizes = [len(frame) for frame in IMAGE.frames] if encoding == "zstd" else [2 * MIB] * 5
    assert len(starts) == 1 and starts[0] > 0 and starts[0] in [sum(sizes[:i]) for i in range(5)]


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_stalled_connection_is_given_up(
    door: Door, disk: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte for a while: asked again."""
    monkeypatch.setattr(sources, "STALL", 0.5)
    door.cuts = [Cut(after=3 * MIB, stall=True)]
    work = write(door, disk, encoding)
    assert is_written(disk) and "no data for" in work.client.log.text()


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_server_without_ranges(door: Door, disk: Path, encoding: str) -> None:
    """It sends everything again: what is there is skipped."""
    door.cuts = [Cut(after=4 * MIB), Cut(ranges=False)]
    write(door, disk, encoding)
    assert is_written(disk)


def test_errors_and_turns(door: Door, disk: Path) -> None:
    """5xx and 503 with Retry-After pass; the text says that it waits for its turn."""
    door.cuts = [Cut(status=500), Cut(status=503, headers={"Retry-After": "1"}), Cut(status=502)]
    write(door, disk)
    assert is_written(disk)
    assert any("waiting for a turn" in body["text"] for body in door.said("progress"))


def test_restart_of_the_server(door: Door, disk: Path) -> None:
    """The server goes away in the middle, and comes back: the transfer goes on where it was."""
    door.cuts = [Cut(after=5 * MIB, stall=True)]

    def again() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and not any(body["done"] for body in door.said("progress")):
            time.sleep(0.05)
        door.down()
        time.sleep(0.5)
        door.up()

    helper = threading.Thread(target=again)
    helper.start()
    write(door, disk)
    helper.join()
    assert is_written(disk) and any(wanted for _, wanted in door.requests)


def test_image_that_is_gone(door: Door, disk: Path) -> None:
    """404 again and again is a failure that names the URL and what to look at."""
    door.cuts = [Cut(after=5 * MIB), *[Cut(status=404)] * 9]
    with pytest.raises(Failed, match=r"cannot be fetched from .*/image-raw: .*404.*does it have the image"):
        write(door, disk)


def test_silence_ends(door: Door, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image server that never comes back is a failure in the end."""
    monkeypatch.setattr(stream, "PATIENCE", 1.0)
    with pytest.raises(Failed, match=r"broke off after 0 of 9 MiB: .*refused"):
        write(door, disk, url="http://127.0.0.1:1/image")


def test_wrong_digest(door: Door, disk: Path) -> None:
    """Both digests are told."""
    with pytest.raises(Failed, match=r"has SHA-256 [0-9a-f]{64}, the image ffff"):
        write(door, disk, sha256="f" * 64)


def test_disk_that_lies(door: Door, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk counts, not what came over the network."""
    real = os.pwrite

    def lying(fd: int, data: Any, offset: int) -> int:
        return real(fd, bytes(len(data)) if offset >= 9 * MIB else data, offset)

    monkeypatch.setattr(os, "pwrite", lying)
    with pytest.raises(Failed, match="has after writing has SHA-256"):
        write(door, disk)


def test_disk_that_fails(door: Door, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk ends the work at once and names disk and place."""

    def failing(fd: int, data: Any, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(Failed, match=r"writing to .*disk at MiB \d+ failed: Input/output error"):
        write(door, disk)


def test_corrupt_frame(door: Door, disk: Path) -> None:
    """A frame that zstd does not take is asked for again; then it is right."""
    body = bytearray(b"".join(IMAGE.frames))
    body[len(IMAGE.frames[0]) + 1000] ^= 0xFF
    body[len(IMAGE.frames[0]) + 2] ^= 0xFF
    door.corrupt = bytes(body)

    def repair() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and len(door.requests) < 3:
            time.sleep(0.05)
        door.corrupt = None

    helper = threading.Thread(target=repair)
    helper.start()
    work = write(door, disk, "zstd")
    helper.join()
    assert is_written(disk) and "broke off" in work.client.log.text()


def test_changed_image(door: Door, disk: Path) -> None:
    """Another ETag in the middle is another image."""
    door.cuts = [Cut(after=5 * MIB), Cut(headers={"ETag": '"two"'})]
    with pytest.raises(Failed, match="was changed while it was written"):
        write(door, disk)


def test_image_of_another_size(door: Door, disk: Path) -> None:
    """A stream that does not fit the map is told before anything of it is written."""
    door.corrupt = IMAGE.raw + bytes(MIB)
    with pytest.raises(Failed, match=r"has 10485760 bytes, its block map speaks of 9437184"):
        write(door, disk)


def test_map_that_does_not_fit(door: Door, disk: Path) -> None:
    """A plan and a map that contradict each other: nothing is touched."""
    with pytest.raises(Failed, match="speaks of 9 MiB, the plan of 10"):
        write(door, disk, used_mib=10)
    assert disk.read_bytes() == b"\xee" * (20 * MIB)


def test_called_off(door: Door, disk: Path) -> None:
    """go:false ends the work within seconds, also while the transfer stalls."""
    door.cuts = [Cut(after=5 * MIB, stall=True)]
    door.stop = "aborted by alice"
    began = time.monotonic()
    with pytest.raises(Stopped, match="aborted by alice"):
        write(door, disk)
    assert time.monotonic() - began < 20


@given(
    st.lists(st.tuples(st.integers(0, 9 * MIB), st.booleans(), st.sampled_from(["raw", "zstd"])), max_size=6)
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_breaks_same_bytes(door: Door, disk: Path, breaks: list[tuple[int, bool, str]]) -> None:
    """Whatever sequence of connections that end, with and without ranges: the same bytes in the end."""
    disk.write_bytes(b"\xee" * (20 * MIB))
    door.cuts = [Cut(after=after, ranges=ranges) for after, ranges, _ in breaks]
    write(door, disk, breaks[0][2] if breaks else "raw")
    assert is_written(disk)
    door.cuts = []


# --- calls --------------------------------------------------------------------------------------------------


def test_claim_is_repeated_with_the_same_secret(door: Door) -> None:
    """The server is away for a moment: the claim is made all the same, and again by an agent that was started anew."""
    port = door.port
    door.down()
    timer = threading.Timer(0.5, door.up)
    timer.start()
    client = Client(f"http://127.0.0.1:{port}")
    client.claim("t" * 20, SECRET, {"macs": [], "serial": None, "uuid": None}, 30)
    timer.join()
    Client(door.url).claim("t" * 20, SECRET, {"macs": [], "serial": None, "uuid": None}, 30)
    assert client.host == "web01" and len(door.said("claim")) == 2


def test_errors_of_the_daemon_pass(door: Door) -> None:
    """5xx, 408 and 429 are asked again; 409 is an answer."""
    client = claimed(door)
    door.plans = [{"id": "wait", "action": "wait"}]
    door.troubles = [500, 503, 429, 408]
    assert client.plan(30)["action"] == "wait"
    door.troubles = [409]
    with pytest.raises(Refused, match="409 Conflict: trouble"):
        client.post("facts", {})


def test_session_that_is_over(door: Door) -> None:
    """401 to a plan: the agent restarts the machine."""
    client = claimed(door)
    door.session = "s-2"
    assert Agent(client).run() == "reboot"


def test_failure_has_message_and_log(door: Door, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole log goes up before the failure does; secrets are in neither."""
    client = claimed(door)
    door.plans = [
        {
            "id": "d-1",
            "action": "image",
            "image": {**IMAGE.plan(door.url), "map": f"{door.url}/boot/{'Zk9' * 11}/no"},
        },
        {"id": "reboot", "action": "reboot"},
    ]
    client.log.add(f"a secret: {SECRET}")
    assert Agent(client).run() == "reboot"
    [failed], [log] = door.said("failed"), door.said("log")
    assert "404 Not Found" in failed["message"] and f"{door.url}/boot/TOKEN/no" in failed["message"]
    assert "FAILED" in log["text"] and failed["log"] in log["text"]
    assert SECRET not in json.dumps(door.posts[1:]) and "x" * 32 not in json.dumps(door.posts)
    names = [name for name, _ in door.posts if name != "progress"]
    assert names == ["claim", "log", "failed"]


def test_waiting_turns_into_work(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that turns from wait to work is carried out without a restart, and facts are told once on the way."""
    from ramdisk_agent import facts, work

    monkeypatch.setattr(facts, "gather", lambda: {"version": 1})
    monkeypatch.setattr(facts, "stale", lambda: False)
    monkeypatch.setitem(work.ACTIONS, "erase", lambda work: {"disks": 2})
    wait = {"id": "wait", "action": "wait", "seconds": 0.01, "facts": True}
    door.plans = [
        wait,
        wait,
        wait,
        {"id": "t-1", "action": "erase"},
        {"id": "poweroff", "action": "poweroff"},
    ]
    assert Agent(claimed(door)).run() == "poweroff"
    assert door.said("facts") == [{"version": 1}]
    assert door.said("done") == [{"id": "t-1", "result": {"disks": 2}}]


def test_error_of_the_agent_is_a_failure(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody thought of is told with its trace, and the agent lives on."""
    from ramdisk_agent import work

    monkeypatch.setitem(work.ACTIONS, "erase", lambda work: {"disks": 1 // 0})
    door.plans = [
        {"id": "t-1", "action": "erase"},
        {"id": "t-2", "action": "dance"},
        {"id": "r", "action": "reboot"},
    ]
    assert Agent(claimed(door)).run() == "reboot"
    one, two = door.said("failed")
    assert "ZeroDivisionError" in one["message"] and "Traceback" in one["log"]
    assert "does not know the action 'dance'" in two["message"]


def test_progress_is_told_while_nothing_happens(door: Door) -> None:
    """The newest report goes again and again, and none after done."""
    client = claimed(door)
    work = Work({"id": "t-1"}, client)
    work.progress(5, "thinking", 1, 2)
    until = time.monotonic() + 30
    while len(door.said("progress")) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    client.done("t-1", {})
    time.sleep(5 * client_module.EVERY)
    names = [name for name, _ in door.posts]
    assert names.count("progress") >= 3 and names[-2:] == ["log", "done"]
    assert door.said("progress")[-1] == {"id": "t-1", "percent": 5, "text": "thinking", "done": 1, "total": 2}


# --- as a process -------------------------------------------------------------------------------------------

DRIVER = """
import os, sys
sys.path.insert(0, {package!r})
from ramdisk_agent import __main__ as agent, finish, stream, work
from ramdisk_agent.device import whole
def image(work):
    blocks = stream.read_map(work, work.plan["image"])
    target = whole({disk!r})
    stream.forget(work, target.devices[0], blocks.size_mib << 20)
    stream.write(work, work.plan["image"], blocks, target)
    target.close()
    return {{"finish": "kexec"}}
def go(how):
    print("GO", how, flush=True)
    os._exit(0)
work.ACTIONS["image"] = image
finish.go = go
agent.boot_secret.__defaults__ = ({secret!r},)
agent.main({cmdline!r})
"""


def start(tmp_path: Path, door: Door, disk: Path) -> subprocess.Popen[str]:
    """The agent as the ramdisk's init starts it."""
    (tmp_path / "cmdline").write_text(
        f"quiet provisiond.url={door.url} provisiond.ticket=tttttttttttttttttttt BOOTIF=01-52-54-00-AA-BB-CC\n"
    )
    package = Path(__file__).parents[2] / "pxe/ramdisk"
    code = DRIVER.format(
        package=str(package),
        disk=str(disk),
        secret=str(tmp_path / "run/secret"),
        cmdline=str(tmp_path / "cmdline"),
    )
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_agent_begins_anew(tmp_path: Path, door: Door, disk: Path) -> None:
    """kill -9 in the middle of the transfer: the agent that is started next has the same session and the disk is right."""
    door.cuts = [Cut(after=5 * MIB, stall=True)]
    door.plans = [{"id": "d-1", "action": "image", "image": IMAGE.plan(door.url)}]
    with start(tmp_path, door, disk) as first:
        until = time.monotonic() + 60
        while time.monotonic() < until and not any(body["done"] for body in door.said("progress")):
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    assert not door.said("done") and not is_written(disk)
    with start(tmp_path, door, disk) as second:
        out = second.communicate(timeout=60)[0]
    assert out.splitlines()[-1] == "GO kexec" and is_written(disk)
    one, two = door.said("claim")
    assert one["secret"] == two["secret"] and one["identity"]["macs"][0] == "52:54:00:aa:bb:cc"
    assert door.said("done") == [{"id": "d-1", "result": {"finish": "kexec"}}]
    assert oct((tmp_path / "run/secret").stat().st_mode & 0o777) == "0o600"


def test_few_modules(tmp_path: Path) -> None:
    """The agent starts without what costs an emulated processor seconds: tens of modules, not hundreds."""
    package = Path(__file__).parents[2] / "pxe/ramdisk"
    code = f"import sys; sys.path.insert(0, {str(package)!r}); import ramdisk_agent.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "ssl",
        "asyncio",
        "logging",
        "email",
        "http",
        "urllib",
        "pathlib",
        "subprocess",
        "hashlib",
        "ctypes",
    }
    assert heavy & set(loaded) == set() and len(loaded) < 90
