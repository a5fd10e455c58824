"""Parameters that are secrets by their names, masked for those who may look but not change."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel

from provisiond.inventory.access import Principal

V = TypeVar("V", bound=BaseModel)
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


def for_eyes(view: V, who: Principal) -> V:
    """``view`` as ``who`` may see it: a viewer gets its parameters masked."""
    if who.role != "viewer" or not (parameters := getattr(view, "parameters", None)):
        return view
    return view.model_copy(update={"parameters": mask(parameters)})
