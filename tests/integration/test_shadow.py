"""Shadow runs over a fleet in a real database, rendered by real worker processes and judged by the real validators."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from sqlalchemy import select, update

from provisiond.inventory.release_tables import Release, ShadowDiff, ShadowResult, ShadowRun
from provisiond.inventory.tables import Deployment, Event, Host
from provisiond.lifecycle import signals
from provisiond.rollouts.shadow import ShadowRuns
from provisiond.rollouts.shadow_report import show_run
from provisiond.rollouts.shadow_requests import begin, cancel, resume
from tests.fleet import TEMPLATES, add_release, populate
from tests.integration.engine.rig import Rig

Change = Callable[[dict[str, str]], None]


@pytest_asyncio.fixture
async def rig(database_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A world whose engine does not run."""
    made = await Rig(database_url, tmp_path).open()
    await add_release(made.store, TEMPLATES, current=True)
    yield made
    await made.close()


async def release(rig: Rig, change: Change) -> str:
    """The digest of a release that is what is current, changed."""
    files = dict(TEMPLATES)
    change(files)
    release_id = await add_release(rig.store, files)
    async with rig.store.read() as session:
        return str(
            (await session.execute(select(Release.digest).where(Release.id == release_id))).scalar_one()
        )


async def ended(rig: Rig, number: int, seconds: float = 120.0) -> ShadowRun:
    """The run, once it has ended."""
    async with asyncio.timeout(seconds):
        while True:
            run = await row(rig, number)
            if run.state != "running":
                return run
            await asyncio.sleep(0.1)


async def row(rig: Rig, number: int) -> ShadowRun:
    async with rig.store.read() as session:
        return (await session.execute(select(ShadowRun).where(ShadowRun.number == number))).scalars().one()


async def found(rig: Rig, number: int) -> tuple[list[ShadowDiff], list[ShadowResult]]:
    run = await row(rig, number)
    async with rig.store.read() as session:
        diffs = select(ShadowDiff).where(ShadowDiff.run_id == run.id).order_by(ShadowDiff.hosts.desc())
        results = select(ShadowResult).where(ShadowResult.run_id == run.id)
        return list((await session.execute(diffs)).scalars()), list(
            (await session.execute(results)).scalars()
        )


async def run_it(rig: Rig, change: Change, group: str | None = None, **options: Any) -> ShadowRun:
    """Change what is current, run that as a shadow to its end with one worker."""
    release_id = await release(rig, change)
    runs = ShadowRuns(rig.world, "tester", workers=1)
    await runs.start()
    try:
        number = await begin(rig.store, release_id, group, actor="user:test", **options)
        return await ended(rig, number)
    finally:
        await runs.stop()


def add_line(path: str, line: str) -> Change:
    """Adds a line at a template's end."""

    def change(files: dict[str, str]) -> None:
        files[path] += line + "\n"

    return change


async def test_equal_changes_of_many_hosts_are_one_difference(rig: Rig) -> None:
    """A line that holds each host's own name, MAC and address is one difference of all hosts of its family; others are unchanged."""
    await populate(rig.store, 30)
    line = "# {{ host.name | plain }} {{ host.fqdn | plain }} {{ host.mac | plain }} {{ host.ip | default('', true) | plain }}"
    run = await run_it(rig, add_line("kickstart.ks.j2", line))
    assert (run.state, run.total, run.done) == ("done", 30, 30), run.failure
    diffs, results = await found(rig, run.number)
    assert [(d.kind, d.template, d.hosts) for d in diffs] == [
        ("changed", "kickstart.ks.j2", 9),
        ("changed", "kickstart.ks.j2", 1),  # node00000 has no address
    ]
    assert (run.unchanged, run.changed, run.failing) == (20, 10, 0)
    assert diffs[0].text.endswith(" %end\n+# HOST FQDN MAC IP")
    assert len(results) == 30
    assert all(r.size > 100 and r.size_before > 100 and r.milliseconds > 0 for r in results)
    assert run.report["checked"] == 150
    assert run.report["validated"] < 50  # 150 texts, few of which differ in more than names and addresses


