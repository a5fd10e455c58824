"""Asks a metric's server for a gate: Prometheus' /api/v1/query, or Graphite's /render.

The servers are those of the settings and no others: a request names one, never an address, and a redirect is not followed.

Sources: Prometheus, HTTP API, "Instant queries"; Graphite, The Render URL API, format=json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import aiohttp

from provisiond.config import RolloutSettings
from provisiond.rollouts.gates import Gate, Reading

MAX_ANSWER = 4 << 20  # bytes
GRAPHITE_FROM = "-10min"


def servers(settings: RolloutSettings) -> dict[str, str]:
    """Name -> base URL of the metric servers that there are."""
    named = {"prometheus": settings.prometheus, "graphite": settings.graphite}
    return {name: url.rstrip("/") for name, url in named.items() if url}


async def read_metric(gate: Gate, settings: RolloutSettings) -> Reading:
    """The newest value of every series that the gate's query gives. Never raises: a problem is part of the reading."""
    base = servers(settings).get(gate.server)
    if base is None:
        return Reading(problem=f"the settings name it no more (rollout.{gate.server})")
    if gate.server == "prometheus":
        url, params = f"{base}/api/v1/query", {"query": gate.query}
    else:
        url, params = f"{base}/render", {"target": gate.query, "format": "json", "from": GRAPHITE_FROM}
    try:
        timeout = aiohttp.ClientTimeout(total=settings.metric_seconds)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, params=params, allow_redirects=False) as answer,
        ):
            body = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > MAX_ANSWER:
                    return Reading(problem=f"its answer is larger than {MAX_ANSWER} bytes")
            said = _loads(body)
            if answer.status != 200:
                why = str(said.get("error", "")) if isinstance(said, Mapping) else ""
                return Reading(problem=f"it answered with status {answer.status} {why}".strip()[:300])
    except TimeoutError:
        return Reading(problem=f"it gave no answer in {settings.metric_seconds:g} s")
    except aiohttp.ClientError as error:
        return Reading(problem=f"it cannot be reached: {type(error).__name__}")
    values = _of_prometheus(said) if gate.server == "prometheus" else _of_graphite(said)
    if values is None:
        return Reading(problem="its answer is not what the server's API says")
    if any(not math.isfinite(value) for value in values):
        return Reading(problem="its answer is not a number (NaN)")
    return Reading(tuple(values))


def _loads(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _of_prometheus(said: Any) -> list[float] | None:
    """Values of a vector's series, or the one of a scalar."""
    try:
        if said["status"] != "success":
            return None
        kind, result = said["data"]["resultType"], said["data"]["result"]
        if kind == "scalar":
            return [float(result[1])]
        if kind == "vector":
            return [float(series["value"][1]) for series in result]
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    return None


def _of_graphite(said: Any) -> list[float] | None:
    """The newest point of each series that has one."""
    try:
        points = [[v for v, _at in series["datapoints"] if v is not None] for series in said]
        return [float(values[-1]) for values in points if values]
    except (KeyError, TypeError, ValueError):
        return None
