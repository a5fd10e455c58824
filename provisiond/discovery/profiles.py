"""Hardware profiles: what machines of one kind are expected to be made of, and where one of them differs.

``expected`` maps a dotted place in the facts to what is to be there: a value (``model: PowerEdge R640``), a comparison
(``memory.mib: ">= 65536"``, ``disks: ">= 2"`` counts), a pattern (``cpu.model: "~ Intel*Gold*"``), null (nothing is to be there), or
for a list (disks, nics, gpus, memory.dimms) how many of which kind: ``disks: [{count: 2, size: ">= 900 GB", rotational: false}]``.
Differences are computed when somebody looks, so a changed profile counts at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field

from provisiond.discovery.changes import size_text
from provisiond.inventory.catalogue import Noun
from provisiond.inventory.facts import Facts
from provisiond.inventory.fields import Line, Name, WrongPlaces, check_parameters
from provisiond.inventory.hardware_tables import HardwareProfile
from provisiond.inventory.shapes import Request
from provisiond.inventory.shapes_catalogue import Identified, partial

_COMPARISON = re.compile(r"(>=|<=|!=|>|<|=|~)\s*(.+)", re.DOTALL)
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]i?B)?")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
MAX_PLACES = 200


def check_expected(expected: dict[str, Any]) -> dict[str, Any]:
    """Refuse places that facts do not have, and comparisons that cannot be read (WrongPlaces)."""
    check_parameters(expected)
    wrong = [(place, why) for place, value in expected.items() if (why := _wrong(place, value))]
    if len(expected) > MAX_PLACES:
        wrong.append(("", f"has more than {MAX_PLACES} places"))
    if wrong:
        raise WrongPlaces(wrong)
    return expected


Expected = Annotated[dict[str, Any], AfterValidator(check_expected)]


class Profile(Request):
    """What machines of one kind are made of."""

    name: Name
    about: Line = ""
    expected: Expected = Field(
        default_factory=dict, description="Place in the facts -> what is to be there (docs/discovery.md)."
    )


class ProfileView(Identified, Profile):
    """A hardware profile as shown."""


PROFILES = Noun("profile", "profiles", HardwareProfile, Profile, partial(Profile), ProfileView)


def differences(expected: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Sentences such as "memory 64 GiB, expected >= 128 GiB"; none where everything is as expected."""
    return [said for place, wanted in expected.items() if (said := _differs(place, wanted, facts))]


def of_machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The ``expected`` of machines like this one."""
    expected: dict[str, Any] = {}
    for place in (
        "vendor", "model", "architecture", "firmware.mode", "cpu.model", "cpu.sockets", "cpu.cores", "cpu.threads", "memory.mib", "tpm"
    ):  # fmt: skip
        if (value := _at(facts, place)) is not None:
            expected[place] = value
    if any(disk.get("size") for disk in facts.get("disks") or ()):
        chosen = [d for d in facts["disks"] if not d.get("removable") and d.get("size")]
        expected["disks"] = _kinds(chosen, ("model", "size", "rotational"))
    if facts.get("nics"):
        expected["nics"] = _kinds(facts["nics"], ("driver",))
    expected["gpus"] = _kinds(facts.get("gpus") or (), ("vendor", "model")) or 0
    if dimms := _at(facts, "memory.dimms"):
        expected["memory.dimms"] = _kinds(dimms, ("mib",))
    return expected


def summary(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A machine in a few fields, for lists."""
    cpu, memory = facts.get("cpu") or {}, facts.get("memory") or {}
    disks = [d for d in facts.get("disks") or () if d.get("size") and not d.get("removable")]
    cards = facts.get("nics") or ()
    port = next((n["lldp"] for n in sorted(cards, key=lambda n: not n.get("boot")) if n.get("lldp")), None)
    return {
        "vendor": facts.get("vendor"),
        "model": facts.get("model"),
        "serial": facts.get("serial"),
        "cpu": cpu.get("model"),
        "sockets": cpu.get("sockets"),
        "cores": cpu.get("cores"),
        "threads": cpu.get("threads"),
        "memory_mib": memory.get("mib"),
        "disks": [
            " ".join(filter(None, (d.get("name"), d.get("model"), size_text(d["size"]))))[:256] for d in disks
        ],
        "nics": len(cards),
        "gpus": len(facts.get("gpus") or ()),
        "switch_port": f"{port.get('system') or port.get('chassis') or '?'} {port.get('port') or '?'}" if port else None,
        "bmc": (facts.get("bmc") or {}).get("address"),
    }  # fmt: skip


# --- inner -----------------------------------------------------------------------------------------------


