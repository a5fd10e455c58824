"""IPMI controllers with the oddities of real ones, on pyghmi's server: many ports in one process.

    with OddBmcs(ns, ports=range(7000, 7045)) as bmcs: ...
    with OddBmcs(ns, ports=[7000], manufacturer=10876, busy=2) as bmcs:
        bmcs.requests                                    # [(netfn, command, data), ...] of all ports, in order

What real one does each: ``busy`` N: node busy for the first N power questions. ``no_timeout`` refuses to switch the boot flags' time-out
off (OpenBMC). ``forgets`` N: takes the boot device without keeping it N times (HPE). ``lag`` seconds: shows the old power
state for so long after an order. ``picky``: 'off' of a machine that is off is an error. ``ignores`` N: takes N power orders
without effect. ``manufacturer``: its IANA number.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.kit.netns import Netns, end
from tests.lab.kit.vbmc import PASSWORD, USER, wait_for_ipmi


class OddBmcs:
    """The process that plays them, on ``address`` in ``ns``."""

    def __init__(
        self, ns: Netns, ports: Iterable[int], *, address: str = "10.77.0.1", **oddities: Any
    ) -> None:
        self.ns, self.ports, self.address, self.oddities = ns, list(ports), address, oddities
        self.username, self.password = USER, PASSWORD
        self.root = Path(tempfile.mkdtemp(prefix="pvodd-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def requests(self) -> list[tuple[int, int, list[int]]]:
        log = self.root / "requests"
        return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    def __enter__(self) -> OddBmcs:
        argv = {
            "address": self.address,
            "ports": self.ports,
            "log": str(self.root / "requests"),
            **self.oddities,
        }
        with (self.root / "out").open("ab") as out:
            self.process = self.ns.exec(
                [sys.executable, "-m", "tests.lab.kit.oddbmc", json.dumps(argv)],
                cwd=Path(__file__).parents[3],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            for port in self.ports:
                wait_for_ipmi(self.ns, self.address, port)
        except RuntimeError as error:
            said = (self.root / "out").read_text(errors="replace")[-1000:]
            self.__exit__(None, None, None)
            raise RuntimeError(f"{error}: {said}") from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            pid = self.process.pid
            end(lambda: [pid])
            self.process.wait(5)
        shutil.rmtree(self.root, ignore_errors=True)


def receive(sock: socket.socket, size: int) -> tuple[bytes, Any] | None:
    """A packet, if there is one.

    In place of pyghmi's own, which makes the socket non-blocking first: its other thread makes it blocking to answer, and where
    that comes in between, the one thread that reads all ports waits on this one for ever.
    """
    try:
        return sock.recvfrom(size, socket.MSG_DONTWAIT)
    except OSError:
        return None


def play(address: str, ports: list[int], log: str, **odd: Any) -> None:
    """Serve for ever."""
    from pyghmi.ipmi import bmc as pyghmi_bmc
    from pyghmi.ipmi.private import session as pyghmi_session

    pyghmi_session._io_recvfrom = receive

    class Odd(pyghmi_bmc.Bmc):  # type: ignore[misc]
        def __init__(self, port: int) -> None:
            super().__init__({USER: PASSWORD}, port=port, address=address)
            self.power, self.shown, self.shown_until = 0, 0, 0.0
            self.boot = [0, 0]
            self.left = {name: odd.get(name, 0) for name in ("busy", "forgets", "ignores")}
            self.mfgid = odd.get("manufacturer", 0)

        def _spend(self, name: str) -> bool:
            self.left[name] -= 1
            return self.left[name] >= 0

        def send_device_id(self, session: Any) -> None:
            data = [0, 0, 1, 0, 2, 0, *self.mfgid.to_bytes(3, "little"), 0, 0]
            session.send_ipmi_response(data=data)

        def get_power_state(self) -> int:
            return self.shown if time.monotonic() < self.shown_until else self.power

        def handle_raw_request(self, request: dict[str, Any], session: Any) -> None:
            netfn, command, data = request["netfn"], request["command"], list(request["data"])
            with Path(log).open("a") as file:
                file.write(json.dumps([netfn, command, data]) + "\n")
            if (netfn, command) == (0, 1) and self._spend("busy"):
                session.send_ipmi_response(code=0xC0)
            elif (netfn, command) == (0, 2):
                session.send_ipmi_response(code=self._control(data[0]))
            elif (netfn, command) == (0, 8):
                session.send_ipmi_response(code=self._set_boot(data))
            elif (netfn, command) == (0, 9):
                session.send_ipmi_response(data=[1, 5, *self.boot, 0, 0, 0])
            else:
                super().handle_raw_request(request, session)

        def _control(self, order: int) -> int:
            if order not in (0, 1, 3):
                return 0xCC
            if self._spend("ignores"):
                return 0
            if odd.get("picky") and order == self.power:
                return 0xD5
            if order in (0, 1):
                self.shown, self.shown_until = self.power, time.monotonic() + odd.get("lag", 0.0)
                self.power = order
            return 0

        def _set_boot(self, data: list[int]) -> int:
            if data[0] == 3:
                return 0x80 if odd.get("no_timeout") else 0
            if data[0] == 5 and not self._spend("forgets"):
                self.boot = data[1:3]
            return 0

    for port in ports:
        Odd(port)
    # where pyghmi wakes its reading thread, which may wait still on those ports only that were there when it began
    pyghmi_session.myself = address
    while True:
        pyghmi_session.Session.wait_for_rsp(30)


if __name__ == "__main__":
    play(**json.loads(sys.argv[1]))
