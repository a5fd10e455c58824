"""Throw-away machines of a shadow run: made like hosts of the fleet, built with the release under trial, looked at, and removed.

They are hosts like any other, so they go through the real engine and the real boot path. Their names are ``shadow-RUN-N`` and
their parameter MARK is the run's number; whatever happens to the run, ``sweep`` retires and deletes those that are no longer
looked at, also after a restart.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, NotFound, ProvisiondError
from provisiond.inventory.hosts import create_hosts, delete_host
from provisiond.inventory.release_tables import ShadowResult, ShadowRun
from provisiond.inventory.resolve import ResolvedHost, resolve_host
from provisiond.inventory.shapes import HostCreate, InterfaceSpec
from provisiond.inventory.store import EVENTS, HOSTS
from provisiond.inventory.tables import Deployment, Flavor, Host, table
from provisiond.lifecycle import intents, rows
from provisiond.lifecycle.states.building import deployment_row, open_deployment
from provisiond.lifecycle.table import State, Verb
from provisiond.lifecycle.world import World

log = structlog.get_logger(__name__)

MARK = "provisiond_shadow_run"
ACTOR = "daemon"
LIMIT_SECONDS = 30 * 60.0  # for one machine, from its making to service
CLEAN_SECONDS = 10 * 60.0  # a run waits so long for its machines to be gone; the sweep goes on after that
LOOK_SECONDS = 1.0
TAIL = 4000  # characters of the log that are kept
_NAME = re.compile(r"shadow-[0-9]+-[0-9]+")

_host, _deployment, _result, _run, _flavor = (
    table(t) for t in (Host, Deployment, ShadowResult, ShadowRun, Flavor)
)

Keep = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Stores the boots with the run; raises when the run is no longer ours."""


async def boot(world: World, run: Any, keep: Keep) -> None:
    """Make ``run.boot`` machines, wait until each has arrived, failed or run out of time, and remove them.

    What is known of them is kept at every change, so that another daemon goes on with the same machines.
    """
    boots: list[dict[str, Any]] = list(run.report.get("boots", []))
    if len(boots) < run.boot:
        samples = await _samples(world, run)
        if not samples:
            raise Conflict(
                f"shadow run {run.number} found no host that could be built with the release: nothing to boot like"
            )
        for number in range(len(boots), run.boot):
            like = samples[number % len(samples)]
            boots.append(
                {
                    "host": f"shadow-{run.number}-{number + 1}",
                    "like": like,
                    "state": "to be made",
                    "began": time.time(),
                }
            )
        await keep(boots)
    await asyncio.gather(*(_begin(world, run, one) for one in boots if not one.get("ended")))
    before: Any = None
    while any(not one.get("ended") for one in boots):
        for one in boots:
            if not one.get("ended"):
                await _look(world, run, one)
        if boots != before:
            await keep(boots)
            before = [dict(one) for one in boots]
        await asyncio.sleep(LOOK_SECONDS)
    await keep(boots)
    until = time.monotonic() + CLEAN_SECONDS
    while time.monotonic() < until:
        if not await _sweep_those(world, lambda number: number == run.number):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def sweep(world: World) -> None:
    """Retire and delete machines of runs that are over, or that are not to be looked at any more."""
    async with world.store.connect() as connection:
        found = await connection.execute(
            select(_run.c.number).where(_run.c.state == "running", _run.c.boot > 0)
        )
        running = set(found.scalars())
    await _sweep_those(world, lambda number: number not in running)


async def _sweep_those(world: World, theirs: Callable[[int], bool]) -> int:
    """Ask for the removal of the machines that ``theirs(run)`` tells; how many there still are."""
    async with world.store.connect() as connection:
        found = select(
            _host.c.id, _host.c.name, _host.c.state, _host.c.due_at, _host.c.lease_owner, _host.c.parameters
        )
        hosts = (await connection.execute(found.where(_host.c.name.like("shadow-%")))).all()
    mine = [
        h for h in hosts if _NAME.fullmatch(h.name) and MARK in h.parameters and theirs(h.parameters[MARK])
    ]
    for host in mine:
        try:
            if host.state != State.RETIRED:
                await intents.request(world.store, host.id, Verb.RETIRE, actor=ACTOR, cause="shadow run")
            elif host.due_at is None and host.lease_owner is None:
                await delete_host(world.store, host.id, actor=ACTOR)
        except (NotFound, Conflict) as error:  # somebody was quicker, or has locked it
            log.info("shadow.not_removed", host=host.name, why=str(error))
    return len(mine)


# --- inner -----------------------------------------------------------------------------------------------


