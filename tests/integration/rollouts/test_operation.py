"""Rollouts in operation: who is left alone, who decides where, what is stopped, and by how many daemons."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select

from provisiond.errors import Conflict, Invalid
from provisiond.inventory import flags
from provisiond.inventory.flags import FlagCreate, FlagUpdate
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove
from provisiond.inventory.resolve import resolve_host
from provisiond.inventory.tables import Deployment, Event, HostGroup
from provisiond.lifecycle import intents
from provisiond.lifecycle.intents import Verb
from provisiond.rollouts import requests
from provisiond.rollouts.controller import Rollouts
from provisiond.templating.pointers import move_pointer
from tests.integration.rollouts.conftest import MakeFleet
from tests.integration.rollouts.fleet import Fleet


async def current(fleet: Fleet, host_id: str) -> str:
    """The release a build of the host would get now."""
    async with fleet.store.read() as session:
        host = await resolve_host(session, host_id)
    return await fleet.renderings.current_for(host)


async def builds_of(fleet: Fleet, release_id: str) -> Counter[str]:
    """How often each host was built with the release."""
    async with fleet.store.read() as session:
        found = select(Deployment.host_id).where(Deployment.release_id == release_id)
        return Counter((await session.execute(found)).scalars())


async def test_locked_hosts_and_those_in_maintenance_are_left_alone(make_fleet: MakeFleet) -> None:
    """They get the release when somebody builds them; the step is judged by the others, or pauses when there are none."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    ids = await fleet.stand(4, web)
    hosts = await fleet.hosts()
    await intents.set_lock(fleet.store, ids[0], True, actor="test")
    await intents.set_maintenance(fleet.store, ids[1], "new disk", actor="test")
    good = await fleet.release("good")
    await fleet.start_rollout(release=str(good.number), group="web", steps=["100%"], rebuild=4)
    view = await fleet.reaches(1)
    assert view.state == "done"
    assert set(await builds_of(fleet, good.id)) == set(ids[2:])
    next_one = await fleet.release("next")
    for host_id in ids[2:]:
        await intents.set_lock(fleet.store, host_id, True, actor="test")
    await fleet.start_rollout(release=next_one.digest, group="web", steps=["100%"], rebuild=4)
    view = await fleet.reaches(2, "paused")
    assert "too few builds: 0 of 1 have ended; 4 hosts are locked or in maintenance" in view.why
    assert view.numbers["left_alone"][hosts[ids[1]].name] == "in maintenance: new disk"
    await requests.act(fleet.store, 2, "approve", actor="user:eva", reason="they are spares")
    assert (await fleet.reaches(2)).state == "done"


