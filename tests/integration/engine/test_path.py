"""Hosts on their way through the real engine, on fakes and both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import event, text, update
from sqlalchemy.engine import ExceptionContext

from provisiond.drivers.power import PowerState, PowerTarget
from provisiond.errors import Conflict
from provisiond.inventory.tables import Host, utcnow
from provisiond.lifecycle import intents, signals
from provisiond.lifecycle.intents import Verb
from tests.integration.engine.conftest import MakeRig
from tests.integration.engine.rig import KEY, Rig


def says(rig_events: list, kind: str) -> list:
    return [event for event in rig_events if event.kind == kind]


async def built(rig: Rig, name: str) -> None:
    await rig.arrives(name, "ready")
    await intents.request(rig.store, name, Verb.BUILD, actor="user:ann", cause="first build")
    await rig.arrives(name, "active")


@pytest.mark.parametrize("virtual", [False, True], ids=["physical", "virtual"])
async def test_the_whole_life(make_rig: MakeRig, virtual: bool) -> None:
    """Enrolled to active, released to ready, retired: every effect happens once and is undone once."""
    rig = await make_rig()
    host_id = await rig.add("web01", 20, virtual=virtual)
    await built(rig, "web01")
    assert [r.mac for r in await rig.dhcp.reservations()] == ["52:54:00:00:00:14"]
    assert len([c for c in rig.compute.calls if c[0] == "ensure"]) == (1 if virtual else 0)
    deployment = (await rig.deployments("web01"))[0]
    assert (deployment.outcome, deployment.number, deployment.host_keys) == ("active", 1, [KEY])
    assert len(deployment.token_hash) == 64 and deployment.secret_seed and deployment.release_id

    await intents.request(rig.store, "web01", Verb.RELEASE, actor="user:ann")
    await rig.arrives("web01", "ready")
    assert await rig.dhcp.reservations() == []
    await intents.request(rig.store, "web01", Verb.RETIRE, actor="user:ann")
    host = await rig.arrives("web01", "retired")
    assert host.failure is None
    if virtual:
        target = rig.world.compute_of(await resolved(rig, host_id))[1]
        assert await rig.compute.list(target) == []
    path = [(e.data["from"], e.data["to"]) for e in says(await rig.events("web01"), "state.changed")]
    assert [a for a, _ in path][1:] == [b for _, b in path][:-1], "the history has a hole"
    assert path[-1][1] == "retired"


async def resolved(rig: Rig, host_id: str):
    from provisiond.inventory.resolve import resolve_host

    async with rig.store.read() as session:
        return await resolve_host(session, host_id)


async def test_history_tells_who_and_why(make_rig: MakeRig) -> None:
    """The intent carries actor and cause; each step has a start, an end, a duration and its attempt."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await built(rig, "web01")
    events = await rig.events("web01")
    intent = says(events, "intent.build")[0]
    assert (intent.actor, intent.cause) == ("user:ann", "first build")
    begun = [(e.state, e.step, e.attempt) for e in says(events, "step.started")]
    ended = [(e.state, e.step, e.attempt) for e in says(events, "step.ended")]
    assert begun == ended and ("building", "install", 1) in begun
    assert all(e.duration_ms is not None for e in says(events, "step.ended"))
    assert "secret" not in "".join(f"{e.message}{e.data}" for e in events)


async def test_a_passing_trouble_is_tried_again(make_rig: MakeRig) -> None:
    """DriverUnavailable: retried with pauses, each try in the history, and then the host arrives without a failure left."""
    rig = await make_rig()
    await rig.add("web01", 20, options={"busy": "3"})
    host = await rig.arrives("web01", "ready")
    assert (host.failure, host.attempts) == (None, 0)
    failed = says(await rig.events("web01"), "step.failed")
    assert [(e.attempt, e.data["final"]) for e in failed] == [(1, False), (2, False), (3, False)]


