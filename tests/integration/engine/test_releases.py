"""Builds and the release they are pinned to: real engine, real boot server, both databases; the machines are played by the tests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy import func, select

from provisiond.boot.scripts import TICKET
from provisiond.inventory.release_tables import Release, ServedFile
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Deployment, Host
from provisiond.lifecycle import intents, signals
from provisiond.lifecycle.intents import Verb
from provisiond.templating.catalogue import Catalogue, ensure_release, read_files, shipped_directory
from provisiond.templating.moves import roll_back
from provisiond.templating.release import SEED
from tests.integration.engine.conftest import MakeRig
from tests.integration.engine.rig import KEY, Rig

SECRET = "hunter22 and more"
ENCODED = base64.b64encode(SECRET.encode()).decode()
LOADER = "ipxe-ramdisk"


def marked(word: str) -> Catalogue:
    """The shipped templates, with a comment that says which release they are of, and a secret, in what hosts are served."""
    files = read_files(shipped_directory())
    for path, header in Catalogue.of(files).headers.items():
        if header.kind in (*SEED, LOADER):
            secret = (
                "{% if parameters.api_token is defined %}{{ parameters.api_token | b64encode }}{% endif %}"
            )
            files[path] += f"# {word} {secret}\n"
    return Catalogue.of(files)


class Played:
    """Machines that fetch what their loader and their first boot want over HTTP, and remember the digests of what they were given."""

    def __init__(self, rig: Rig, url: str, session: aiohttp.ClientSession) -> None:
        self.rig, self.url, self.session = rig, url, session
        self.given: dict[str, dict[str, str]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def boundary(self, when: str, host: ResolvedHost, step: str, outcome: object) -> None:
        if when == "stored" and step == "boot" and host.deployment is not None:
            task = asyncio.create_task(self.play(host))
            self.tasks.add(task)

    async def play(self, host: ResolvedHost) -> None:
        deployment = host.deployment
        assert deployment is not None
        if host.hypervisor is None:
            token = self.rig.box.decrypt(deployment.secret_seed)
            for file in ("ipxe", *(f"seed/{name}" for name in SEED)):
                async with self.session.get(f"{self.url}/boot/{token}/{file}") as answer:
                    content = await answer.read()
                    assert answer.status == 200, content
                kind = LOADER if file == "ipxe" else file.removeprefix("seed/")
                # a ticket is new each time, and in no record
                content = re.sub(rb"(provisiond\.ticket=)[\w-]+", rb"\1" + TICKET.encode(), content)
                self.given.setdefault(deployment.id, {})[kind] = hashlib.sha256(content).hexdigest()
            await signals.built(self.rig.store, deployment.id)
        await signals.phone_home(self.rig.store, deployment.id, [KEY])


async def play(rig: Rig) -> tuple[Played, web.AppRunner]:
    """A boot server, and machines that use it."""
    runner = await rig.serve(socket.create_server(("127.0.0.1", 0)))
    played = Played(rig, f"http://127.0.0.1:{runner.addresses[0][1]}", aiohttp.ClientSession())
    rig.robot, rig.boundary = False, played.boundary
    return played, runner


async def test_a_rollback_amid_fifty_builds(make_rig: MakeRig) -> None:
    """Fifty builds at once, half of them virtual machines, and a rollback in the middle: each host has one build of one release,
    and everything it was served is of that one."""
    rig = await make_rig()
    played, runner = await play(rig)
    old = await ensure_release(rig.store, marked("OLD"))
    new = await ensure_release(rig.store, marked("NEW"))
    names = [f"h{n:02}" for n in range(50)]
    for number, name in enumerate(names):
        await rig.add(name, 20 + number, virtual=number % 2 == 1, parameters={"api_token": SECRET})
    await asyncio.gather(*(rig.arrives(name, "ready", 120) for name in names))

    async def begun() -> int:
        async with rig.store.read() as session:
            return (await session.execute(select(func.count()).select_from(Deployment))).scalar_one()

    asked = asyncio.gather(*(intents.request(rig.store, n, Verb.BUILD, actor="test") for n in names))
    async with asyncio.timeout(120):
        while await begun() < 10:
            await asyncio.sleep(0.005)
    moved = await roll_back(rig.store, group=None, to=None, actor="test", reason="amid")
    assert (moved.before, moved.now) == (new.id, old.id)
    await asked
    await asyncio.gather(*(rig.arrives(name, "active", 180) for name in names))
    await asyncio.gather(*played.tasks)
    await rig.renderings.close()

    async with rig.store.read() as session:
        builds = (await session.execute(select(Deployment))).scalars().all()
        files = (await session.execute(select(ServedFile))).scalars().all()
        hosts = (await session.execute(select(Host))).scalars().all()
    assert sorted(b.host_id for b in builds) == sorted(h.id for h in hosts)
    by_release = {r.id: {b.id for b in builds if b.release_id == r.id} for r in (old, new)}
    assert sum(map(len, by_release.values())) == 50 and all(by_release.values())
    word = {build: w for r, w in ((old, "# OLD"), (new, "# NEW")) for build in by_release[r.id]}
    assert {(f.deployment_id, word[f.deployment_id] in f.text, f.times) for f in files} == {
        (b.id, True, 1) for b in builds
    }
    tokens = {b.id: rig.box.decrypt(b.secret_seed) for b in builds}
    for build in builds:
        mine = {f.kind: f for f in files if f.deployment_id == build.id}
        physical = build.id in played.given
        assert set(mine) == ({*SEED, LOADER} if physical else set(SEED))
        if physical:
            assert {kind: f.digest for kind, f in mine.items()} == played.given[build.id]
        for file in mine.values():
            assert ENCODED not in file.text and SECRET not in file.text and tokens[build.id] not in file.text
    await played.session.close()
    await runner.cleanup()


async def test_nothing_moves_for_a_build_under_way(make_rig: MakeRig) -> None:
    """A build that waits for its machine keeps its release when another becomes current; the next build gets that."""
    rig = await make_rig(robot=False)
    first = await ensure_release(rig.store, marked("FIRST"))
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="test")
    async with asyncio.timeout(60):
        while (await rig.row("web01")).step != "install":
            await asyncio.sleep(0.02)
    second = await ensure_release(rig.store, marked("SECOND"))
    rig.robot = True
    host = await rig.row("web01")
    await rig.machine_answers(host.id)
    await rig.arrives("web01", "active", 60)
    assert [d.release_id for d in await rig.deployments("web01")] == [first.id]
    await intents.request(rig.store, "web01", Verb.REBUILD, actor="test")
    async with asyncio.timeout(60):
        while len(await rig.deployments("web01")) < 2:
            await asyncio.sleep(0.02)
    assert [d.release_id for d in await rig.deployments("web01")] == [first.id, second.id]


@pytest.mark.parametrize("known", [True, False])
async def test_a_host_that_was_forgotten_loses_its_record_alone(make_rig: MakeRig, known: bool) -> None:
    """What was served to a build that is gone is dropped; what was served to others is written, again and again as one row."""
    rig = await make_rig(start=False)
    host_id = await rig.add("web01", 20)
    async with rig.store.write() as session:
        release = (await session.execute(select(Release.id))).scalars().first()
        build = Deployment(host_id=host_id, release_id=release)
        session.add(build)
    record = rig.renderings.record
    if known:
        record.note(build.id, "user-data", "t", "text", lambda: "masked")
        await record.close()
    record.note("0" * 36, "user-data", "t", "text", lambda: "gone")
    for _ in range(3):
        record.note(build.id, "user-data", "t", "text", lambda: "masked")
    await record.close()
    async with rig.store.read() as session:
        files = (await session.execute(select(ServedFile))).scalars().all()
    assert [(f.deployment_id, f.text, f.times, f.size) for f in files] == [
        (build.id, "masked", 4 if known else 3, 4)
    ]
    assert files[0].digest == hashlib.sha256(b"text").hexdigest()
