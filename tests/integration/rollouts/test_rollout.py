"""Rollouts on the real engine and both databases: a broken release stops at its first step, a good one arrives everywhere."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select

from provisiond.inventory.resolve import resolve_host
from provisiond.inventory.tables import Deployment
from tests.integration.rollouts.conftest import MakeFleet


async def test_a_broken_release_stops_at_its_first_step(make_fleet: MakeFleet) -> None:
    """Of 200 hosts one is rebuilt, fails, and everything is as before: nobody else is touched, one report is opened."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    ids = await fleet.stand(200, web)
    before = await fleet.hosts()
    bad = await fleet.release("broken", broken=True)
    await fleet.start_rollout(
        release=str(bad.number),
        group="web",
        steps=["1", "5%", "100%"],
        gates=["success>=95%"],
        window_seconds=600,
        rebuild=5,
    )
    view = await fleet.reaches(1)
    assert view.state == "back"
    assert "success>=95% failed: 0 of 1 builds came into service, 1 failed" in view.why
    after = await fleet.hosts()
    touched = [
        i
        for i in ids
        if after[i].version != before[i].version or after[i].deployment_id != before[i].deployment_id
    ]
    assert len(touched) == 1
    assert after[touched[0]].state == "building" and "status 1" in (after[touched[0]].failure or "")
    report = (await fleet.rollout()).report
    [host] = report["hosts"]
    assert (
        host["host_id"] == touched[0]
        and host["log_tail"].endswith("exit 1\n")
        and "status 1" in host["failure"]
    )
    kinds = Counter(event.kind for event in await fleet.told())
    assert kinds == {
        f"rollout.{k}": 1 for k in ("started", "step", "gate", "going-back", "report", "gone-back")
    }
    assert await fleet.pointer(web) is None
    host_row = after[touched[0]]
    async with fleet.store.read() as session:
        resolved = await resolve_host(session, host_row.id)
    assert await fleet.renderings.current_for(resolved) != bad.id


async def test_a_good_release_arrives_everywhere(make_fleet: MakeFleet) -> None:
    """Step by step every host is rebuilt once, and at the end the group's pointer is the release."""
    fleet = await make_fleet()
    web = await fleet.group("web")
    front = await fleet.group("front", web)
    ids = await fleet.stand(30, web) + await fleet.stand(10, front, first=30)
    others = await fleet.stand(5, None, first=40)
    good = await fleet.release("good")
    await fleet.start_rollout(
        release=str(good.number), group="web", steps=["1", "5%", "25%", "100%"], rebuild=8,
        gates=["success>=95%", "duration<=1.5x", "handover>=90%", "handover.failed<=0"],
    )  # fmt: skip
    view = await fleet.reaches(1)
    assert view.state == "done", view.why
    after = await fleet.hosts()
    async with fleet.store.read() as session:
        builds = list((await session.execute(select(Deployment))).scalars())
    made = Counter(b.host_id for b in builds if b.release_id == good.id)
    assert made == Counter(ids)
    assert all(after[i].state == "active" for i in ids)
    assert not set(made) & set(others)
    assert await fleet.pointer(web) == good.id
    steps = [e.data["hosts"] for e in await fleet.told("rollout.step")]
    assert steps == [1, 2, 10, 40]
