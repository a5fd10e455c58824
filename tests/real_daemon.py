"""The whole daemon as a process of its own, with SQLite and its doors on loopback, for tests and benchmarks of machines that come to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_COMMAND = (sys.executable, "-c", "from provisiond.commands import main; main()", "serve", "--config")
_TOML = """
[server]
port = {api}
shutdown_seconds = 2
[state]
dir = "{folder}/state"
[boot]
listen = "127.0.0.1"
http_port = {boot}
tftp_listen = []
ramdisk_dir = "{folder}/ramdisk"
[dhcp]
driver = "external"
[engine]
power_poll_seconds = 0
"""


class RealDaemon:
    """Started by ``with``, or by ``start`` after ``kill``, always on the same ports and with the same state below ``folder``."""

    def __init__(self, folder: Path, *, more: str = "") -> None:
        self.folder = folder
        self.api, self.boot = _free_port(), _free_port()
        self.config = folder / "provisiond.toml"
        self.log = folder / "daemon.log"
        ramdisk = folder / "ramdisk"
        ramdisk.mkdir(parents=True)
        for name in ("vmlinuz", "initrd.img"):
            (ramdisk / name).write_bytes(name.encode())
        text = _TOML.format(folder=folder, api=self.api, boot=self.boot)
        self.config.write_text(text + more)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api}"

    @property
    def boot_url(self) -> str:
        return f"http://127.0.0.1:{self.boot}"

    @property
    def token(self) -> str:
        """The admin's."""
        return (self.folder / "state/admin.token").read_text().strip()

    def start(self) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with its log."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PROVISIOND_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, str(self.config)], stdout=log, stderr=log, env=environment
            )
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            with self.log.open("rb") as log:
                log.seek(begin)
                for line in log:
                    if line.startswith(b"{") and json.loads(line).get("event") == "daemon.ready":
                        return
            time.sleep(0.05)
        raise RuntimeError(f"the daemon is not ready: {self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
