"""What of the catalogue this process has read already: rows that change seldom and that every look at a host needs.

Kept until any of the catalogue changes (topic CATALOGUE_CHANGED of the store, which the other daemons hear of too), so that a build's
many steps do not read the same subnet, image and groups again and again.
"""

from __future__ import annotations

from typing import Any


class Known:
    """``rows`` by (table name, id), ``paths`` of groups by id, the global ``parameters`` all feature ``flags``, all discovery ``rules``
    and ``subnets`` (None: not read yet)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Any] = {}
        self.paths: dict[str, tuple[Any, ...]] = {}
        self.parameters: Any = None
        self.flags: Any = None
        self.rules: Any = None
        self.subnets: Any = None
