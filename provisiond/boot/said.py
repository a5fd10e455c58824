"""What the ramdisk says, read forgivingly: the JSON body of a call below /agent and its fields, each of the kind it should be."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from aiohttp import web

from provisiond.boot.callbacks import clean

LIMITS = {"claim": 16 << 10, "facts": 512 << 10, "test": 256 << 10, "log": 1 << 20}
"""Bytes of a body, by the last part of the path; others have SMALL."""
SMALL = 128 << 10


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object of the body. Raises HTTPBadRequest, HTTPRequestEntityTooLarge."""
    limit = LIMITS.get(request.path.rpartition("/")[2], SMALL)
    raw = await request.read()
    if len(raw) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, len(raw), text=f"more than {limit} bytes")
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(value, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return value


def text(body: dict[str, Any], name: str) -> str:
    """A field as text; '' where it is missing or something else. Lone surrogates, which no database takes, become '?'."""
    value = body.get(name)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def count(body: dict[str, Any], name: str) -> int:
    """A field as a whole number; 0 where it is missing, negative, too great or no number."""
    value = body.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 62
    return int(value) if good and value is not None else 0


def time_of(body: dict[str, Any], name: str) -> datetime:
    """A field as an aware time. Raises HTTPBadRequest."""
    try:
        at = datetime.fromisoformat(text(body, name))
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} must be a time as ISO 8601 writes it") from None
    if at.tzinfo is None:
        raise web.HTTPBadRequest(text=f"{name} must say its time zone")
    return at


def disk_of(given: Any) -> dict[str, Any]:
    """{name, path, model, serial, wwn, size}, whatever was ``given``."""
    said = given if isinstance(given, dict) else {}
    texts = {name: clean(text(said, name), 128) for name in ("name", "path", "model", "serial", "wwn")}
    return {**texts, "size": count(said, "size")}
