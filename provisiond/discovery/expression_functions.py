"""What expressions on facts can call. Whatever a machine says may come in; what is unknown stays unknown."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def gib(thing: Any) -> float | None:
    """GiB of a disk, of the memory or of a DIMM, or of a number of bytes; null where that is unknown."""
    if isinstance(thing, Mapping):
        size, mib = thing.get("size"), thing.get("mib")
        thing = size if size is not None else mib * (1 << 20) if mib is not None else None
    if isinstance(thing, bool) or not isinstance(thing, int | float):
        return None
    return round(thing / (1 << 30), 3)


def like(text: Any, pattern: Any) -> bool:
    """Whether a text is like a pattern with * and ?, whatever the case of its letters."""
    return (
        isinstance(text, str)
        and isinstance(pattern, str)
        and fnmatchcase(text.casefold(), pattern.casefold())
    )


def within(address: Any, network: Any) -> bool:
    """Whether an address is in a network such as 10.1.0.0/16."""
    try:
        return ipaddress.ip_address(str(address)) in ipaddress.ip_network(str(network), strict=False)
    except ValueError:
        return False


def pad(number: Any, width: Any = 2) -> str:
    """A number with zeros before it: pad(7, 3) is 007."""
    if not isinstance(width, int) or not 0 <= width <= 20:
        raise ValueError("pad() takes a number and a width of 0 to 20")
    return str(number).zfill(width)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {"gib": gib, "like": like, "within": within, "pad": pad}