async def test_trouble_that_stays_ends_as_a_failure(make_rig: MakeRig) -> None:
    """After max_attempts the failure stands until an operator says retry, and then the host goes on."""
    rig = await make_rig(engine={"max_attempts": 3})
    rig.power.dead.add("web01")
    await rig.add("web01", 20)
    host = await rig.fails("web01")
    assert (host.state, host.attempts, host.failure_kind) == ("enrolled", 3, "unavailable")
    rig.power.dead.clear()
    await intents.request(rig.store, "web01", Verb.RETRY, actor="user:ann")
    await rig.arrives("web01", "ready")


async def test_a_wrong_password_is_final_at_once(make_rig: MakeRig) -> None:
    """DriverRejected is not retried, and the failure says what to do."""
    rig = await make_rig()
    rig.power.password = "another"
    await rig.add("web01", 20)
    host = await rig.fails("web01")
    assert host.attempts == 1 and "provisionctl host update web01 --bmc" in (host.failure or "")


async def test_cancel_cleans_up_half_a_build(make_rig: MakeRig) -> None:
    """A build that is cancelled while it waits leaves no machine, no reservation and an ended deployment."""
    rig = await make_rig(robot=False)
    await rig.add("vm01", 21, virtual=True)
    await rig.arrives("vm01", "ready")
    await intents.request(rig.store, "vm01", Verb.BUILD, actor="user:ann")
    await stands(rig, "vm01", "provisioned", "first-boot")
    await intents.request(rig.store, "vm01", Verb.CANCEL, actor="user:ann")
    await rig.arrives("vm01", "ready")
    assert await rig.dhcp.reservations() == []
    assert [c[0] for c in rig.compute.calls].count("destroy") == 1
    assert (await rig.deployments("vm01"))[0].outcome == "cancelled"


async def stands(rig: Rig, name: str, state: str, step: str, seconds: float = 30) -> Host:
    async with asyncio.timeout(seconds):
        while True:
            host = await rig.row(name)
            if (host.state, host.step) == (state, step) and host.lease_owner is None:
                return host
            await asyncio.sleep(0.01)


async def test_cancel_in_the_middle_of_a_step(make_rig: MakeRig) -> None:
    """A step that is under way loses its write; the clean-up begins only when it has let go, and undoes what it made."""
    rig = await make_rig()
    await rig.add("vm01", 21, virtual=True)
    await rig.arrives("vm01", "ready")
    rig.compute.latency = 2.0
    await intents.request(rig.store, "vm01", Verb.BUILD, actor="user:ann")
    async with asyncio.timeout(30):
        while not [c for c in rig.compute.calls if c[0] == "ensure"]:
            await asyncio.sleep(0.01)
    await intents.request(rig.store, "vm01", Verb.CANCEL, actor="user:ann")
    rig.compute.latency = 0.0
    await rig.arrives("vm01", "ready")
    order = [c[0] for c in rig.compute.calls if c[0] in ("ensure", "destroy")]
    assert order == ["ensure", "destroy"] and rig.reconciler.stale == 1
    assert await rig.dhcp.reservations() == []


async def test_rebuild_makes_a_new_deployment(make_rig: MakeRig) -> None:
    """An active host is built again: a second deployment with another token; the first one is over."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await built(rig, "web01")
    await intents.request(rig.store, "web01", Verb.REBUILD, actor="user:ann")
    await rig.arrives("web01", "active")
    first, second = await rig.deployments("web01")
    assert (first.number, second.number, second.outcome) == (1, 2, "active")
    assert first.token_hash != second.token_hash


async def test_build_waits_for_ready(make_rig: MakeRig) -> None:
    """Build asked of a host that is only enrolled is remembered and followed."""
    rig = await make_rig(start=False)
    await rig.add("web01", 20)
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    await rig.reconciler.start()
    host = await rig.arrives("web01", "active")
    assert host.wanted is None


async def test_what_a_state_does_not_know_is_refused(make_rig: MakeRig) -> None:
    """The refusal names the state and what can be done instead."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    with pytest.raises(
        Conflict, match="web01 is ready and cannot rebuild now; it can: build, inspect, release, retire"
    ):
        await intents.request(rig.store, "web01", Verb.REBUILD, actor="user:ann")


