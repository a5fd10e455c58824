"""Reading what the kernel and programs say: files that may be missing, numbers with words around them."""

import os
import re

# what dmidecode writes where a table says nothing
_NOTHING = frozenset(
    [
        "",
        "not specified",
        "not provided",
        "unknown",
        "<out of spec>",
        "<bad index>",
        "no dimm",
        "not present",
        "not available",
        "not settable",
    ]
)


def read(path: str) -> str:
    """The text of a file without blanks around it; "" where there is none or it cannot be read (a card without link says so)."""
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace").strip("\x00 \t\r\n")
    except OSError:
        return ""


def names(path: str) -> list[str]:
    """What is in a directory, sorted; [] where there is none."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def said(text: object) -> str | None:
    """The text, or None for what a program writes in place of nothing ("Not Specified")."""
    stripped = text.strip("\x00 \t\r\n") if isinstance(text, str) else ""
    return None if stripped.lower() in _NOTHING else stripped


def number(text: object) -> int | None:
    """The whole number that a text begins with ("2400 MT/s"); None for others and below 0."""
    found = re.match(r"[0-9]{1,18}", text.strip()) if isinstance(text, str) else None
    return int(found[0]) if found else None


def mac(text: object) -> str | None:
    """The MAC in lower case; None for all zeros and for what is none."""
    lower = text.strip().lower() if isinstance(text, str) else ""
    return lower if re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", lower) and lower.strip("0:") else None
