"""Runs hardware tests: scripts of the daemon's, each in a process group of its own, its output kept, ended when its time is over.

A script ends with 0 (pass), 2 (degraded), or anything else (fail). Each result is posted as soon as it is known, so that none
is lost when the machine does not survive the next test.
"""

import functools
import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ramdisk_agent.log import LOG
from ramdisk_agent.work import Failed, Work

if TYPE_CHECKING:
    from ramdisk_agent.client import Client

KEEP = 64 * 1024  # bytes of output that are kept: its end, where a test says what is wrong
GRACE = 5.0  # seconds between asking a test to end and ending it
VERDICTS = {0: "pass", 2: "degraded"}
_DESTRUCTIVE = re.compile(rb"^#+\s*provisiond:.*\bdestructive\s*=\s*yes", re.M)


def run_tests(
    work: Work,
    tests: Sequence[dict[str, Any]],
    disks: Sequence[str] | None = None,
    directory: str = "/run/provisiond/tests",
    percent: tuple[int, int] = (0, 100),
) -> dict[str, str]:
    """Run tests ({name, timeout, sha256}) one after the other and post each result. Gives verdicts by name.

    `disks` are paths that may be written to: None refuses every test that writes to disks. Progress goes from the first to the
    second `percent`. Raises Failed when a script is not the one that was promised, Stopped when the daemon called the work off.
    """
    verdicts = {}
    first, last = percent
    for number, test in enumerate(tests):
        name = test["name"]
        done = first + (last - first) * number // len(tests)
        what = f"hardware test {name} ({number + 1} of {len(tests)})"
        beat = functools.partial(work.progress, done, what)
        beat()
        text = work.client.fetch(f"agent/test/{name}")
        if hashlib.sha256(text).hexdigest() != test["sha256"]:
            raise Failed(
                f"the hardware test {name!r} was changed while this machine was told of it: start the inspection again"
            )
        if disks is None and _DESTRUCTIVE.search(text):
            raise Failed(
                f"the hardware test {name!r} writes to disks and was not run: it belongs to release, not to inspect"
            )
        result = run_test(work.client, name, text, float(test["timeout"]), disks or (), directory, beat)
        work.say(f"hardware test {name}: {result['verdict']} after {result['seconds']:.0f} s")
        work.client.test({"id": work.plan["id"], "name": name, **result})
        verdicts[name] = result["verdict"]
    return verdicts


def run_test(
    client: "Client",
    name: str,
    text: bytes,
    timeout: float,
    disks: Sequence[str],
    directory: str,
    beat: Callable[[], None],
) -> dict[str, Any]:
    """{"verdict", "output", "seconds"} of one script. Ended with everything it started when its time is over.

    `beat` is called every second; what it raises ends the test too.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{directory}/{name}"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "wb") as file:
        file.write(text)
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "LC_ALL": "C.UTF-8",
        "PROVISIOND_URL": client.url,
        "PROVISIOND_AUTHORIZATION": client.headers_for(f"{client.url}/").get("Authorization", ""),
        "PROVISIOND_TIMEOUT": f"{timeout:g}",
        **({"PROVISIOND_DISKS": " ".join(disks)} if disks else {}),
        **{k: v for k, v in os.environ.items() if k.startswith("PROVISIOND_TEST_")},
    }
    began = time.monotonic()
    try:
        test = subprocess.Popen(
            [path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,
        )
    except OSError as error:
        os.unlink(path)
        return _result("fail", f"the test could not be started: {error.strerror}: {error.filename}", began)
    output = _Output(test)
    try:
        over = _wait(test, began + timeout, beat)
    finally:
        _end(test)
        os.unlink(path)
    if over:
        return _result("fail", output.text() + f"\nended: not through within {timeout:g} s", began)
    code = test.returncode
    verdict = VERDICTS.get(code, "fail")
    said = (
        f"\nended by signal {-code}"
        if code < 0
        else ""
        if code in (0, 1, 2)
        else f"\nended with exit code {code}"
    )
    return _result(verdict, output.text() + said, began)


class _Output(threading.Thread):
    """Reads what a test says and keeps the end of it."""

    def __init__(self, test: "subprocess.Popen[bytes]") -> None:
        super().__init__(daemon=True)
        assert test.stdout is not None
        self._stream, self._kept, self._cut = test.stdout, b"", False
        self.start()

    def run(self) -> None:
        while data := os.read(self._stream.fileno(), 65536):
            self._cut |= len(self._kept) + len(data) > KEEP
            self._kept = (self._kept + data)[-KEEP:]

    def text(self) -> str:
        self.join(GRACE)  # a child that left the group may hold the pipe open
        said = self._kept.decode(errors="replace")
        return "[...] " + said if self._cut else said


def _wait(test: "subprocess.Popen[bytes]", until: float, beat: Callable[[], None]) -> bool:
    """Wait for a test. True: its time is over."""
    while True:
        try:
            test.wait(min(1.0, max(0.0, until - time.monotonic())))
            return False
        except subprocess.TimeoutExpired:
            if time.monotonic() >= until:
                return True
            beat()


def _end(test: "subprocess.Popen[bytes]") -> None:
    """End whatever of the test's process group still runs."""
    for way, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(test.pid, way)
        except ProcessLookupError:
            break
        try:
            test.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    test.poll()


def _result(verdict: str, output: str, began: float) -> dict[str, Any]:
    """The end of the output in at most KEEP bytes, without secrets and control characters that no database keeps."""
    text = LOG.cleaned(output).replace("\x00", "").strip()
    text = text.encode(errors="replace")[-KEEP:].decode(errors="ignore")
    return {"verdict": verdict, "output": text, "seconds": round(time.monotonic() - began, 1)}
