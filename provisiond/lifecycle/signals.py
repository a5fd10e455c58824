"""What machines tell: callbacks of the installer, the ramdisk and the first boot, delivered once each.

Every delivery takes the host's row first (so that a wake-up is never lost against a step that is just parking), stores what was
told in the deployment, and adds the event with a key that makes a repetition harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory import history
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle import rows

LOG_TAIL = 64 * 1024


async def boot_asked(store: Store, host_id: str, deployment_id: str, what: str, *, limit: int = 3) -> int:
    """The machine asked for its ``what`` (installer, image); returns how often in this build.

    Asked ``limit`` times it is a boot loop: recorded as the build's failure, and reported once.
    """
    count = 0

    async def tell(session: AsyncSession, host: Any, deployment: Any) -> None:
        nonlocal count
        count = deployment.boots + 1
        await rows.set_deployment(session, deployment.id, boots=count)
        await _event(
            session, host, deployment, "boot.asked", f"boot {count}: {what}", {"what": what, "boots": count}
        )
        if count >= limit and deployment.failed_at is None:
            await _fail(
                session, deployment,
                f"host {host.name} asked for its {what} {count} times in one build: it does not boot what was built; "
                "look at its console and boot order, then retry", "",
            )  # fmt: skip
            await _event(
                session, host, deployment, "boot.loop", f"{count} boots in one build", {"boots": count}
            )

    await _deliver(store, deployment_id, tell, revive=False)
    return count


async def progress(store: Store, deployment_id: str, percent: int, text: str) -> None:
    """The machine is ``percent`` along; text says with what. Going backwards is taken as told (a second try)."""
    percent, text = max(0, min(100, percent)), text[:256]

    async def tell(session: AsyncSession, host: Any, deployment: Any) -> None:
        if (deployment.progress, deployment.progress_text) == (percent, text):
            return
        await rows.set_deployment(session, deployment.id, progress=percent, progress_text=text)
        await _event(session, host, deployment, "callback.progress", text, {"percent": percent})

    await _deliver(store, deployment_id, tell, wake=False)


async def built(store: Store, deployment_id: str) -> None:
    """The installer or the ramdisk is done: from now on the machine boots from its disk."""

    async def tell(session: AsyncSession, host: Any, deployment: Any) -> None:
        if deployment.built_at is not None:
            return
        values = {"built_at": utcnow(), "progress": 100, "progress_text": "built"}
        await rows.set_deployment(session, deployment.id, **values)
        await _event(session, host, deployment, "callback.built", key="built")

    await _deliver(store, deployment_id, tell)


async def failed(store: Store, deployment_id: str, message: str, log_tail: str) -> None:
    """The machine reports that its build failed, with the tail of its log."""

    async def tell(session: AsyncSession, host: Any, deployment: Any) -> None:
        if deployment.failed_at is not None:
            return
        await _fail(session, deployment, message, log_tail)
        await _event(session, host, deployment, "callback.failed", message, {"log_tail": log_tail[-4096:]})

    await _deliver(store, deployment_id, tell)


async def phone_home(store: Store, deployment_id: str, host_keys: Sequence[str]) -> None:
    """The first boot is through; ``host_keys`` are the machine's SSH public keys, to be trusted by handover."""

    async def tell(session: AsyncSession, host: Any, deployment: Any) -> None:
        if deployment.phoned_home_at is not None:
            return
        values: dict[str, Any] = {"phoned_home_at": utcnow(), "host_keys": list(host_keys)}
        if deployment.built_at is None:  # who phones home has been built, whatever became of that message
            values["built_at"] = utcnow()
        await rows.set_deployment(session, deployment.id, **values)
        data = {"host_keys": [key.split()[0] for key in host_keys]}
        await _event(session, host, deployment, "callback.phone-home", data=data, key="phone-home")

    await _deliver(store, deployment_id, tell)


async def renew_token(store: Store, deployment_id: str, minutes: float) -> None:
    """The machine shows signs of life: its token lives ``minutes`` more."""

    async def work(session: AsyncSession) -> None:
        expires = utcnow() + timedelta(minutes=minutes)
        await rows.set_deployment(session, deployment_id, token_expires=expires)

    await store.transact(work)


Tell = Callable[[AsyncSession, Any, Any], Awaitable[None]]


async def _deliver(
    store: Store, deployment_id: str, tell: Tell, *, wake: bool = True, revive: bool = True
) -> None:
    """Lock the host's row, tell, and make the host due. A deployment that ended, or is unknown, is left as it is.

    ``revive`` False leaves a host alone whose failure stands: a looping machine must not have its step tried at each boot.
    """

    async def work(session: AsyncSession) -> None:
        host = await rows.lock_host_of(session, deployment_id)
        if host is None or host.deployment_id != deployment_id:
            return
        deployment = await rows.deployment(session, deployment_id)
        if deployment.ended_at is not None:
            return
        await tell(session, host, deployment)
        stands = host.failure is not None and host.due_at is None
        if wake and (revive or not stands):
            await rows.wake_host(session, host.id, utcnow())

    await store.transact(work, *((HOSTS, EVENTS) if wake else (EVENTS,)))


async def _fail(session: AsyncSession, deployment: Any, message: str, log_tail: str) -> None:
    values = {"failed_at": utcnow(), "failure": message[:4096], "log_tail": log_tail[-LOG_TAIL:]}
    await rows.set_deployment(session, deployment.id, **values)


async def _event(
    session: AsyncSession,
    host: Any,
    deployment: Any,
    kind: str,
    message: str = "",
    data: dict[str, Any] | None = None,
    key: str | None = None,
) -> None:
    await history.add(
        session, host=host, deployment_id=deployment.id, kind=kind, actor="machine", message=message, data=data or {},
        key=f"{deployment.id}:{key}" if key else None,
    )  # fmt: skip
