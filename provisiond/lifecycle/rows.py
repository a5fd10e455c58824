"""The few statements by which intents and signals read and change a host and its deployment, made once.

Building a statement costs SQLAlchemy more than running it, and these run several times in each host's life. Which columns are
set is told by the parameters; the compiled form is kept for each set of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.tables import Deployment, Host, table, utcnow

_HOST, _DEPLOYMENT = table(Host), table(Deployment)
_FIND = (
    select(_HOST)
    .where(or_(_HOST.c.name == bindparam("b_name"), _HOST.c.id == bindparam("b_name")))
    .with_for_update()
)
_HOST_OF = select(_DEPLOYMENT.c.host_id).where(_DEPLOYMENT.c.id == bindparam("b_id"))
_DEPLOYMENT_BY_ID = select(_DEPLOYMENT).where(_DEPLOYMENT.c.id == bindparam("b_id"))
_SET_HOST = update(_HOST).where(_HOST.c.id == bindparam("b_id"))
_WAKE_HOST = _SET_HOST.values(wake=_HOST.c.wake + 1)
_ENTER_HOST = _WAKE_HOST.values(version=_HOST.c.version + 1)
_SET_DEPLOYMENT = update(_DEPLOYMENT).where(_DEPLOYMENT.c.id == bindparam("b_id"))
_NEXT_RUN = _SET_DEPLOYMENT.values(runs=_DEPLOYMENT.c.runs + 1, handover_offset=0)


async def lock_host(session: AsyncSession, name: str) -> Any:
    """The host's row by name or id, locked until the transaction ends; None where there is none. Always before its other rows."""
    return (await (await session.connection()).execute(_FIND, {"b_name": name})).first()


async def lock_host_of(session: AsyncSession, deployment_id: str) -> Any:
    """The row of the host that a deployment belongs to, locked; None where there is no such deployment."""
    found = (await (await session.connection()).execute(_HOST_OF, {"b_id": deployment_id})).scalar()
    return None if found is None else await lock_host(session, found)


async def deployment(session: AsyncSession, deployment_id: str) -> Any:
    """The deployment's row; its host's lock guards it."""
    return (await (await session.connection()).execute(_DEPLOYMENT_BY_ID, {"b_id": deployment_id})).first()


async def set_host(session: AsyncSession, host_id: str, **columns: Any) -> None:
    """Set columns that the engine does not look at."""
    await (await session.connection()).execute(_SET_HOST, {"b_id": host_id, **columns})


async def wake_host(session: AsyncSession, host_id: str, now: datetime) -> None:
    """Something arrived for the host: it is due. A step that is parking at this moment sees it by ``wake``."""
    await (await session.connection()).execute(_WAKE_HOST, {"b_id": host_id, "due_at": now})


async def move_host(session: AsyncSession, host_id: str, due: datetime | None, **columns: Any) -> None:
    """Change what the engine works by: whoever works on the host loses its write, and it is ``due`` then (None: not by itself).

    The lease stays, so that nobody else begins before its holder has let go.
    """
    await (await session.connection()).execute(
        _ENTER_HOST, {"b_id": host_id, "due_at": due, "updated_at": utcnow(), **columns}
    )


async def set_deployment(session: AsyncSession, deployment_id: str, **columns: Any) -> None:
    await (await session.connection()).execute(_SET_DEPLOYMENT, {"b_id": deployment_id, **columns})


async def next_run(session: AsyncSession, deployment_id: str) -> None:
    """The next handover is a new run, whose output begins at nothing."""
    await (await session.connection()).execute(_NEXT_RUN, {"b_id": deployment_id})
