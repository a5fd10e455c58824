"""The daemon is killed while machines are in its ramdisk: they go on where they were."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import ClientSession

from tests.fake_ramdisk import FakeRamdisk
from tests.real_daemon import RealDaemon


async def test_killed_daemon(tmp_path: Path) -> None:
    """kill -9 between script and claim, claim and plan, and just after a report: tickets and sessions stand, each machine is one host."""
    daemon = RealDaemon(tmp_path / "daemon")
    try:
        await asyncio.to_thread(daemon.start)
        async with ClientSession() as client:
            headers = {"Authorization": f"Bearer {daemon.token}"}
            body = {"name": "lab", "cidr": "127.0.0.0/8", "unknown": "discover"}
            url = f"{daemon.api_url}/api/v1"
            async with client.post(f"{url}/subnets", json=body, headers=headers) as answer:
                assert answer.status == 201, await answer.text()
            early, late = (
                FakeRamdisk(client, daemon.boot_url, f"52:54:00:00:00:0{n}", serial=f"S{n}") for n in (1, 2)
            )
            assert await early.boot() and await late.boot()
            first = await early.claim()
            daemon.kill()
            waiting = asyncio.create_task(early.run())  # asks again and again until there is a daemon
            await asyncio.to_thread(daemon.start)
            await late.claim()
            assert (await early.claim())["session"] == first["session"]
            await late.report()
            async with asyncio.timeout(60):
                while early.host is None:
                    await asyncio.sleep(0.05)
            daemon.kill()
            await asyncio.to_thread(daemon.start)
            await late.report()
            assert (await late.plan())["action"] == "wait" and not waiting.done()
            async with client.get(f"{url}/hosts?state=discovered", headers=headers) as answer:
                names = [host["name"] for host in (await answer.json())["items"]]
            assert sorted(names) == sorted([str(early.host), str(late.host)])
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            log = daemon.log.read_text()
            assert all(secret not in log for one in (early, late) for secret in (one.ticket, one.secret))
    finally:
        daemon.kill()