async def _samples(world: World, run: Any) -> list[str]:
    """Ids of hosts that the release can be rendered for, those that it changes first."""
    of_run = (_result.c.run_id == run.id, _result.c.outcome != "failing")
    found = (
        select(_result.c.host_id)
        .where(*of_run)
        .order_by(_result.c.outcome, _result.c.host_id)
        .limit(run.boot)
    )
    async with world.store.connect() as connection:
        return list((await connection.execute(found)).scalars())


async def _begin(world: World, run: Any, one: dict[str, Any]) -> None:
    """Make the host, if it is not there yet."""
    try:
        async with world.store.read() as session:
            there = (await session.execute(select(_host.c.id).where(_host.c.name == one["host"]))).first()
            if there is None:
                sample = await resolve_host(session, one["like"])
                flavor = (
                    await session.execute(
                        select(_flavor.c.name).order_by(_flavor.c.memory_mib.desc()).limit(1)
                    )
                ).scalar()
        if there is None:
            one["like_name"] = sample.name
            await create_hosts(
                world.store, world.box, [_spec(sample, run, one["host"], flavor)], actor=ACTOR, many=False
            )
    except ProvisiondError as error:
        _end(one, "not made", str(error))


def _spec(sample: ResolvedHost, run: Any, name: str, flavor: str | None) -> HostCreate:
    """A virtual machine like ``sample``, with cards on its subnets. Its own network description stays behind: it may name addresses."""
    on = run.report.get("on") or (sample.hypervisor.name if sample.hypervisor else None)
    if on is None:
        raise Conflict(
            f"host {sample.name} is no virtual machine: say on which hypervisor to make one like it (--on)"
        )
    cards = [
        InterfaceSpec(name=i.name, subnet=i.subnet.name if i.subnet else None, primary=i.primary)
        for i in sample.interfaces
    ]
    return HostCreate(
        name=name,
        comment=f"throw-away machine of shadow run {run.number}, like {sample.name}",
        group=sample.groups[-1] if sample.groups else None,
        domain=sample.domain.name if sample.domain else None,
        operating_system=sample.operating_system.name if sample.operating_system else None,
        medium=sample.medium.name if sample.medium else None,
        image=sample.image.name if sample.image else None,
        flavor=sample.flavor.name if sample.flavor else flavor,
        on=on,
        handover="none",
        storage=sample.row.storage,
        interfaces=cards or None,
        firmware=sample.row.firmware,
        architecture=sample.row.architecture,
        method=sample.row.method,
        parameters={**sample.row.parameters, MARK: run.number},
    )


async def _look(world: World, run: Any, one: dict[str, Any]) -> None:
    """Note how far the machine is; begin its build when it is ready."""
    async with world.store.read() as session:
        host = (await session.execute(select(_host).where(_host.c.name == one["host"]))).first()
        if host is None:
            _end(one, "gone", "somebody has deleted it")
            return
        found = select(_deployment).where(_deployment.c.id == host.deployment_id)
        deployment = (await session.execute(found)).first() if host.deployment_id else None
    if (
        host.state == State.READY
        and host.due_at is None
        and host.lease_owner is None
        and not one.get("built")
    ):
        one["built"] = True
        await _build(world, host, run.release_id)
        return
    one |= {"state": host.state, "step": host.step}
    if deployment is not None:
        one |= {"progress": deployment.progress, "progress_text": deployment.progress_text}
        one["log_tail"] = deployment.log_tail[-TAIL:]
    if host.state == State.ACTIVE:
        _end(one, "active", "")
    elif host.failure and host.due_at is None:
        _end(one, "failed", host.failure)
    elif time.time() - one["began"] > LIMIT_SECONDS:
        _end(one, host.state, f"time was up after {LIMIT_SECONDS / 60:.0f} minutes")


async def _build(world: World, host: Any, release_id: str) -> None:
    """Begin a build that is pinned to the release, whatever is current for the host."""

    async def work(session: AsyncSession) -> None:
        await intents.ask(session, host.id, Verb.BUILD, actor=ACTOR, cause="shadow run")
        row = deployment_row(host.id, release_id, host.method, world)
        await open_deployment(session, row)
        await rows.set_host(session, host.id, deployment_id=row["id"])

    try:
        await world.store.transact(work, HOSTS, EVENTS)
    except Conflict as error:  # somebody asked something else of it
        log.info("shadow.not_built", host=host.name, why=str(error))


def _end(one: dict[str, Any], state: str, failure: str) -> None:
    one |= {
        "state": state,
        "failure": failure,
        "ended": True,
        "seconds": round(time.time() - one["began"], 1),
    }
