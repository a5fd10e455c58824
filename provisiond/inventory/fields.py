"""The kinds of values a request may hold: names, MACs, addresses, parameters; each says what is wrong in one sentence."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

MAX_DEPTH = 16  # of nested parameters
MAX_VALUES = 5_000  # in one set of parameters

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX12 = re.compile(r"[0-9a-f]{12}")
_MAC_FORMS = re.compile(
    r"([0-9a-f]{2})(:[0-9a-f]{2}){5}|([0-9a-f]{2})(-[0-9a-f]{2}){5}|[0-9a-f]{4}(\.[0-9a-f]{4}){2}|[0-9a-f]{12}"
)
# What boards say when nobody wrote their serial number in; compared in lower case without punctuation and blanks.
_PLACEHOLDERS = frozenset(
    [
        "defaultstring",
        "systemserialnumber",
        "systemserialnumb",  # Asus cuts it
        "systemserial",
        "serialnumber",
        "serial",
        "sn",
        "chassisserialnumber",
        "chassisserial",
        "baseboardserialnumber",
        "boardserialnumber",
        "mbserialnumber",
        "sysserialno",
        "type1productconfigid",
        "notspecified",
        "unspecified",
        "undefined",
        "nil",
        "noserial",
        "noserialnumber",
        "notset",
        "notsettable",
        "notassigned",
        "notsupported",
        "badindex",  # dmidecode, where the table points at no string
        "outofspec",
        "standard",
        "sample",
        "notapplicable",
        "notavailable",
        "notpresent",
        "none",
        "na",
        "null",
        "unknown",
        "empty",
        "invalid",
        "default",
        "oem",
        "system",
        "0123456789",
        "01234567890",
        "0123456789abcdef",
        "01234567",
        "012345678",
        "1234567890",
        "123456789012",
        "1234567890123456",
        "mb1234567890",
        "ef1234567890",
        "1234567",
        "123456",
        "12345",
        "1234",
        "123456789",
        "12345678",
        # UUIDs that many boards share
        "03000200040005000006000700080009",
        "00020003000400050006000700080009",  # the same one in the other byte order
        "000102030405060708090a0b0c0d0e0f",
        "00112233445566778899aabbccddeeff",
        "33221100554477668899aabbccddeeff",
        "123456781234567890abcddeefaabbcc",
        "785634123412785690abcddeefaabbcc",
        "12345678123412341234123456789abc",
        "deadbeefdeadbeefdeadbeefdeadbeef",
        "4c4c454400002010802080c04f202020",  # a Dell without its service tag
    ]
)


def parse_mac(text: str) -> str:
    """The MAC in lower case with colons, from the forms aa:bb:.., aa-bb-.., aabb.ccdd.eeff or twelve digits. ValueError otherwise."""
    lower = text.strip().lower()
    if not _MAC_FORMS.fullmatch(lower):
        raise ValueError(f"{text!r} is not a MAC address; write it as 52:54:00:12:34:56")
    digits = re.sub(r"[:.-]", "", lower)
    if digits == "0" * 12 or int(digits[:2], 16) & 1:
        raise ValueError(f"{text!r} is not the address of one network card (zero, multicast or broadcast)")
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def is_placeholder_serial(text: str) -> bool:
    """Whether a serial number or UUID is what a board says when its maker wrote none in ("To be filled by O.E.M.")."""
    squeezed = re.sub(r"[^0-9a-z]", "", text.lower())
    if len(set(squeezed)) <= 1 or squeezed in _PLACEHOLDERS or squeezed.startswith("tobefilled"):
        return True
    return len(squeezed) == 32 and squeezed == squeezed[:2] * 16  # a UUID of one byte, such as fefefefe-...


def plain_text(text: str) -> str:
    """Refuse control characters (PostgreSQL takes no NUL; a line break would forge lines in boot files)."""
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError("control characters and line breaks are not allowed here")
    return text


def check_parameters(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what cannot be kept as JSON on both databases: NUL, lone surrogates, NaN, other types, too deep or too many."""
    count = 0

    def look(item: Any, path: str, depth: int) -> None:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"{path} is nested deeper than {MAX_DEPTH}")
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        if isinstance(item, dict):
            for key, child in item.items():
                if not isinstance(key, str) or not key:
                    raise ValueError(f"{path}: keys are non-empty text, not {key!r}")
                look_text(key, path)
                look(child, f"{path}.{key}" if path else key, depth + 1)
        elif isinstance(item, list):
            for index, child in enumerate(item):
                look(child, f"{path}.{index}", depth + 1)
        elif isinstance(item, str):
            look_text(item, path)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise ValueError(f"{path} is not a finite number")
        elif isinstance(item, int) and not isinstance(item, bool):
            if abs(item) >= 1 << 63:
                raise ValueError(f"{path} does not fit in 64 bits")
        elif item is not None and not isinstance(item, bool):
            raise ValueError(
                f"{path} is of type {type(item).__name__}; use text, numbers, true, false, null, lists and tables"
            )

    def look_text(text: str, path: str) -> None:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(f"{path}: NUL and lone surrogates are not allowed")

    look(value, "", 0)
    return value


