"""Hosts as the operators' door sees them: create many at once, look, list, change, delete."""

from __future__ import annotations

from collections.abc import Sequence

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import HostCreate, HostSummary, HostUpdate, HostView
from provisiond.inventory.store import Store


async def create_hosts(
    store: Store, box: SecretBox, specs: Sequence[HostCreate], *, actor: str, many: bool = True
) -> list[HostView]:
    """Create all of ``specs`` or none. ``many`` False names wrong fields as ``mac`` instead of ``hosts.3.mac``.

    Raises Invalid (every wrong field of every host), PoolExhausted.
    """
    raise NotImplementedError


async def get_host(store: Store, name: str) -> HostView:
    """One host by name or id. Raises NotFound."""
    raise NotImplementedError


async def list_hosts(
    store: Store,
    *,
    state: str | None = None,
    group: str | None = None,
    name: str | None = None,
    limit: int = 1000,
    cursor: str | None = None,
) -> list[HostSummary]:
    """Hosts in order of their names; ``name`` is a glob (web*), ``group`` takes in the groups below it, ``cursor`` is the last name of the page before."""
    raise NotImplementedError


async def update_host(store: Store, box: SecretBox, name: str, change: HostUpdate, *, actor: str) -> HostView:
    """Change the fields that are set in ``change``. Raises NotFound, Invalid, Conflict (locked, or at work), PoolExhausted."""
    raise NotImplementedError


async def delete_host(store: Store, name: str, *, actor: str) -> None:
    """Forget a host that is enrolled, discovered, ready or retired; its history stays. Raises NotFound, Conflict."""
    raise NotImplementedError
