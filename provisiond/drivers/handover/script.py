"""The simplest handover: a script of the operator's, run on the machine by SSH.

Settings (host parameter ``script``): ``path`` of a file on the daemon's machine, or ``text``; ``interpreter`` (``/bin/sh -s``). The
script goes in by standard input, so nothing of it is in any argument list. For the default interpreter these are set:
PROVISIOND_HOST, PROVISIOND_GROUPS (from the root, blanks between) and PROVISIOND_PARAMETERS (JSON).
"""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
from pathlib import Path
from typing import Any

from provisiond.drivers.handover import HandoverTarget
from provisiond.drivers.handover.job import Ended, Job
from provisiond.drivers.handover.processes import dying_with_parent, environment
from provisiond.drivers.handover.runs import Supervised
from provisiond.drivers.handover.source import allowed
from provisiond.errors import DriverRejected

SHELL = "/bin/sh -s"
MAX_SCRIPT = 1 << 20
_PID = b"provisiond-pid "


class ScriptHandover(Supervised):
    """The driver."""

    driver = "script"

    def check(self, target: HandoverTarget) -> None:
        settings = target.settings
        unknown = set(settings) - {"path", "text", "interpreter"}
        if (
            unknown
            or ("path" in settings) == ("text" in settings)
            or not all(isinstance(v, str) for v in settings.values())
        ):
            raise DriverRejected(
                f"host {target.host}: parameter 'script' must be a mapping with 'path' or 'text', and maybe 'interpreter', all texts"
            )
        if "path" in settings:
            path = Path(settings["path"])
            allowed(str(path.resolve()), self.sources, target.host)
            if not path.is_absolute() or not path.is_file() or path.stat().st_size > MAX_SCRIPT:
                raise DriverRejected(
                    f"host {target.host}: script.path {path} must be the whole path of a file of at most 1 MiB"
                )


def carry_out(job: Job) -> Ended:
    """The supervisor's part: run it, pass its output on, end it on both sides when told to."""
    settings = job.target.settings
    interpreter = settings.get("interpreter", SHELL)
    text = settings["text"] if "text" in settings else Path(settings["path"]).read_text()
    if interpreter == SHELL:
        text = _variables(job.target) + text
    # sshd makes each command the leader of a session of its own; its pid comes back first, so that all of it can be ended
    remote = f"echo {_PID.decode().strip()} $$; exec {interpreter}"
    process = subprocess.Popen(
        dying_with_parent(job.ssh.command((f"exec /bin/sh -c {shlex.quote(remote)}",))),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(job.run),
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    pid, stopped = _talk(job, process, text.encode())
    if stopped:
        if pid:
            end = job.ssh.command((f"kill -TERM -{pid}; sleep 1; kill -KILL -{pid}",))
            subprocess.run(
                end,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
                env=environment(job.run),
            )
        process.kill()
    status = process.wait()
    if stopped:
        return Ended(False, "the script was ended")
    if status == 255:
        return Ended(
            False,
            "the SSH connection broke while the script ran (or the script itself ended with status 255)",
        )
    stats = {job.target.host: {"ok": int(status == 0), "failures": int(status != 0), "status": status}}
    return Ended(status == 0, "" if status == 0 else f"the script ended with status {status}", stats)


def _talk(job: Job, process: subprocess.Popen[bytes], data: bytes) -> tuple[int, bool]:
    """Feed the script in and pass its output on; (pid on the machine or 0, whether it was stopped before its end)."""
    assert process.stdin is not None and process.stdout is not None
    out, into = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(into, False)
    head, pid, open_in = b"", 0, True
    while not job.stop():
        readable, writable, _ = select.select([out], [into] if open_in else [], [], 0.2)
        if writable:
            try:
                data = data[os.write(into, data[:65536]) :]
            except BrokenPipeError:
                data = b""
            if not data:
                process.stdin.close()
                open_in = False
        if readable:
            chunk = os.read(out, 65536)
            if not chunk:
                return pid, False
            if not pid:
                head += chunk
                if head.startswith(_PID) and b"\n" in head:
                    first, _, chunk = head.partition(b"\n")
                    pid = int(first.split()[1])
                elif len(head) < len(_PID) + 12 and b"\n" not in head:
                    continue
                else:
                    pid, chunk = -1, head
            job.say(chunk)
    return max(pid, 0), True


def _variables(target: HandoverTarget) -> str:
    values: dict[str, Any] = {
        "PROVISIOND_HOST": target.host,
        "PROVISIOND_GROUPS": " ".join(target.groups),
        "PROVISIOND_PARAMETERS": json.dumps(
            {k: v for k, v in target.parameters.items() if k not in {"script", "ansible"}}
        ),
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
