"""Names of hosts out of a rule's pattern: always valid, never taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery.expressions import NamePattern
from provisiond.inventory.tables import Host, table

_AT_ONCE = 64  # candidates asked for in one statement
_LONGEST = 63  # RFC 1123 label
_TRIES = 100_000
_host = table(Host)
_TAKEN = select(_host.c.name).where(
    _host.c.name.in_(bindparam("b_names", expanding=True)), _host.c.id != bindparam("b_own")
)


def host_name_of(text: str) -> str:
    """``text`` made a host name (RFC 1123: a-z, 0-9 and '-', at most 63, not digits only); '' where nothing of it can be."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower())[:_LONGEST].strip("-")
    return f"host-{name}" if name.isdigit() else name


def waiting_name(mac: str) -> str:
    """What a machine is called that no rule has named."""
    return f"new-{mac.replace(':', '')}"


async def free_name(
    session: AsyncSession, pattern: NamePattern, values: Mapping[str, Any], *, taken: int, own: str, also: frozenset[str] = frozenset()
) -> tuple[str, str]:  # fmt: skip
    """A name that no other host than ``own`` (an id) has, or '' and why there is none.

    A pattern that counts goes on from ``taken`` + 1; another one gets -2, -3, ... ``also`` are names that are taken besides.
    """
    text, why = pattern.text(values, taken + 1)
    if not text:
        return "", why or "it makes an empty text"
    base = host_name_of(text)
    if not base:
        return "", f"nothing of {text[:64]!r} can be a host name"
    for start in range(0, _TRIES, _AT_ONCE):
        steps = range(start, start + _AT_ONCE)
        if pattern.counts:
            names = [host_name_of(pattern.text(values, taken + 1 + step)[0]) for step in steps]
        else:
            names = [base if step == 0 else _numbered(base, step + 1) for step in steps]
        names = [name for name in names if name]
        found = (await session.execute(_TAKEN, {"b_names": names, "b_own": own})).scalars()
        used = set(found) | also
        free = next((name for name in names if name not in used), "")
        if free:
            return free, ""
        if pattern.counts and len(set(names)) < 2:  # n is cut off, or makes no difference
            return await _numbered_free(session, base, own, also)
    return "", f"more than {_TRIES} hosts have such names"


async def _numbered_free(session: AsyncSession, base: str, own: str, also: frozenset[str]) -> tuple[str, str]:
    for start in range(2, _TRIES, _AT_ONCE):
        names = [_numbered(base, number) for number in range(start, start + _AT_ONCE)]
        found = (await session.execute(_TAKEN, {"b_names": names, "b_own": own})).scalars()
        used = set(found) | also
        if free := next((name for name in names if name not in used), ""):
            return free, ""
    return "", f"more than {_TRIES} hosts have such names"


def _numbered(base: str, number: int) -> str:
    tail = f"-{number}"
    return base[: _LONGEST - len(tail)].rstrip("-") + tail