async def test_locked_and_maintenance(make_rig: MakeRig) -> None:
    """A locked host is not built; one in maintenance is left alone by the engine until that is over."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.set_lock(rig.store, "web01", True, actor="user:ann")
    with pytest.raises(Conflict, match="host unlock web01"):
        await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    await intents.set_lock(rig.store, "web01", False, actor="user:ann")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    await intents.set_maintenance(rig.store, "web01", "disk swap", actor="user:ann")
    await asyncio.sleep(0.6)
    await intents.set_maintenance(rig.store, "web01", "", actor="user:ann")
    await rig.arrives("web01", "active")


async def test_power_by_hand(make_rig: MakeRig) -> None:
    """A wish for power of a resting host is carried out, verified and noted; a build under way refuses it."""
    rig = await make_rig(robot=False)
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.set_power(rig.store, "web01", "on", actor="user:ann")
    host = await rig.arrives("web01", "ready")
    async with asyncio.timeout(30):
        while host.power != "on":
            host = await rig.row("web01")
            await asyncio.sleep(0.01)
    assert await rig.power.state(PowerTarget("web01", "web01", password="secret")) is PowerState.ON
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    await stands(rig, "web01", "building", "install")
    with pytest.raises(Conflict, match="in the engine's hands"):
        await intents.set_power(rig.store, "web01", "off", actor="user:ann")


async def test_a_host_that_never_boots(make_rig: MakeRig) -> None:
    """Past its patience the build stands with a failure that says what to look at; retry switches the machine on again."""
    rig = await make_rig(robot=False)
    await rig.add("web01", 20, parameters={"boot_minutes": 0.005})
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    host = await rig.fails("web01")
    assert host.failure_kind == "no-boot" and "MAC 52:54:00:00:00:14 is right" in (host.failure or "")
    cycles = [c for c in rig.power.calls if c.argument == "cycle"]
    rig.robot = True
    async with rig.store.write() as session:  # now it has the time that it needs on a busy machine
        await session.execute(update(Host).where(Host.name == "web01").values(parameters={}))
    await intents.request(rig.store, "web01", Verb.RETRY, actor="user:ann")
    await rig.arrives("web01", "active")
    assert len([c for c in rig.power.calls if c.argument == "cycle"]) == len(cycles) + 1


async def test_a_state_has_a_time_limit(make_rig: MakeRig) -> None:
    """A host that waits past its state's limit ends in a recorded failure."""
    rig = await make_rig(robot=False)
    await rig.add("vm01", 21, virtual=True, parameters={"limits": {"provisioned": 0.01}})
    await rig.arrives("vm01", "ready")
    await intents.request(rig.store, "vm01", Verb.BUILD, actor="user:ann")
    host = await rig.fails("vm01")
    assert (host.state, host.failure_kind) == ("provisioned", "timeout")
    assert says(await rig.events("vm01"), "step.failed")[-1].data["final"] is True


async def test_the_machine_reports_a_failure(make_rig: MakeRig) -> None:
    """The installer's failure, with its log's tail, is the build's failure at once."""
    rig = await make_rig(robot=False)
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    host = await stands(rig, "web01", "building", "install")
    await signals.failed(rig.store, host.deployment_id, "no disk found", "line 1\nline 2")
    host = await rig.fails("web01")
    assert "no disk found" in (host.failure or "")
    assert (await rig.deployments("web01"))[0].log_tail == "line 1\nline 2"


async def test_a_boot_loop_is_noticed(make_rig: MakeRig) -> None:
    """The third request for the installer in one build is a failure, reported once."""
    rig = await make_rig(robot=False)
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    host = await stands(rig, "web01", "building", "install")
    for count in (1, 2, 3, 4):
        assert await signals.boot_asked(rig.store, host.id, host.deployment_id, "installer", limit=3) == count
    host = await rig.fails("web01")
    assert "3 times in one build" in (host.failure or "")
    assert len(says(await rig.events("web01"), "boot.loop")) == 1


