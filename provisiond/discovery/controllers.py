"""A machine's controller, once its ramdisk has made the user there that provisiond shall use: from then on the host has a BMC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, delete, insert
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery.apply import DiscoveryWorld
from provisiond.inventory import history
from provisiond.inventory.fields import plain_text
from provisiond.inventory.store import EVENTS, HOSTS
from provisiond.inventory.tables import Bmc, new_row, table, utcnow
from provisiond.lifecycle import rows, tasks

_bmc = table(Bmc)
_DROP = delete(_bmc).where(_bmc.c.host_id == bindparam("b_host"))
_ADD = insert(_bmc)


async def keep(world: DiscoveryWorld, host_id: str, task: Any, result: Mapping[str, Any]) -> None:
    """Write the host's BMC down as ``result["bmc"]`` (address, username) says, with the password out of the task's secret.

    ``task`` is its inspect task (a row), asked before ``task_signals.done``, which empties the secret. May be repeated; a result without
    a controller, and a task without a secret, change nothing.
    """
    told = result.get("bmc")
    address = _address(told)
    if not address or not isinstance(told, Mapping):
        return

    async def work(session: AsyncSession) -> None:
        host = await rows.lock_host(session, host_id)
        now = await tasks.find(session, task.id)
        if host is None or host.task_id != task.id or now is None or not now.secret:
            return
        secret = json.loads(world.box.decrypt(now.secret)).get("bmc")
        if not secret:
            return
        connection = await session.connection()
        await connection.execute(_DROP, {"b_host": host.id})
        row = new_row(
            Bmc, host_id=host.id, driver="ipmi", address=address, username=secret["username"],
            secret=world.box.encrypt(secret["password"]),
        )  # fmt: skip
        await connection.execute(_ADD, row)
        await rows.set_host(session, host.id, limit_key=f"bmc:{address}:", updated_at=utcnow())
        message = f"user {secret['username']} made on the controller at {address}; its password is stored"
        data = {"address": address, "mac": str(told.get("mac") or ""), "username": secret["username"]}
        key = f"{task.id}:{now.boots}:bmc.set_up"  # told again when the daemon died before its answer
        await history.add(
            session, host=host, kind="bmc.set_up", actor="machine", message=message, data=data, key=key
        )

    await world.store.transact(work, HOSTS, EVENTS)


def _address(told: Any) -> str:
    said = told.get("address") if isinstance(told, Mapping) else None
    try:
        return plain_text(said)[:256] if isinstance(said, str) else ""
    except ValueError:
        return ""
