"""Whole lives of hosts on fake drivers, through the API: create, ready, build, active, release, delete; and 10,000 that wait.

``python -m tests.bench.lives`` prints ``name value unit peer`` lines. The daemon runs in a process of its own, the client in this
one; both share the machine's cores. The peer's figure is Ironic 2025.1 with fake hardware on the same kind of machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import uvloop

TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def daemon(directory: Path) -> Iterator[tuple[str, str, int]]:
    """URL, admin token and pid of a daemon on fakes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.served", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        url = process.stdout.readline().strip()
        yield url, (directory / "admin.token").read_text().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(30)


class States:
    """Follows the event stream and tells when a host is in a state, so that nobody polls."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], asyncio.Future[None]] = {}

    def expect(self, host: str, state: str) -> asyncio.Future[None]:
        return self._waiting.setdefault((host, state), asyncio.get_running_loop().create_future())

    async def follow(self, session: aiohttp.ClientSession, ready: asyncio.Event) -> None:
        async with session.get("/api/v1/events", timeout=aiohttp.ClientTimeout(total=None)) as answer:
            ready.set()
            async for line in answer.content:
                if line.startswith(b"data:") and b'"state.changed"' in line:
                    event = json.loads(line[5:])
                    waiting = self._waiting.pop((event["host"], event["data"]["to"]), None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(None)


async def life(session: aiohttp.ClientSession, states: States, name: str, mac: str) -> None:
    """One host from create to delete."""

    async def ask(
        method: str, path: str, body: object = None, good: tuple[int, ...] = (200, 201, 202, 204)
    ) -> None:
        async with session.request(method, f"/api/v1{path}", json=body) as answer:
            if answer.status not in good:
                raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")

    ready = states.expect(name, "ready")
    bmc = {"driver": "fake", "address": name, "password": "secret"}
    await ask("POST", "/hosts", {"name": name, "mac": mac, "subnet": "bench", "image": "bench", "bmc": bmc})
    await ready
    active = states.expect(name, "active")
    await ask("POST", f"/hosts/{name}/actions/build", {})
    await active
    ready = states.expect(name, "ready")
    await ask("POST", f"/hosts/{name}/actions/release", {})
    await ready
    await ask("DELETE", f"/hosts/{name}")


async def furnish(session: aiohttp.ClientSession, directory: Path) -> None:
    """A subnet by the API and an image that needs no file."""
    body = {"name": "bench", "cidr": "10.0.0.0/16", "pools": [["10.0.1.0", "10.0.250.255"]]}
    async with session.post("/api/v1/subnets", json=body) as answer:
        assert answer.status == 201, await answer.text()
    from provisiond.inventory.store import Store
    from provisiond.inventory.tables import Image, OperatingSystem

    store = Store(f"sqlite:///{directory}/provisiond.db", lock=False)
    await store.open()
    async with store.write() as s:
        system = OperatingSystem(name="debian-12", family="debian", version="12")
        s.add(system)
        await s.flush()
        s.add(
            Image(
                name="bench",
                operating_system_id=system.id,
                path="x.raw",
                format="raw",
                sha256="0" * 64,
                size=1 << 20,
            )
        )
    await store.close()


async def lives(url: str, token: str, directory: Path, count: int, at_once: int) -> float:
    """Seconds that ``count`` lives take, ``at_once`` at a time."""
    headers = {"Authorization": f"Bearer {token}"}
    connector = aiohttp.TCPConnector(limit=at_once + 2)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:
        await furnish(session, directory)
        states, listening = States(), asyncio.Event()
        follower = asyncio.create_task(states.follow(session, listening))
        await listening.wait()
        gate = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with gate:
                await life(
                    session,
                    states,
                    f"h{number}",
                    f"52:54:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}:01",
                )

        begun = time.perf_counter()
        work = asyncio.gather(*(one(number) for number in range(count)))
        done, _ = await asyncio.wait([work, follower], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        took = time.perf_counter() - begun
        follower.cancel()
        return took


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def wait_for_ten_thousand(directory: Path, waiting: int) -> None:
    """Put hosts that wait for their machines into the database of a daemon that is not running."""
    from datetime import timedelta

    from provisiond.inventory import migrate
    from provisiond.inventory.store import Store
    from provisiond.inventory.tables import Deployment, Host, Interface, utcnow

    url = f"sqlite:///{directory}/provisiond.db"
    migrate.upgrade(url)
    store = Store(url)
    await store.open()
    later = utcnow() + timedelta(hours=1)
    rest: list[Deployment | Interface] = []
    async with store.write() as session:
        for number in range(waiting):
            host = Host(
                name=f"w{number}",
                state="building",
                step="install",
                step_since=utcnow(),
                due_at=later,
                deadline_at=later,
            )
            deployment = Deployment(host_id=host.id, boots=1)
            host.deployment_id = deployment.id
            mac = f"52:54:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}:02"
            rest += [deployment, Interface(host_id=host.id, mac=mac)]
            session.add(host)
        await session.flush()  # the hosts before what refers to them
        session.add_all(rest)
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lives", type=int, default=1500)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--waiting", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, daemon(Path(folder)) as (url, token, pid):
        before = cpu_seconds(pid)
        took = uvloop.run(lives(url, token, Path(folder), options.lives, options.at_once))
        print(f"lives_per_minute {options.lives / took * 60:.0f} 1/min ironic=100")
        print(f"life_daemon_cpu {(cpu_seconds(pid) - before) / options.lives * 1000:.2f} ms -")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(wait_for_ten_thousand(Path(folder), options.waiting))
        with daemon(Path(folder)) as (_url, _token, pid):
            time.sleep(5)
            before, begun = cpu_seconds(pid), time.monotonic()
            time.sleep(20)
            used = (cpu_seconds(pid) - before) / (time.monotonic() - begun)
            print(f"idle_memory_{options.waiting}_waiting {memory_mb(pid):.0f} MB -")
            print(f"idle_cpu_{options.waiting}_waiting {used * 100:.2f} % -")


if __name__ == "__main__":
    main()
