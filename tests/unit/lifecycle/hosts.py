"""Hosts as the engine holds them, made without a database."""

from __future__ import annotations

from typing import Any

from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Host


def a_host(**columns: Any) -> ResolvedHost:
    """A host with nothing but its row."""
    row = Host(id="h1", name="web01", **columns)
    return ResolvedHost(
        row=row, interfaces=(), bmc=None, hypervisor=None, flavor=None, image=None, medium=None, operating_system=None,
        domain=None, groups=(), merged=merge([]), handover=None, deployment=None,
    )  # fmt: skip
