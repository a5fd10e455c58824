"""A rollback at 10,000 hosts: how long until every host's next build would get the earlier release, here and in another daemon.

``python -m tests.bench.rollback`` prints ``name value unit peer`` lines, for SQLite and for PostgreSQL with two daemons' renderings.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import uvloop
from sqlalchemy import insert

from provisiond.config import TemplateSettings
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Deployment, Host, HostGroup, new_row, table
from provisiond.templating.catalogue import Catalogue, ensure_release
from provisiond.templating.current import release_for
from provisiond.templating.moves import plan_rollback, roll_back, use_release
from provisiond.templating.release import Renderings
from tests.databases import postgres_server, sqlite_url

ROUNDS = 5


async def measure(url: str, kind: str, count: int, daemons: int) -> None:
    """Print the figures of one kind of database."""
    stores = [Store(url) for _ in range(daemons)]
    for store in stores:
        await store.open()
    here = stores[0]
    renderings = [await Renderings.open(store, TemplateSettings()) for store in stores]
    other = await ensure_release(here, Catalogue.of({"a.j2": "{#\nkind: x\nabout: the next\n#}\nx"}))
    await use_release(here, "#1", group=None, actor="bench")
    groups = [HostGroup(name=f"group-{n}") for n in range(100)]
    hosts = [new_row(Host, name=f"h{n}", state="active", group_id=groups[n % 100].id) for n in range(count)]
    builds = [new_row(Deployment, host_id=h["id"], release_id=other.id, number=1) for h in hosts]
    for host, build in zip(hosts, builds, strict=True):
        host["deployment_id"] = build["id"]
    async with here.write() as session:
        session.add_all(groups)
        await session.flush()
        await session.execute(insert(table(Host)), hosts)
        await session.execute(insert(table(Deployment)), builds)
    took, seen, planned = [], [], []
    for _ in range(ROUNDS):
        moved = await use_release(here, "#2", group=None, actor="bench")
        while (await renderings[-1].standing()).pointers["*"] != moved.now:
            await asyncio.sleep(0.001)
        begun = time.perf_counter()
        plan = await plan_rollback(here, group=None, to=None)
        planned.append(time.perf_counter() - begun)
        assert (plan.changing, len(plan.rebuild)) == (count, count)
        begun = time.perf_counter()
        moved = await roll_back(here, group=None, to=None, actor="bench")
        took.append(time.perf_counter() - begun)
        while True:
            standing = await renderings[-1].standing()
            if all(release_for(h["id"], [h["group_id"]], standing) == moved.now for h in hosts):
                break
            await asyncio.sleep(0.001)
        seen.append(time.perf_counter() - begun)
    print(f"rollback_answered_{kind} {max(took) * 1000:.1f} ms wanted=1000")
    print(f"rollback_in_force_{kind} {max(seen) * 1000:.1f} ms wanted=1000")
    print(f"rollback_plan_{kind} {max(planned) * 1000:.0f} ms -")
    for store in stores:
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(sqlite_url(Path(folder)), "sqlite", options.hosts, 1))
    with postgres_server() as server:
        uvloop.run(measure(server.store_url(server.database()), "postgresql", options.hosts, 2))


if __name__ == "__main__":
    main()
