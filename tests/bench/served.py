"""A whole daemon on fake drivers for the benchmarks: ``python -m tests.bench.served DIRECTORY``; a robot plays the machines.

Prints the API's URL when it is ready and serves until its standard input closes.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

import uvloop

from provisiond.config import load_settings
from provisiond.daemon import Daemon, compose, log_to
from provisiond.drivers.handover.fake import FakeHandover
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle import signals

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample host"


class Robot:
    """Answers for machines that were switched on: installed, booted, phoning home."""

    def __init__(self) -> None:
        self.daemon: Daemon
        self._tasks: set[asyncio.Task[None]] = set()

    async def boundary(self, when: str, host: ResolvedHost, step: str, _outcome: object) -> None:
        if when == "stored" and step == "boot" and host.row.deployment_id:
            task = asyncio.create_task(self._answer(host.row.deployment_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, deployment_id: str) -> None:
        await signals.built(self.daemon.world.store, deployment_id)
        await signals.phone_home(self.daemon.world.store, deployment_id, [KEY])


async def serve(directory: Path) -> None:
    settings = load_settings(
        overrides={
            "state": {"dir": directory},
            "server": {"port": 0},
            "boot": {"listen": "127.0.0.1", "http_port": 0, "tftp_listen": []},
            "dhcp": {"driver": "fake"},
            "handover": {"driver": "fake"},
            "erase": {"default": "none"},  # the fake switches no machine that could run the ramdisk
            "log": {"level": "error"},
        }
    )
    log_to(settings)
    robot = Robot()
    async with compose(settings, boundary=robot.boundary) as daemon:
        robot.daemon = daemon
        daemon.world.rooms.made["handover", "fake"] = FakeHandover()  # in memory, as the other fakes
        gc.freeze()
        sys.stdout.write(daemon.api_url + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