async def test_builds_by_others_are_counted_and_pauses_resume(make_fleet: MakeFleet) -> None:
    """Without --rebuild it asks nobody: an operator's own build of a host in the portion decides the gate."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    ids = await fleet.stand(5, web)
    good = await fleet.release("good")
    await fleet.start_rollout(release=str(good.number), group="web", steps=["1", "100%"])
    view = await fleet.reaches(1, "paused")
    assert "too few builds: 0 of 1" in view.why
    [taken] = [i for i in ids if await current(fleet, i) == good.id]
    other = next(i for i in ids if i != taken)
    for host_id in (taken, other):
        await intents.request(fleet.store, host_id, Verb.REBUILD, actor="user:eva")
    for host_id in (taken, other):
        await fleet.arrives((await fleet.hosts())[host_id].name, "active", 60)
    assert set(await builds_of(fleet, good.id)) == {taken}
    await requests.act(fleet.store, 1, "resume", actor="user:eva")
    view = await fleet.reaches(1, "paused")
    assert view.step.startswith("100%"), "the step went on, and the next one has seen nothing yet"
    await requests.act(fleet.store, 1, "back", actor="user:eva", reason="enough")
    assert (await fleet.reaches(1)).state == "back"
    assert {await current(fleet, i) for i in ids} != {good.id}
    assert len(await fleet.told("rollout.report")) == 1


async def test_the_nearest_rollout_and_pointer_win(make_fleet: MakeFleet) -> None:
    """A group's own pointer keeps its hosts out of a rollout above it, and a rollout below goes its own way."""
    fleet = await make_fleet()
    top = await fleet.group("top")
    kept = await fleet.group("kept", top)
    below = await fleet.group("below", top)
    of_top, of_kept = await fleet.stand(3, top), await fleet.stand(3, kept, first=3)
    of_below = await fleet.stand(3, below, first=6)
    one, two = await fleet.release("one"), await fleet.release("two")

    async def pin(session: object) -> None:
        await move_pointer(session, kept, await first(fleet), actor="user:eva")  # type: ignore[arg-type]

    await fleet.store.transact(pin, "releases", "events")
    common = {"steps": ["100%"], "gates": ["approval"]}
    await fleet.start_rollout(release=str(one.number), group="top", **common)
    await fleet.start_rollout(release=str(two.number), group="below", **common)
    assert (await fleet.reaches(2, "waiting")).numbers["hosts"] == 3
    assert (await fleet.reaches(1, "waiting")).numbers["hosts"] == 3
    assert {await current(fleet, i) for i in of_top} == {one.id}
    assert {await current(fleet, i) for i in of_kept} == {await first(fleet)}
    assert {await current(fleet, i) for i in of_below} == {two.id}
    await requests.act(fleet.store, 2, "cancel", actor="user:eva")
    assert (await fleet.reaches(2)).state == "cancelled"
    assert {await current(fleet, i) for i in of_below} == {one.id}


async def first(fleet: Fleet) -> str:
    found = await fleet.pointer(EVERYWHERE)
    assert found is not None
    return found


async def test_one_at_a_place_and_a_group_that_goes(make_fleet: MakeFleet) -> None:
    """A second rollout there is refused, also at the same moment; when the group is deleted it is cancelled with the reason."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    good = await fleet.release("good")
    spec = {
        "release": str(good.number),
        "group": "web",
        "steps": ["100%"],
        "gates": ["approval"],
        "window_seconds": 600,
    }
    made = await asyncio.gather(*(fleet.start_rollout(**spec) for _ in range(3)), return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in made) == 1
    assert all(isinstance(one, Conflict) for one in made if isinstance(one, BaseException)), made
    with pytest.raises(Conflict, match="is current everywhere already"):
        await fleet.start_rollout(**{**spec, "release": "1", "group": None})
    with pytest.raises(Invalid):
        await fleet.start_rollout(**{**spec, "release": "4711"})
    async with fleet.store.write("events") as session:
        await session.execute(delete(HostGroup).where(HostGroup.id == web))
    fleet.rollouts._signal.set()
    view = await fleet.reaches(1)
    assert view.state == "cancelled" and "the group web was deleted" in view.why
    assert (await fleet.rollout()).active_place is None


async def test_going_back_rebuilds_what_was_built(make_fleet: MakeFleet) -> None:
    """With --rebuild-back hosts in service on the release, and those that failed with it, are built with what was before."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    ids = await fleet.stand(6, web)
    before = await first(fleet)
    bad = await fleet.release("bad")
    await fleet.start_rollout(
        release=str(bad.number),
        group="web",
        steps=["2", "100%"],
        rebuild=2,
        rebuild_back=True,
        gates=["success>=95%", "approval"],
    )
    await fleet.reaches(1, "waiting")
    assert len(await builds_of(fleet, bad.id)) == 2
    fleet.broken.add(bad.id)
    await requests.act(fleet.store, 1, "approve", actor="user:eva")
    view = await fleet.reaches(1)
    assert view.state == "back"
    touched = await builds_of(fleet, bad.id)
    assert 3 <= len(touched) <= 4 and set(touched.values()) == {1}
    hosts = await fleet.hosts()
    async with fleet.store.read() as session:
        now = {
            host_id: (await session.get(Deployment, hosts[host_id].deployment_id)).release_id  # type: ignore[union-attr]
            for host_id in ids
        }
    assert set(now.values()) == {before}
    assert all(hosts[i].state == "active" and hosts[i].failure is None for i in ids)


