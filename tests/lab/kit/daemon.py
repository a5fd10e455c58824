"""A real provisiond in a namespace of the lab: `provisiond serve` with a configuration and a state directory of its own.

with Daemon(ns, Path("/tmp/x"), {"dhcp": {"driver": "dnsmasq", "interfaces": ["br-lab"]}}) as daemon:
    daemon.api("GET", "/hosts")
    daemon.ctl("host", "list")
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.lab.kit.netns import Netns
from tests.lab.kit.part import Part

BIN = Path(sys.executable).parent
API = "http://10.77.0.1:8420"
BOOT = "http://10.77.0.1:8421"


class ApiError(Exception):
    """The API said no; ``status`` and ``problem`` are its answer."""

    def __init__(self, method: str, path: str, status: int, problem: Any) -> None:
        super().__init__(f"{method} {path}: {status} {problem}")
        self.status, self.problem = status, problem


class Daemon(Part):
    """One provisiond; everything it keeps is below ``root``. ``tables`` are laid over the lab's settings."""

    def __init__(
        self,
        ns: Netns,
        root: Path,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.ns, self.root = ns, root
        self.process: subprocess.Popen[bytes] | None = None
        self._http: httpx.Client | None = None
        self._settings: dict[str, dict[str, Any]] = {
            "server": {"listen": "10.77.0.1", "shutdown_seconds": 5},
            "state": {"dir": str(self.state)},
            "boot": {"listen": "10.77.0.1", "url": BOOT, "tftp_listen": ["10.77.0.1"]},
            "log": {"level": "info"},
        }
        for name, table in (tables or {}).items():
            self.set(name, **table)

    def set(self, table: str, **values: Any) -> None:
        """Settings for the next start."""
        self._settings[table] = {**self._settings.get(table, {}), **values}

    @property
    def config(self) -> Path:
        return self.root / "provisiond.toml"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def token_file(self) -> Path:
        return self.state / "admin.token"

    @property
    def log_file(self) -> Path:
        return self.root / "provisiond.log"

    @property
    def pid_file(self) -> Path:
        return self.root / "provisiond.pid"

    # --- life ------------------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0) -> Daemon:
        """Start it and wait until /readyz says yes. RuntimeError with the end of its log when it does not."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.config.write_text(_toml(self._settings))
        with self.log_file.open("ab") as log:
            self.process = self.ns.exec(
                [BIN / "provisiond", "serve", "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal of `make demo` is not for it
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            )
        self.pid_file.write_text(str(self.process.pid))
        until = time.monotonic() + timeout
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"provisiond is not ready; its log ends with:\n{self.log()[-3000:]}")
            time.sleep(0.1)
        return self

    def stop(self, patience: float = 30.0) -> int | None:
        """SIGTERM, as an operator stops it; returns its exit code (None: it was not running)."""
        if self._http:
            self._http.close()
            self._http = None
        if self.process is None:
            return None
        self.process.terminate()
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL: a crash."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def log(self) -> str:
        """What it logged so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # --- its doors ---------------------------------------------------------------------------------------

    def api(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One call below /api/v1 as the admin; the answer's JSON. Raises ApiError when the API says no."""
        if self._http is None:
            token = self.token_file.read_text().strip()
            self._http = httpx.Client(
                base_url=f"{API}/api/v1",
                headers={"Authorization": f"Bearer {token}"},
                timeout=30,
                trust_env=False,
            )
        with self.ns.enter():  # connections are made when they are needed
            answer = self._http.request(method, path, json=body, params=query or None)
        content = answer.json() if answer.content else None
        if answer.is_error:
            raise ApiError(method, path, answer.status_code, content)
        return content

    @property
    def ctl_environment(self) -> dict[str, str]:
        """What provisionctl needs to find this daemon (from inside the namespace)."""
        return {"PROVISIOND_URL": API, "PROVISIOND_TOKEN_FILE": str(self.token_file)}

    def ctl(self, *argv: str, check: bool = True, timeout: float = 120, **env: str) -> str:
        """Run provisionctl as an operator would; returns what it printed. RuntimeError when it ends non-zero."""
        done = self.ns.run(
            [BIN / "provisionctl", *argv],
            check=False,
            timeout=timeout,
            env={**os.environ, **self.ctl_environment, **env},
        )
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise RuntimeError(f"provisionctl {' '.join(argv)} ended with {done.returncode}: {said}")
        return done.stdout + done.stderr

    def host(self, name: str) -> dict[str, Any]:
        """The host as the API shows it."""
        found: dict[str, Any] = self.api("GET", f"/hosts/{name}")
        return found

    def _ready(self) -> bool:
        try:
            with self.ns.enter():
                return httpx.get(f"{API}/readyz", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings as TOML: strings, numbers, booleans and lists are written there as JSON writes them."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )
