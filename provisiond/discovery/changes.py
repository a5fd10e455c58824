"""Facts over time: what of a machine has changed since it reported last, in words, and the snapshots that are kept.

A snapshot is written when something changed that an operator would want to hear of. What comes and goes by itself is none of that:
link, speed and which card booted; the names that the kernel gives to disks in the order it finds them; a switch that was not heard
this time. Those are brought up to date in the newest snapshot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.inventory.hardware_tables import Hardware
from provisiond.inventory.tables import table, utcnow

KEPT = 50  # snapshots of one host
_TOLD = 6  # sentences in an event's message; its data has the others too
_hardware = table(Hardware)
NEWEST = (
    select(_hardware)
    .where(_hardware.c.host_id == bindparam("b_host"))
    .order_by(_hardware.c.id.desc())
    .limit(1)
)
_ADD = insert(_hardware)
_SEEN = update(_hardware).where(_hardware.c.id == bindparam("b_id"))
_OLD = (
    select(_hardware.c.id)
    .where(_hardware.c.host_id == bindparam("b_host"))
    .order_by(_hardware.c.id.desc())
    .offset(KEPT)
)


@dataclass(frozen=True)
class Change:
    """``place`` is dotted, with the thing's own name within lists (disks.S3Z1.size); ``before`` and ``after`` None: it was not, is not there."""

    place: str
    before: Any
    after: Any
    text: str

    @property
    def data(self) -> dict[str, Any]:
        return {"place": self.place, "before": self.before, "after": self.after}


def told(changes: Sequence[Change]) -> str:
    """The changes as one line."""
    sentences = [change.text for change in changes[:_TOLD]]
    if len(changes) > _TOLD:
        sentences.append(f"and {len(changes) - _TOLD} more")
    return "; ".join(sentences)


async def keep_first(session: AsyncSession, host_id: str, facts: dict[str, Any]) -> None:
    """Write the facts (Facts.model_dump) of a host that has none yet."""
    await (await session.connection()).execute(_ADD, row_of(host_id, utcnow(), facts))


async def keep(
    session: AsyncSession, host_id: str, facts: dict[str, Any]
) -> tuple[list[Change], dict[str, Any] | None]:
    """Write the facts of a host whose row is locked; returns what changed, and the facts before (None: these are its first)."""
    connection = await session.connection()
    newest = (await connection.execute(NEWEST, {"b_host": host_id})).first()
    now = utcnow()
    if newest is None:
        await keep_first(session, host_id, facts)
        return [], None
    facts = not_forgotten(facts, newest.facts)
    digest = digest_of(facts)
    if digest == newest.digest:
        values: dict[str, Any] = {"b_id": newest.id, "seen_at": now}
        await connection.execute(_SEEN, values if facts == newest.facts else {**values, "facts": facts})
        return [], newest.facts
    await connection.execute(_ADD, row_of(host_id, now, facts))
    old = list((await connection.execute(_OLD, {"b_host": host_id})).scalars())
    if old:
        await connection.execute(delete(_hardware).where(_hardware.c.id.in_(old)))
    return changes(newest.facts, facts), newest.facts


def digest_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of what matters of the facts, in an order of its own."""
    return hashlib.sha256(_text(_settled(facts)).encode()).hexdigest()


def _text(value: Any) -> str:
    """JSON with its keys in order: a database may give them back in another one."""
    return json.dumps(value, sort_keys=True)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What is different, in the order of the facts."""
    old, new = _settled(before), _settled(after)
    found: list[Change] = []
    for name in new:
        if name in _LISTS or name == "memory":
            continue
        found += _compared(name, old.get(name), new[name])
    found += _compared("memory.mib", _at(old, "memory", "mib"), _at(new, "memory", "mib"))
    found += _listed("memory.dimms", _at(old, "memory", "dimms") or {}, _at(new, "memory", "dimms") or {})
    for name in _LISTS:
        found += _listed(name, old.get(name, {}), new.get(name, {}))
    return found


# --- what matters ----------------------------------------------------------------------------------------

_LISTS = ("disks", "nics", "gpus")
_DISK = ("model", "serial", "size", "rotational", "wwn", "by_path", "transport", "removable", "read_only")
_NIC = ("mac", "driver", "pci", "lldp")