async def test_a_group_and_those_below_it_are_all_that_is_looked_at(rig: Rig) -> None:
    """--group leaves the other hosts out; hosts that are retired or only discovered are nobody's builds."""
    await populate(rig.store, 12, every=lambda n: {"parameters": {}, "comment": "x"})
    async with rig.store.write() as session:
        await session.execute(update(Host).where(Host.name == "node00001").values(state="retired"))
    below = await run_it(rig, add_line("preseed.cfg.j2", "# more"), "debian")
    assert (below.total, below.changed) == (3, 3)
    whole = await run_it(rig, add_line("preseed.cfg.j2", "# other"), "all")
    assert (whole.total, whole.changed, whole.unchanged) == (11, 3, 8)


async def test_hosts_that_would_fail_are_told_with_why(rig: Rig) -> None:
    """A missing key is told with template, line and key; what a validator says is told too; hosts of other families go on."""
    sites = {0: "hq", 3: "--evil"}

    def change(files: dict[str, str]) -> None:
        files["preseed.cfg.j2"] += "{{ host.colour | preseed }}\n"
        files["kickstart.ks.j2"] += "# {{ parameters.site | ks }}\n"
        files["user-data.j2"] += "users: 7\n"

    await populate(rig.store, 9, every=lambda n: {"parameters": {"site": sites.get(n, "hq")}})
    run = await run_it(rig, change)
    assert (run.unchanged, run.changed, run.failing) == (0, 2, 7)
    diffs, _ = await found(rig, run.number)
    failing = {d.template: d for d in diffs if d.kind == "failing"}
    assert failing["preseed.cfg.j2"].hosts == 3
    assert failing["preseed.cfg.j2"].text == "preseed.cfg.j2:11: 'host.colour' is missing"
    assert failing["kickstart.ks.j2"].hosts == 1
    assert "begins with a dash" in failing["kickstart.ks.j2"].text
    assert failing["user-data.j2"].hosts == 3
    assert failing["user-data.j2"].text.startswith("cloud-init schema: ")


async def test_what_fails_already_is_told_apart(rig: Rig) -> None:
    """A host that what is current cannot build either fails by no fault of the release."""
    await populate(rig.store, 3, every=lambda n: {"parameters": {"timezone": 7}})
    run = await run_it(rig, add_line("kickstart.ks.j2", "# more"))
    assert run.failing == 0
    async with rig.store.write() as session:
        await session.execute(update(Host).values(parameters={"site": 7}))
    run = await run_it(rig, add_line("kickstart.ks.j2", "# even more"))
    assert run.failing == 1
    (diff,) = [d for d in (await found(rig, run.number))[0] if d.kind != "changed"]
    assert diff.kind == "failing-already"


async def test_secrets_show_in_no_difference(rig: Rig) -> None:
    """Each host's own password is masked, so that equal changes group all the same; one that holds nothing but a secret says so."""
    secret = "$6$salt$verysecrethash"
    await populate(rig.store, 30, every=lambda n: {"parameters": {"root_password_hash": f"{secret}{n}"}})

    def change(files: dict[str, str]) -> None:
        files["password.ks.j2"] = files["password.ks.j2"].replace("--iscrypted", "--iscrypted --allow-ssh")

    run = await run_it(rig, change, validating=False)
    (diff,), _ = await found(rig, run.number)
    assert diff.hosts == 10
    assert "verysecret" not in diff.text
    assert "+rootpw --iscrypted --allow-ssh" in diff.text
    assert run.report["checked"] == 0