class WrongPlaces(ValueError):
    """Several things are wrong within one field: ``places`` are (dotted path below the field, what is wrong)."""

    def __init__(self, places: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{at}: {said}" if at else said for at, said in places))
        self.places = places


def wrong_places(error: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """The places of one of pydantic's errors (with its context), if it is a WrongPlaces."""
    cause = error.get("ctx", {}).get("error")
    return cause.places if isinstance(cause, WrongPlaces) else None


def described(shape: type[BaseModel]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Refuse what ``shape`` refuses (WrongPlaces), and keep the text as it was written."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        check_parameters(value)
        try:
            shape.model_validate(value)
        except ValidationError as error:
            wrong = []
            for one in error.errors():
                at = ".".join(map(str, one["loc"]))
                inner = wrong_places(one) or [("", _said(one["type"], one["msg"]))]
                wrong += [(".".join(filter(None, (at, below))), said) for below, said in inner]
            raise WrongPlaces(wrong) from None
        return value

    return check


_KINDS = {
    "extra_forbidden": "unknown key",
    "missing": "is required",
    "list_type": "must be a list",
    "string_type": "must be a text",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
}


def _said(kind: str, message: str) -> str:
    text = _KINDS.get(kind, message.removeprefix("Value error, "))
    return "must" + text.removeprefix("Input should") if text.startswith("Input should") else text


def _host_name(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a host name: 1 to 63 of a-z, 0-9 and '-', no '-' at either end, no dots (RFC 1123); the domain is given apart"
        )
    if text.isdigit():
        raise ValueError(f"{text!r} has digits only, which reads as an address")
    return text


def _domain_name(text: str) -> str:
    lower = text.lower().rstrip(".")
    if not lower or len(lower) > 253 or not all(_LABEL.fullmatch(label) for label in lower.split(".")):
        raise ValueError(f"{text!r} is not a domain name such as lab.example.org")
    return lower


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name: 1 to 128 of letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return text


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _cidr(text: str) -> str:
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network such as 10.0.0.0/24 ({error})") from None
    if network.version == 6 and network.prefixlen < 64:
        raise ValueError(
            f"{text!r} is larger than /64; a subnet is one link, and IPv6 links are /64 or smaller"
        )
    return str(network)


def _serial(text: str) -> str:
    text = text.strip()
    if is_placeholder_serial(text):
        raise ValueError(
            f"{text!r} is a placeholder that many machines share, not a serial number; leave it out"
        )
    return text


def _pair(value: Any) -> Any:
    """A range may be written "FIRST-LAST", one address, or a pair."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split("-")]
        return parts * 2 if len(parts) == 1 else parts
    return list(value) if isinstance(value, tuple) else value


_TEXT = AfterValidator(plain_text)
Mac = Annotated[str, AfterValidator(parse_mac)]
HostName = Annotated[str, AfterValidator(_host_name)]
DomainName = Annotated[str, AfterValidator(_domain_name)]
Name = Annotated[str, AfterValidator(_name)]
Ip = Annotated[str, AfterValidator(_ip)]
Cidr = Annotated[str, AfterValidator(_cidr)]
Serial = Annotated[str, Field(max_length=128), _TEXT, AfterValidator(_serial)]
Line = Annotated[str, Field(max_length=1024), _TEXT]  # one line of text
Word = Annotated[str, Field(max_length=128), _TEXT]
Parameters = Annotated[dict[str, Any], AfterValidator(check_parameters)]
AddressRange = Annotated[
    list[Ip],
    BeforeValidator(_pair, json_schema_input_type=str | list[str]),
    Field(min_length=2, max_length=2),
]