async def test_signals_come_early_twice_and_late(make_rig: MakeRig) -> None:
    """A callback before its step waits, one that comes twice counts once, one of an ended deployment changes nothing."""
    rig = await make_rig(robot=False)
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    host = await stands(rig, "web01", "building", "install")
    await signals.phone_home(rig.store, host.deployment_id, [KEY])  # before built: proves built
    await signals.phone_home(rig.store, host.deployment_id, ["ssh-ed25519 other"])
    await signals.built(rig.store, host.deployment_id)
    await rig.arrives("web01", "active")
    assert (await rig.deployments("web01"))[0].host_keys == [KEY]
    await signals.failed(rig.store, host.deployment_id, "too late", "")
    await signals.progress(rig.store, "no such deployment", 10, "x")
    assert (await rig.row("web01")).failure is None
    assert len(says(await rig.events("web01"), "callback.phone-home")) == 1


async def test_a_failing_handover(make_rig: MakeRig) -> None:
    """Its output is in the history, its failure stands, and retry is a new run."""
    rig = await make_rig()
    rig.handover.fails.add("web01")
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    host = await rig.fails("web01")
    assert host.state == "configuring" and "task 'fake' failed" in (host.failure or "")
    assert says(await rig.events("web01"), "handover.output")
    rig.handover.fails.clear()
    await intents.request(rig.store, "web01", Verb.RETRY, actor="user:ann")
    await rig.arrives("web01", "active")
    assert len({key for call, key in rig.handover.calls if call == "apply"}) == 2


async def test_a_template_that_lacks_a_parameter(make_rig: MakeRig) -> None:
    """The build fails before anything happens to the machine, naming template and host."""
    rig = await make_rig()
    await rig.add("web01", 20, parameters={"packages": "not a list"})
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    host = await rig.fails("web01")
    assert host.failure_kind == "template" and "packages" in (host.failure or "")
    assert not [c for c in rig.power.calls if c.what in ("set", "set_boot")]


async def test_limits_per_hypervisor_and_controller(make_rig: MakeRig) -> None:
    """Never more hosts of one hypervisor in work than its limit, however many are due."""
    rig = await make_rig(start=False, engine={"per_hypervisor": 2})
    at_once = peak = 0

    async def watch(when: str, host: object, step: str, outcome: object) -> None:
        nonlocal at_once, peak
        at_once += {"before": 1, "after": -1}.get(when, 0)
        peak = max(peak, at_once)

    rig.boundary = watch
    rig.compute.latency = 0.03
    for number in range(8):
        await rig.add(f"vm{number}", 30 + number, virtual=True)
    await rig.reconciler.start()
    for number in range(8):
        await rig.arrives(f"vm{number}", "ready")
    assert peak == 2


async def test_a_dead_controller_delays_nobody(make_rig: MakeRig) -> None:
    """Hosts whose controllers hang do not keep the others from arriving."""
    rig = await make_rig(engine={"max_attempts": 50})
    rig.power.dead |= {f"dead{n}" for n in range(5)}
    for number in range(5):
        await rig.add(f"dead{number}", 60 + number)
    for number in range(20):
        await rig.add(f"live{number}", 70 + number)
    for number in range(20):
        await rig.arrives(f"live{number}", "ready")