async def test_a_validator_that_is_missing_is_named(rig: Rig, tmp_path: Path, monkeypatch: Any) -> None:
    """Without its program a kind is not validated, and the report says by name what was missing for how many texts."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "sh"):
        (tools / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(tools))
    await populate(rig.store, 3)
    run = await run_it(rig, add_line("kickstart.ks.j2", "# more"))
    assert run.failing == 0
    missing = run.report["skipped"]
    assert {sentence.partition(":")[0]: count for sentence, count in missing.items()}[
        "grub-script-check"
    ] == 3


async def test_nothing_of_the_hosts_changes(rig: Rig) -> None:
    """A shadow run leaves hosts, deployments and pointers as they are; it is in the history itself."""
    await populate(rig.store, 6)
    async with rig.store.read() as session:
        before = [(h.id, h.version, h.updated_at) for h in (await session.execute(select(Host))).scalars()]
    await run_it(rig, add_line("kickstart.ks.j2", "# more"))
    async with rig.store.read() as session:
        after = [(h.id, h.version, h.updated_at) for h in (await session.execute(select(Host))).scalars()]
        assert (await session.execute(select(Deployment))).first() is None
        kinds = (
            await session.execute(select(Event.kind).where(Event.kind.like("shadow.%")).order_by(Event.id))
        ).scalars()
        assert list(kinds) == ["shadow.begun", "shadow.done"]
    assert after == before


async def test_a_cancelled_run_ends_at_once_and_can_be_resumed(rig: Rig) -> None:
    """Within two seconds of its cancelling no process renders any more; resumed, it goes on to count every host once."""
    await populate(rig.store, 600)
    release_id = await release(rig, add_line("kickstart.ks.j2", "# more"))
    runs = ShadowRuns(rig.world, "tester", workers=1)
    await runs.start()
    try:
        number = await begin(rig.store, release_id, None, actor="user:test")
        await progressed(rig, number)
        workers = children()
        assert workers
        await cancel(rig.store, number, actor="user:test")
        begun = time.monotonic()
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() - begun < 20
            await asyncio.sleep(0.05)
        cancelled = await row(rig, number)
        assert cancelled.state == "cancelled"
        assert 0 < cancelled.done < 600
        await resume(rig.store, number, actor="user:test")
        await whole(rig, await ended(rig, number), 600)
    finally:
        await runs.stop()


async def test_a_killed_daemon_leaves_a_run_that_another_finishes(
    rig: Rig, database_url: str, tmp_path: Path
) -> None:
    """kill -9 in the middle: whoever comes next takes the lease when it has run out, and no host is counted twice or lost."""
    await populate(rig.store, 600)
    release_id = await release(rig, add_line("kickstart.ks.j2", "# more"))
    number = await begin(rig.store, release_id, None, actor="user:test")
    await rig.close()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.shadow_process",
        database_url,
        str(tmp_path),
        "--kill-after",
        "200",
    )
    assert await process.wait() == -signal.SIGKILL
    again = await Rig(database_url, tmp_path).open()
    runs = ShadowRuns(again.world, "second", workers=1, lease_seconds=3.0)
    left = await row(again, number)
    assert 200 <= left.done < 600
    assert left.lease_owner == "first"
    await runs.start()
    try:
        await whole(again, await ended(again, number), 600)
    finally:
        await runs.stop()
        await again.close()
        await rig.store.open()


async def test_of_two_daemons_one_takes_the_run(rig: Rig, database_url: str) -> None:
    """Two that look at the same moment do not both render."""
    await populate(rig.store, 60)
    release_id = await release(rig, add_line("kickstart.ks.j2", "# more"))
    both = [ShadowRuns(rig.world, name, workers=1) for name in ("first", "second")]
    number = await begin(rig.store, release_id, None, actor="user:test")
    await asyncio.gather(*(runs.start() for runs in both))
    try:
        await whole(rig, await ended(rig, number), 60)
    finally:
        await asyncio.gather(*(runs.stop() for runs in both))


async def booted_rig(database_url: str, tmp_path: Path) -> tuple[Rig, str]:
    """A world whose engine runs, with a hypervisor, and the digest of a release that changes images' user-data."""
    rig = await Rig(
        database_url, tmp_path, engine={"sweep_seconds": 0.2, "backoff_seconds": 0.02, "max_attempts": 2}
    ).open()
    await rig.furnish()
    await add_release(rig.store, TEMPLATES, current=True)
    await populate(rig.store, 9)
    await rig.reconciler.start()
    return rig, await release(rig, add_line("user-data.j2", "# tried"))


async def boots(rig: Rig) -> tuple[list[Any], list[Host]]:
    """What the run keeps of its machines, and the machines that there are."""
    run = await row(rig, 1)
    async with rig.store.read() as session:
        hosts = list((await session.execute(select(Host).where(Host.name.like("shadow-%")))).scalars())
    return run.report.get("boots", []), hosts


