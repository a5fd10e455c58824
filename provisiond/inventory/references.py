"""References by name: looking many of them up at once, and saying well which are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from sqlalchemy import Table, bindparam, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.hardware_tables import HardwareProfile
from provisiond.inventory.tables import (
    Domain,
    Flavor,
    HostGroup,
    Hypervisor,
    Image,
    Medium,
    OperatingSystem,
    Subnet,
    table,
)

# noun as it is called in the API and by provisionctl -> its table; the nouns hosts and the catalogue refer to
NOUNS: dict[str, Table] = {
    "group": table(HostGroup),
    "subnet": table(Subnet),
    "domain": table(Domain),
    "operating_system": table(OperatingSystem),
    "medium": table(Medium),
    "image": table(Image),
    "hypervisor": table(Hypervisor),
    "flavor": table(Flavor),
    "profile": table(HardwareProfile),
}

_MADE_BY = {"operating_system": "os create", "medium": "media add", "image": "image add"}


class Names:
    """Names found in the database: ``ids[noun][name]``."""

    def __init__(self, ids: Mapping[str, Mapping[str, str]], known: Mapping[str, list[str]]) -> None:
        self.ids = ids
        self._known = known

    def missing(self, noun: str, name: str) -> str | None:
        """None if there is such a thing, else a sentence saying that there is none, and which ones come close."""
        if name in self.ids.get(noun, {}):
            return None
        called, make = noun.replace("_", " "), _MADE_BY.get(noun, f"{noun} create")
        known = self._known.get(noun, [])
        close = get_close_matches(name, known, n=3)
        if close:
            return f"there is no {called} {name!r}; did you mean {' or '.join(map(repr, close))}?"
        if not known:
            return f"there is no {called} {name!r}, nor any other; make one with 'provisionctl {make}'"
        return f"there is no {called} {name!r}; there are: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"


async def find_names(session: AsyncSession, wanted: Iterable[tuple[str, str]]) -> Names:
    """Look up pairs of (noun, name) in one statement, and a second one only if some are missing."""
    by_noun: dict[str, set[str]] = {}
    for noun, name in wanted:
        by_noun.setdefault(noun, set()).add(name)
    ids: dict[str, dict[str, str]] = {noun: {} for noun in by_noun}
    if not by_noun:
        return Names(ids, {})
    values = {noun: sorted(names) for noun, names in by_noun.items()}
    for noun, name, found in await session.execute(_by_names(tuple(sorted(by_noun))), values):
        ids[noun][name] = found
    known: dict[str, list[str]] = {}
    for noun, names in by_noun.items():
        if names - ids[noun].keys():
            every = NOUNS[noun].c.name
            known[noun] = list((await session.execute(select(every).order_by(every).limit(1000))).scalars())
    return Names(ids, known)


@lru_cache(maxsize=256)
def _by_names(nouns: tuple[str, ...]) -> Any:
    """The statement that looks up names of these nouns; each noun's names are the parameter of its name."""
    return union_all(
        *(
            select(literal(noun).label("noun"), NOUNS[noun].c.name, NOUNS[noun].c.id).where(
                NOUNS[noun].c.name.in_(bindparam(noun, expanding=True))
            )
            for noun in nouns
        )
    )