async def test_a_handover_that_fails(make_fleet: MakeFleet) -> None:
    """The machine was built, but its configuration failed: the gates on the handover see it, and the report names the host."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    await fleet.stand(3, web)
    fleet.handover.fails = {f"h{n:03}" for n in range(3)}
    bad = await fleet.release("bad")
    await fleet.start_rollout(
        release=str(bad.number),
        group="web",
        steps=["1", "100%"],
        rebuild=1,
        gates=["handover.failed<=0"],
        window_seconds=600,
    )
    view = await fleet.reaches(1)
    assert view.state == "back" and "handover.failed<=0 failed: 1 tasks failed in 1 handovers" in view.why
    [host] = (await fleet.rollout()).report["hosts"]
    assert "task 'fake' failed" in host["failure"] or "1 tasks of its handover failed" in host["failure"]


async def test_a_build_keeps_the_flags_it_began_with(make_fleet: MakeFleet) -> None:
    """They are stored with the deployment; a change in the middle of a build is for the next one."""
    fleet = await make_fleet()
    [host_id] = await fleet.stand(1, None)
    await flags.create(fleet.store, FlagCreate(name="disk", percent=100), actor="user:eva")
    fleet.robot = False
    await intents.request(fleet.store, host_id, Verb.REBUILD, actor="user:eva")
    for _ in range(600):
        if (await fleet.hosts())[host_id].step == "install":
            break
        await asyncio.sleep(0.05)
    await flags.change(fleet.store, "disk", FlagUpdate(percent=0), actor="user:eva")
    async with fleet.store.read() as session:
        host = await resolve_host(session, host_id, fleet.store.known)
    assert (
        host.deployment is not None
        and host.deployment.flags == {"disk": True}
        and host.flags == {"disk": False}
    )


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_of_several_daemons_one_drives(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """Two controllers on one database, and the one that drives goes away in the middle: each host is asked once, each step taken once."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    ids = await fleet.stand(8, web)
    good = await fleet.release("good")
    other = Rollouts(fleet.store, fleet.settings.rollout, "another", lease_seconds=4.0, sweep_seconds=0.1)
    await other.start()
    await fleet.start_rollout(release=str(good.number), group="web", steps=["1", "50%", "100%"], rebuild=2)
    while len(await fleet.told("rollout.step")) < 2:
        await asyncio.sleep(0.05)
    await fleet.rollouts.stop()
    view = await fleet.reaches(1)
    await other.stop()
    assert view.state == "done"
    assert await builds_of(fleet, good.id) == Counter(ids)
    async with fleet.store.read() as session:
        asked = (
            await session.execute(
                select(func.count()).select_from(Event).where(Event.kind == "intent.rebuild")
            )
        ).scalar()
        moves = (
            await session.execute(
                select(func.count()).select_from(PointerMove).where(PointerMove.place == web)
            )
        ).scalar()
    assert asked == 8 and moves == 1
    assert [e.data["hosts"] for e in await fleet.told("rollout.step")] == [1, 4, 8]


async def test_a_release_can_be_tried_again(make_fleet: MakeFleet) -> None:
    """What failed in an earlier rollout of the same release is not held against the next one."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    ids = await fleet.stand(2, web)
    release = await fleet.release("flaky", broken=True)
    common = {
        "release": str(release.number),
        "group": "web",
        "steps": ["1", "100%"],
        "rebuild": 1,
        "rebuild_back": True,
    }
    await fleet.start_rollout(**common)
    assert (await fleet.reaches(1)).state == "back"
    fleet.broken.clear()
    await fleet.start_rollout(**common)
    view = await fleet.reaches(2)
    assert view.state == "done", view.why
    assert sorted((await builds_of(fleet, release.id)).values()) == [1, 2]
    assert set(await builds_of(fleet, release.id)) == set(ids)