def _at(value: Any, place: str) -> Any:
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _kinds(things: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[dict[str, Any]]:
    counts: dict[tuple[Any, ...], int] = {}
    for thing in things:
        key = tuple(thing.get(f) for f in fields)
        counts[key] = counts.get(key, 0) + 1
    return [
        {"count": n, **{f: v for f, v in zip(fields, key, strict=True) if v is not None}}
        for key, n in sorted(counts.items(), key=repr)
    ]


def _differs(place: str, wanted: Any, facts: Mapping[str, Any]) -> str:
    found = _at(facts, place)
    if isinstance(found, list):
        if isinstance(wanted, list):
            return "; ".join(filter(None, (_too_few(place, kind, found) for kind in wanted)))
        if _fits(wanted, len(found)):
            return ""
        return f"{_said(place)}: {len(found)}, expected {wanted}"
    if _fits(wanted, found):
        return ""
    return f"{_said(place)} {_shown(place, found)}, expected {_shown(place, wanted)}"


def _too_few(place: str, kind: Mapping[str, Any], things: Sequence[Mapping[str, Any]]) -> str:
    rest = {name: value for name, value in kind.items() if name != "count"}
    number = sum(1 for thing in things if all(_fits(v, _at(thing, n)) for n, v in rest.items()))
    wanted = kind.get("count", ">= 1")
    if _fits(wanted, number):
        return ""
    what = ", ".join(f"{n.replace('_', ' ')} {_shown(n, v)}" for n, v in rest.items())
    return f"{_said(place)}{f' with {what}' if what else ''}: {number}, expected {wanted}"


def _fits(wanted: Any, found: Any) -> bool:
    if wanted is None:
        return found is None
    if found is None:
        return False
    if isinstance(wanted, str) and (match := _COMPARISON.fullmatch(wanted.strip())):
        sign, right = match[1], match[2].strip()
        if sign == "~":
            return fnmatchcase(str(found).casefold(), right.casefold())
        number = _quantity(right)
        if isinstance(found, int | float) and not isinstance(found, bool) and number is not None:
            return {">=": found >= number, "<=": found <= number, ">": found > number, "<": found < number, "!=": found != number,
                    "=": found == number}[sign]  # fmt: skip
        return {"=": str(found) == right, "!=": str(found) != right}.get(sign, False)
    if isinstance(wanted, str) and isinstance(found, int | float) and not isinstance(found, bool):
        return _quantity(wanted) == found
    if isinstance(found, str) and isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return str(wanted) == found  # a version such as 2.0, which YAML reads as a number
    return type(wanted) is type(found) and bool(wanted == found)


def _quantity(text: str) -> float | None:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    unit = match[2] or ""
    base = 1024 if "i" in unit else 1000
    return float(match[1]) * (base ** _POWERS[unit[0]] if unit else 1)


def _shown(place: str, value: Any) -> str:
    """A figure with its unit. ``value`` may be a comparison."""
    if value is None:
        return "nothing known" if "." not in place else "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and place.endswith("mib"):
        return f"{value // 1024} GiB" if value >= 1024 and value % 1024 == 0 else f"{value} MiB"
    if isinstance(value, int) and place.endswith("size"):
        return size_text(value)
    if isinstance(value, str) and (match := _COMPARISON.fullmatch(value)) and match[2].strip().isdigit():
        return f"{match[1]} {_shown(place, int(match[2]))}"
    return str(value)


def _said(place: str) -> str:
    return place.removesuffix(".mib").replace(".", " ").replace("_", " ")


def _wrong(place: str, value: Any) -> str | None:
    model, many, why = _model_at(place)
    if why:
        return why
    if isinstance(value, list):
        if not many or model is None:
            return "is no list in the facts; give a value or a comparison"
        for number, kind in enumerate(value):
            if not isinstance(kind, dict):
                return f"{number}: is a mapping such as {{count: 2, size: '>= 900 GB'}}"
            for name, inner in kind.items():
                if name != "count" and name.split(".")[0] not in model.model_fields:
                    return f"{number}.{name}: there is none in the facts; there are: {', '.join(sorted(model.model_fields))}"
                if problem := _unreadable(inner):
                    return f"{number}.{name}: {problem}"
        return None
    if isinstance(value, dict):
        return "is a value, a comparison, null, or a list of kinds"
    if model is not None and not many:
        return (
            f"has parts; give one of: {', '.join(f'{place}.{name}' for name in sorted(model.model_fields))}"
        )
    return _unreadable(value)


def _unreadable(value: Any) -> str | None:
    if isinstance(value, dict | list):
        return "is a value, a comparison or null"
    match = _COMPARISON.fullmatch(value.strip()) if isinstance(value, str) else None
    if match and match[1] in (">", "<", ">=", "<=") and _quantity(match[2].strip()) is None:
        return f"{value!r} compares with a number, such as '>= 64' or '>= 900 GB'"
    return None


def _model_at(place: str) -> tuple[type[BaseModel] | None, bool, str | None]:
    """(the model of what stands there, whether it is a list of it, what is wrong with the place)."""
    model: type[BaseModel] | None = Facts
    many = False
    for name in place.split("."):
        if model is None or many or name not in model.model_fields:
            there = f"; there are: {', '.join(sorted(model.model_fields))}" if model and not many else ""
            return None, False, f"there is no such place in the facts{there}"
        annotation = model.model_fields[name].annotation
        many = get_origin(annotation) is list
        parts = get_args(annotation) or (annotation,)
        model = next((p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)), None)
    return model, many, None
