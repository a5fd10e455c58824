"""Parameters that are secrets by their names, masked for eyes that need not see them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SECRET = re.compile(r"passw|passphrase|secret|token|private|credential|(^|_)psk", re.IGNORECASE)
MASK = "MASKED"


def mask(value: Any, name: str = "") -> Any:
    """``value`` with every text and number masked whose name says that it is a secret."""
    if isinstance(value, dict):
        return {key: mask(inner, name if _SECRET.search(name) else str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask(inner, name) for inner in value]
    if value in (None, "") or isinstance(value, bool) or not _SECRET.search(name):
        return value
    return "$6$masked$masked" if str(value).startswith("$") else MASK


def cut_out(text: str, parameters: Any) -> str:
    """``text`` without the values of the secret ones among ``parameters``, each line of a value too. Short ones (under 6
    characters) are left: they would be found everywhere."""
    found = {
        line for value in secret_values(parameters) for line in (value, *value.splitlines()) if len(line) >= 6
    }
    for value in sorted(found, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def secret_values(value: Any, name: str = "") -> Iterator[str]:
    """Every text within ``value`` that ``mask`` would mask."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from secret_values(inner, name if _SECRET.search(name) else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from secret_values(inner, name)
    elif isinstance(value, str) and value and _SECRET.search(name):
        yield value