async def test_machines_are_booted_with_the_release_and_removed(database_url: str, tmp_path: Path) -> None:
    """Two throw-away machines go through the engine, pinned to the release; how far they came is kept, and nothing of them is left."""
    rig, digest = await booted_rig(database_url, tmp_path)
    runs = ShadowRuns(rig.world, "tester", workers=1)
    await runs.start()
    try:
        number = await begin(rig.store, digest, "image", actor="user:test", boot=2, on="hv1")
        run = await ended(rig, number)
        assert run.state == "done", run.failure
        machines, left = await boots(rig)
        assert [(m["host"], m["state"], m["failure"]) for m in machines] == [
            ("shadow-1-1", "active", ""),
            ("shadow-1-2", "active", ""),
        ]
        assert not left
        view = await show_run(rig.store, number)
        assert view.boots[0].like.startswith("node")
        events = [e for e in await rig.events("shadow-1-1") if e.kind == "step.ended"]
        assert "boot" in {e.step for e in events}
    finally:
        await runs.stop()
        await rig.close()


async def test_a_machine_that_fails_says_how_far_it_came(database_url: str, tmp_path: Path) -> None:
    """Its state, its failure and the tail of its log are in the report; it is removed like the others."""
    rig, digest = await booted_rig(database_url, tmp_path)
    rig.robot = False

    async def fails(when: str, host: Any, step: str, outcome: object) -> None:
        if when == "stored" and step == "boot":
            tasks.append(
                asyncio.create_task(signals.failed(rig.store, host.row.deployment_id, "no disk", "the tail"))
            )

    tasks: list[Any] = []
    rig.boundary = fails
    runs = ShadowRuns(rig.world, "tester", workers=1)
    await runs.start()
    try:
        number = await begin(rig.store, digest, "image", actor="user:test", boot=1, on="hv1")
        run = await ended(rig, number)
        (machine,), left = await boots(rig)
        assert (run.state, machine["state"], machine["log_tail"]) == ("done", "failed", "the tail")
        assert "no disk" in machine["failure"]
        assert not left
    finally:
        await runs.stop()
        await rig.close()


async def test_machines_of_a_cancelled_run_are_removed(database_url: str, tmp_path: Path) -> None:
    """Also after a restart: whoever comes next finds them by their mark."""
    rig, digest = await booted_rig(database_url, tmp_path)
    rig.robot = False  # so it waits for the machine
    first = ShadowRuns(rig.world, "first", workers=1)
    await first.start()
    try:
        number = await begin(rig.store, digest, "image", actor="user:test", boot=1, on="hv1")
        async with asyncio.timeout(60):
            while not (await boots(rig))[1] or (await boots(rig))[1][0].state != "provisioned":
                await asyncio.sleep(0.1)
        await first.stop()
        await cancel(rig.store, number, actor="user:test")
        async with asyncio.timeout(60):
            second = ShadowRuns(rig.world, "second", workers=1)
            await second.start()
            while (await boots(rig))[1]:
                await asyncio.sleep(0.1)
            await second.stop()
    finally:
        await rig.close()


async def whole(rig: Rig, run: ShadowRun, count: int) -> None:
    """Every host has its one result, and the counts agree with them."""
    assert (run.state, run.done, run.total) == ("done", count, count), run.failure
    diffs, results = await found(rig, run.number)
    assert len({r.host_id for r in results}) == len(results) == count
    assert (
        sum(r.outcome == "changed" for r in results)
        == run.changed
        == sum(d.hosts for d in diffs)
        == count / 3
    )
    assert sum(r.outcome == "unchanged" for r in results) == run.unchanged


async def progressed(rig: Rig, number: int) -> None:
    """Until the first hosts are settled."""
    async with asyncio.timeout(60):
        while (await row(rig, number)).done == 0:
            await asyncio.sleep(0.02)


def children() -> list[int]:
    """Worker processes of this process."""
    mine = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"shadow_worker" in path.with_name("cmdline").read_bytes():
                mine.append(int(path.parent.name))
    return mine
