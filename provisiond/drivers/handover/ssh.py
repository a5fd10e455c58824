"""SSH to a machine whose host keys are known from itself: never asked, never learnt on the way, never skipped."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisiond.drivers.handover import HandoverTarget
from provisiond.drivers.handover.processes import dying_with_parent, environment

SOCKET_MAX = 80
"""Longest path of a control socket: sun_path has 108 bytes, and ssh adds a random ending while it makes one."""
REFUSED_PATIENCE = 30.0
"""How long a refused login is tried again: the first boot may still be putting keys in place."""


class WrongHostKey(Exception):
    """Something else answers at the machine's address."""


class LoginRefused(Exception):
    """The machine does not let our key in."""


class Stopped(Exception):
    """The run was cancelled, or its time is up, while it waited."""


@dataclass(frozen=True)
class Ssh:
    """How to reach ``target``, with files in the run's directory ``run``."""

    target: HandoverTarget
    run: Path

    @property
    def known_hosts(self) -> Path:
        return self.run / "private" / "known_hosts"

    @property
    def socket(self) -> Path | None:
        """Where the master connection listens; None where that path would be too long."""
        path = self.run / "mux"
        return path if len(str(path)) <= SOCKET_MAX else None

    def prepare(self) -> None:
        """Write the known hosts: the keys the machine told of itself, and nothing else."""
        name = (
            self.target.address if self.target.port == 22 else f"[{self.target.address}]:{self.target.port}"
        )
        self.known_hosts.parent.mkdir(mode=0o700, exist_ok=True)
        self.known_hosts.write_text("".join(f"{name} {key}\n" for key in self.target.host_keys))

    def options(self, *, master: bool = False) -> list[str]:
        """ssh's options as words."""
        said = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "CheckHostIP": "no",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "ConnectTimeout": "10",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "ControlMaster": "yes" if master else "no",
            "ControlPersist": "no",
            "ControlPath": str(self.socket) if self.socket else "none",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "LogLevel": "ERROR",
        }
        words = ["-F", "/dev/null"]
        for name, value in said.items():
            words += ["-o", f"{name}={value}"]
        return words

    def command(self, remote: Sequence[str] = (), *, master: bool = False) -> list[str]:
        """A whole ssh command line; ``remote`` is what runs there, already quoted for the remote shell."""
        key = ["-i", self.target.ssh_key] if self.target.ssh_key else []
        where = ["-p", str(self.target.port), "-l", self.target.user, "--", self.target.address]
        return ["ssh", *self.options(master=master), *key, *(["-N"] if master else []), *where, *remote]

    def wait(self, stop: Callable[[], bool], say: Callable[[str], None]) -> subprocess.Popen[str] | None:
        """Wait until the machine lets us in; the master connection that then stands (None where there can be none).

        Raises WrongHostKey, LoginRefused, Stopped.
        """
        said = ""
        refused_since: float | None = None
        while True:
            try:
                attempt = self._attempt(stop)
            except Stopped:
                raise Stopped(said or "no answer yet") from None
            if not isinstance(attempt, str):
                return attempt
            if "host key verification failed" in attempt.lower():
                raise WrongHostKey(attempt)
            if "Permission denied" in attempt:
                refused_since = refused_since or time.monotonic()
                if time.monotonic() - refused_since > REFUSED_PATIENCE:
                    raise LoginRefused(attempt)
            else:
                refused_since = None
            if attempt != said:
                say(f"waiting for SSH on {self.target.address}: {attempt}\n")
                said = attempt
            for _ in range(10):
                if stop():
                    raise Stopped(attempt)
                time.sleep(0.1)

    def _attempt(self, stop: Callable[[], bool]) -> subprocess.Popen[str] | str | None:
        """The master connection (or None), or what ssh said when it failed."""
        with_socket = self.socket is not None
        if with_socket:
            assert self.socket is not None
            self.socket.unlink(missing_ok=True)
        process = subprocess.Popen(
            dying_with_parent(self.command(() if with_socket else ("true",), master=with_socket)),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment(self.run),
        )  # fmt: skip
        while process.poll() is None:
            if with_socket and self.socket is not None and self.socket.exists():
                return process
            if stop():
                process.kill()
                process.communicate()
                raise Stopped("not connected yet")
            time.sleep(0.05)
        _, error = process.communicate()
        if process.returncode == 0:
            return None
        lines = [line.strip() for line in error.splitlines() if line.strip() and not line.startswith("@")]
        return " ".join(lines)[-400:] or f"ssh ended with status {process.returncode}"
