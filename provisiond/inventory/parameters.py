"""How parameters from several places become one set, and where each value came from. Pure.

Later places win: global < domain < subnet < operating system < host groups from the root to the leaf < host. Tables are
merged key by key, everything else (lists too) is replaced. ``null`` is a value like any other: it overrides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

GLOBAL = "global"


@dataclass(frozen=True)
class Merged:
    """``values`` is the result; ``origins`` maps the dotted path of every leaf to its place, such as ``group web``.

    A dot or backslash inside a key is written ``\\.`` and ``\\\\`` in the path. An empty table counts as a leaf.
    """

    values: dict[str, Any] = field(default_factory=dict, repr=False)
    origins: dict[str, str] = field(default_factory=dict, repr=False)


def merge(places: Iterable[tuple[str, Mapping[str, Any]]]) -> Merged:
    """Merge ``places``, pairs of a name and its parameters, from the weakest to the strongest. The inputs stay as they are."""
    merged = Merged()
    for place, parameters in places:
        _lay_over(merged.values, parameters, place, merged.origins, "")
    return merged


def _lay_over(
    below: dict[str, Any], above: Mapping[str, Any], place: str, origins: dict[str, str], path: str
) -> None:
    for key, value in above.items():
        here = path + key.replace("\\", "\\\\").replace(".", "\\.")
        current = below.get(key)
        if isinstance(value, Mapping) and isinstance(current, dict):
            if value:
                origins.pop(here, None)  # it may have been an empty table
                _lay_over(current, value, place, origins, here + ".")
            continue
        for gone in [at for at in origins if at == here or at.startswith(here + ".")]:
            del origins[gone]
        below[key] = deepcopy(dict(value)) if isinstance(value, Mapping) else deepcopy(value)
        _note(below[key], place, origins, here)


def _note(value: Any, place: str, origins: dict[str, str], path: str) -> None:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            _note(child, place, origins, path + "." + key.replace("\\", "\\\\").replace(".", "\\."))
    else:
        origins[path] = place
