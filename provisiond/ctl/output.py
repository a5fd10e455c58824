"""What is printed: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Format(StrEnum):
    """How answers are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def stdout() -> Console:
    """The console for answers."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """The console for messages: errors and progress."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def show_list(
    items: Sequence[dict[str, Any]], columns: Sequence[str], form: Format, *, empty: str = "none"
) -> None:
    """Print many things; ``columns`` are the fields a table shows."""
    if form is not Format.TABLE:
        _dump(list(items), form)
        return
    if not items:
        stderr().print(escape(empty))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper().replace("_", " "), overflow="fold", no_wrap=not sys.stdout.isatty())
    for item in items:
        table.add_row(*(_cell(column, item.get(column)) for column in columns))
    console = stdout()
    if not sys.stdout.isatty():
        console.width = 10_000
    console.print(table)


def show_one(item: dict[str, Any], form: Format) -> None:
    """Print one thing with everything known of it."""
    if form is not Format.TABLE:
        _dump(item, form)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in item.items():
        if value is not None and value not in ("", [], {}):
            table.add_row(name.replace("_", " "), _cell(name, value))
    stdout().print(table)


def age(moment: str) -> str:
    """How long ago, in one unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def length(seconds: float) -> str:
    """A duration such as 1:05 or 2:10:00."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _dump(value: Any, form: Format) -> None:
    if form is Format.JSON:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "state_since":
        return age(str(value))
    if name.endswith("_at") or name in ("at", "step_since", "window_until"):
        return str(value)[:19].replace("T", " ")
    if isinstance(value, dict):
        return escape(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()) if value else "-"
    if isinstance(value, list):
        if value and all(isinstance(item, dict) for item in value):
            return escape(
                "\n".join(
                    " ".join(f"{k}={v}" for k, v in item.items() if v not in (None, "")) for item in value
                )
            )
        return (
            escape(", ".join("-".join(map(str, v)) if isinstance(v, list) else str(v) for v in value)) or "-"
        )
    return escape(str(value)) or "-"