def row_of(host_id: str, now: datetime, facts: dict[str, Any]) -> dict[str, Any]:
    """A new snapshot as a row."""
    return {"host_id": host_id, "at": now, "seen_at": now, "digest": digest_of(facts), "facts": facts}


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _settled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without what comes and goes; lists as mappings by what tells their things apart."""
    kept = {name: value for name, value in facts.items() if name not in (*_LISTS, "version", "memory")}
    kept["cpu"] = {name: value for name, value in (facts.get("cpu") or {}).items() if name != "mhz"}
    memory = facts.get("memory") or {}
    kept["memory"] = {
        "mib": memory.get("mib"),
        "dimms": _keyed(memory.get("dimms") or (), lambda d: d.get("slot") or d.get("serial"), None),
    }
    kept["disks"] = _keyed(facts.get("disks") or (), disk_name, _DISK)
    kept["nics"] = _keyed(facts.get("nics") or (), lambda n: n.get("mac") or n.get("name"), _NIC)
    kept["gpus"] = _keyed(facts.get("gpus") or (), lambda g: g.get("pci") or g.get("model"), None)
    return kept


def disk_name(disk: Mapping[str, Any]) -> str | None:
    """What tells a disk from the others whatever order they are found in."""
    return disk.get("serial") or disk.get("wwn") or disk.get("by_path") or disk.get("name")


def _keyed(things: Sequence[Any], key: Any, fields: Sequence[str] | None) -> dict[str, Any]:
    """Things by their keys; those that share one are told apart by a number. Sorted."""
    found: dict[str, Any] = {}
    shown = [(str(key(t) or "?"), {f: t.get(f) for f in fields} if fields else dict(t)) for t in things]
    for name, thing in sorted(shown, key=lambda pair: (pair[0], repr(sorted(pair[1].items())))):
        number, own = 2, name
        while own in found:
            own, number = f"{name}#{number}", number + 1
        found[own] = thing
    return found


def not_forgotten(facts: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """With the switch ports that were known: a switch says its name every 30 s, which is longer than a ramdisk may listen."""
    known = {n.get("mac"): n.get("lldp") for n in before.get("nics") or ()}
    nics = [
        {**nic, "lldp": known.get(nic.get("mac"))}
        if nic.get("lldp") is None and nic.get("link") is not False
        else nic
        for nic in facts.get("nics") or ()
    ]
    return {**facts, "nics": nics}


# --- in words ----------------------------------------------------------------------------------------------

_NOUNS = {"memory.dimms": "DIMM", "disks": "disk", "nics": "network card", "gpus": "GPU"}
_UNITS = {"memory.mib": " MiB"}


def _compared(place: str, before: Any, after: Any) -> list[Change]:
    if before == after:
        return []
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [c for name in after for c in _compared(f"{place}.{name}", before.get(name), after[name])]
    unit = _UNITS.get(place, "")
    said = place.removesuffix(".mib").replace(".", " ").replace("_", " ")
    return [Change(place, before, after, f"{said} is {_shown(after, unit)}, was {_shown(before, unit)}")]


def _listed(place: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    gone = {key: thing for key, thing in before.items() if key not in after}
    new = {key: thing for key, thing in after.items() if key not in before}
    found = []
    for key, thing in gone.items():
        other = next((k for k, t in new.items() if _same_bay(place, thing, t)), None)
        if other is not None:
            fresh = new.pop(other)
            text = f"{_name(place, key, thing)} is replaced by {_name(place, other, fresh)}"
            found.append(Change(f"{place}.{key}", thing, fresh, text))
        else:
            found.append(Change(f"{place}.{key}", thing, None, f"{_name(place, key, thing)} is gone"))
    for key, thing in new.items():
        found.append(Change(f"{place}.{key}", None, thing, f"{_name(place, key, thing)} is new"))
    for key, thing in after.items():
        if key in before and before[key] != thing:
            found += _altered(place, key, before[key], thing)
    return found


def _same_bay(place: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    where = {"disks": "by_path", "nics": "pci"}.get(place)
    return where is not None and old.get(where) is not None and old.get(where) == new.get(where)


def _altered(place: str, key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    name = _name(place, key, {})
    if place == "memory.dimms" and old.get("serial") != new.get("serial") and old.get("serial"):
        text = f"{_name(place, key, old)} is replaced by {_name(place, key, new)}"
        return [Change(f"{place}.{key}", dict(old), dict(new), text)]
    found = []
    for field in new:
        if old.get(field) == new[field]:
            continue
        before, after = old.get(field), new[field]
        if field == "lldp":
            said = f"{name} is at {_port(after)}, was at {_port(before)}"
        else:
            said = f"{name}: {field.replace('_', ' ')} is {_shown(after)}, was {_shown(before)}"
        found.append(Change(f"{place}.{key}.{field}", before, after, said))
    return found


def _name(place: str, key: str, thing: Mapping[str, Any]) -> str:
    """Such as "DIMM A1 (32768 MiB, serial 4711)" or "disk S3Z1 (Samsung PM883, 960 GB)"."""
    more: list[str] = []
    if place == "memory.dimms":
        more += [f"{thing['mib']} MiB"] if thing.get("mib") else []
        more += [f"serial {thing['serial']}"] if thing.get("serial") else []
    elif place == "disks":
        more += [thing["model"]] if thing.get("model") else []
        more += [size_text(thing["size"])] if thing.get("size") else []
    elif place == "nics":
        more += [thing["driver"]] if thing.get("driver") else []
    elif thing.get("model"):
        more += [thing["model"]]
    return f"{_NOUNS[place]} {key}" + (f" ({', '.join(more)})" if more else "")


def _port(neighbour: Mapping[str, Any] | None) -> str:
    if not neighbour:
        return "no switch that tells"
    return f"{neighbour.get('system') or neighbour.get('chassis') or '?'} port {neighbour.get('port') or '?'}"


def size_text(size: int) -> str:
    """Bytes of a disk as its maker prints them, such as 960 GB or 1.9 TB."""
    for unit, power in (("PB", 15), ("TB", 12), ("GB", 9), ("MB", 6)):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} bytes"


def _shown(value: Any, unit: str = "") -> str:
    if value is None or value == "" or value == []:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value}{unit}"
