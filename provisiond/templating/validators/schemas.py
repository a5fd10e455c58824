"""The small language our own JSON schemas are written in, and where a vendor's own schema is taken from when it is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
FLAG: dict[str, Any] = {"type": "boolean"}
NUMBER: dict[str, Any] = {"type": "integer"}
ANY: dict[str, Any] = {}
TABLE: dict[str, Any] = {"type": "object"}


def table(required: str = "", /, *, _open: bool = False, **keys: Any) -> dict[str, Any]:
    """A mapping with these keys (``_`` stands for ``-``) and no others; ``required`` names some, separated by blanks."""
    properties = {name.strip("_").replace("_", "-"): schema for name, schema in keys.items()}
    made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": _open}
    return made | ({"required": required.split()} if required else {})


def exactly(required: str = "", /, **keys: Any) -> dict[str, Any]:
    """The same with the keys' names as they are."""
    made: dict[str, Any] = {"type": "object", "properties": keys, "additionalProperties": False}
    return made | ({"required": required.split()} if required else {})


def many(item: Any) -> dict[str, Any]:
    """A list of ``item``."""
    return {"type": "array", "items": item}


def named(item: Any) -> dict[str, Any]:
    """A mapping of any names to ``item``."""
    return {"type": "object", "additionalProperties": item}


def one_of(*values: Any) -> dict[str, Any]:
    """One of these values."""
    return {"enum": list(values)}


def either(*schemas: Any) -> dict[str, Any]:
    """What fits any of these schemas."""
    return {"anyOf": list(schemas)}


def vendors(variable: str, *places: str) -> Path | None:
    """A vendor's own schema: the file that the environment variable names, or the first of ``places`` that is there."""
    given = os.environ.get(variable)
    for place in [given] if given else places:
        if Path(place).is_file():
            return Path(place)
    return None
