"""configuring: the machine is in the hands of configuration management."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.drivers.handover import HandoverTarget, Run, RunState
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle import rows
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Note, Outcome, Step, Write
from provisiond.lifecycle.table import Verb
from provisiond.lifecycle.world import World

POLL_SECONDS = 2.0


async def handover(host: ResolvedHost, world: World) -> Outcome:
    """Begins the run, or looks how it stands; its output goes into the history as it comes."""
    name, driver = world.handover_of(host)
    deployment = host.deployment
    assert deployment is not None
    if host.row.wanted == Verb.CANCEL:
        if driver is not None:
            await driver.cancel(run_key(host))
        return Complete(f"{name} called off; the host stays in service", host={"wanted": None})
    if driver is None:
        world.consoles.leave(host.id)
        return Complete("no handover wanted", write=_end(deployment.id, {}))
    offset = deployment.handover_offset
    target = _target(host, world, name)
    await driver.apply(target)
    run = await driver.poll(target.key, offset)
    notes = (Note("handover.output", run.output, {"offset": run.offset}),) if run.output else ()
    match run.state:
        case RunState.RUNNING:
            return Continue(
                f"{name} is running",
                after=POLL_SECONDS,
                notes=notes,
                write=_keep_offset(deployment.id, run.offset),
            )
        case RunState.SUCCEEDED:
            world.consoles.leave(host.id)
            return Complete(
                run.message or f"{name} succeeded", notes=notes, write=_end(deployment.id, dict(run.stats))
            )
        case _:
            return Failed(
                f"{name} on host {host.name}: {run.message or run.state}; see 'provisionctl host history {host.name}', "
                f"mend it, then 'provisionctl host retry {host.name}'",
                retryable=False, kind="handover", notes=notes, write=_keep_result(deployment.id, run),
            )  # fmt: skip


def run_key(host: ResolvedHost) -> str:
    """Names the run for good: this deployment, and which time a run was asked for (configure and retry begin a new one)."""
    assert host.deployment is not None
    return f"{host.deployment.id}-{host.deployment.runs}"


def _target(host: ResolvedHost, world: World, driver: str) -> HandoverTarget:
    assert host.deployment is not None
    settings = host.parameters.get(driver, {})
    limit = world.settings.handover.timeout_seconds
    ssh_key = world.settings.handover.ssh_key or world.settings.state.dir / "ssh" / "id_ed25519"
    return HandoverTarget(
        key=run_key(host), host=host.name, address=host.ip or host.fqdn, user=str(host.parameters.get("ssh_user", "root")),
        ssh_key=str(ssh_key), host_keys=tuple(host.deployment.host_keys), groups=tuple(host.groups),
        parameters=host.parameters, settings=settings if isinstance(settings, dict) else {}, timeout=limit,
    )  # fmt: skip


def _keep_offset(deployment_id: str, offset: int) -> Write:
    async def write(session: AsyncSession) -> None:
        await rows.set_deployment(session, deployment_id, handover_offset=offset)

    return write


def _keep_result(deployment_id: str, run: Run) -> Write:
    async def write(session: AsyncSession) -> None:
        values = {"handover_offset": 0, "result": dict(run.stats)}
        await rows.set_deployment(session, deployment_id, **values)

    return write


def _end(deployment_id: str, stats: dict[str, object]) -> Write:
    """The host goes into service with this outcome: its deployment is over."""

    async def write(session: AsyncSession) -> None:
        values = {"handover_offset": 0, "result": stats, "ended_at": utcnow(), "outcome": "active"}
        await rows.set_deployment(session, deployment_id, **values)

    return write


STEPS = (Step("handover", handover, timeout=180.0),)