async def test_a_late_write_is_refused(make_rig: MakeRig) -> None:
    """A worker whose lease was taken over cannot write: the version fences it."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    rig.power.latency = 2.0
    await intents.set_power(rig.store, "web01", "on", actor="user:ann")
    async with asyncio.timeout(30):
        while (await rig.row("web01")).lease_owner is None:
            await asyncio.sleep(0.01)
    async with rig.store.write() as session:  # as another daemon's claim would
        stolen = update(Host).where(Host.name == "web01")
        await session.execute(
            stolen.values(
                version=Host.version + 1, lease_owner="other", lease_expires=utcnow() + timedelta(seconds=30)
            )
        )
    async with asyncio.timeout(30):
        while not rig.reconciler.stale or rig.reconciler.busy:
            await asyncio.sleep(0.01)
    host = await rig.row("web01")
    assert (host.lease_owner, host.power_wanted) == ("other", "on")
    assert rig.reconciler.stale == 1


async def test_a_graceful_stop_frees_its_hosts(make_rig: MakeRig) -> None:
    """Stopped in the middle of a long step, the engine gives the lease back for the next daemon."""
    rig = await make_rig()
    rig.power.latency = 30.0
    await rig.add("web01", 20)
    async with asyncio.timeout(30):
        while (await rig.row("web01")).lease_owner is None:
            await asyncio.sleep(0.01)
    await rig.reconciler.stop(0.1)
    host = await rig.row("web01")
    assert host.lease_owner is None and host.due_at is not None


async def test_a_handover_of_a_host_in_service_is_called_off(make_rig: MakeRig) -> None:
    """Cancel of a configure, running or failed, leaves the host in service: nothing of it is taken down."""
    rig = await make_rig()
    await rig.add("vm01", 21, virtual=True)
    await built(rig, "vm01")
    rig.handover.polls = 1000
    await intents.request(rig.store, "vm01", Verb.CONFIGURE, actor="user:ann")
    async with asyncio.timeout(30):
        while len([c for c in rig.handover.calls if c[0] == "apply"]) < 2:
            await asyncio.sleep(0.01)
    await intents.request(rig.store, "vm01", Verb.CANCEL, actor="user:ann")
    host = await rig.arrives("vm01", "active")
    assert host.wanted is None and "cancel" in [call for call, _ in rig.handover.calls]
    assert "destroy" not in [c[0] for c in rig.compute.calls]
    assert len(await rig.dhcp.reservations()) == 1

    rig.handover.polls = 0
    rig.handover.fails.add("vm01")
    await intents.request(rig.store, "vm01", Verb.CONFIGURE, actor="user:ann")
    await rig.fails("vm01")
    await intents.request(rig.store, "vm01", Verb.CANCEL, actor="user:ann")
    assert (await rig.arrives("vm01", "active")).failure is None


async def test_a_remembered_build_is_called_off(make_rig: MakeRig) -> None:
    """Cancel before the host is ready: it becomes ready and is not built."""
    rig = await make_rig(start=False)
    await rig.add("web01", 20)
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")
    await intents.request(rig.store, "web01", Verb.CANCEL, actor="user:ann")
    await rig.reconciler.start()
    host = await rig.arrives("web01", "ready")
    assert host.wanted is None and await rig.deployments("web01") == []


async def test_what_was_seen_during_a_step_is_kept(make_rig: MakeRig) -> None:
    """A step that tells nothing of power does not put back the state it began with."""
    rig = await make_rig()
    await rig.add("vm01", 21, virtual=True)
    rig.compute.latency = 0.4
    async with asyncio.timeout(30):
        while (await rig.row("vm01")).lease_owner is None:
            await asyncio.sleep(0.01)
    async with rig.store.write() as session:
        await session.execute(update(Host).where(Host.name == "vm01").values(power="on"))
    assert (await rig.arrives("vm01", "ready")).power == "on"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_renewing_leases_and_storing_outcomes_do_not_wait_for_each_other(make_rig: MakeRig) -> None:
    """Both change many hosts at once; in another order each would hold what the other wants, until PostgreSQL breaks one off."""
    rig = await make_rig(start=False)
    ledger = rig.reconciler.ledger
    ids = sorted([await rig.add("web01", 20), await rig.add("web02", 21)])
    held = {"lease_owner": ledger.owner, "version": 1}
    async with (
        rig.store.write() as session
    ):  # the one that comes later is written first: so it is found first
        for host_id in reversed(ids):
            await session.execute(update(Host).where(Host.id == host_id).values(**held))
    errors: list[str] = []

    @event.listens_for(rig.store._writer.sync_engine, "handle_error")
    def remember(context: ExceptionContext) -> None:
        errors.append(str(context.original_exception))

    async with rig.store.write() as session:
        await session.execute(update(Host).where(Host.id == ids[0]).values(version=2))
        renewing = asyncio.create_task(ledger.renew(ids))
        await waits_for_a_lock(rig)
        await session.execute(update(Host).where(Host.id == ids[1]).values(version=2))
    await renewing
    assert errors == []


async def waits_for_a_lock(rig: Rig) -> None:
    """Until some session of the database waits for another."""
    async with asyncio.timeout(30):
        while True:
            async with rig.store.connect() as connection:
                blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                if (await connection.execute(blocked)).scalar():
                    return
            await asyncio.sleep(0.01)
