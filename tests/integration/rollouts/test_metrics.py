"""Metric gates: against a real Prometheus, and against a server that speaks Graphite's render API."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from provisiond.config import RolloutSettings
from provisiond.rollouts.gates import parse
from provisiond.rollouts.metrics_query import read_metric


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that scrapes nothing: PromQL computes what is asked."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Debian's package prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("w"),
    )  # fmt: skip
    try:
        end = time.monotonic() + 90
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("vector(0.25)", (0.25,)),
        ("scalar(vector(2))", (2.0,)),
        ("vector(3) > 2", (3.0,)),
        ("up", ()),
        ('label_replace(vector(1), "a", "x", "", "") or vector(4)', (1.0, 4.0)),
    ],
)
async def test_prometheus_answers(prometheus: str, query: str, values: tuple[float, ...]) -> None:
    """Vectors, scalars, comparisons within the query, and no series at all."""
    gate = parse(f"metric:prometheus {query} <= 0.5")
    reading = await read_metric(gate, RolloutSettings(prometheus=prometheus, metric_seconds=30))
    assert reading.problem == "" and tuple(sorted(reading.values)) == values


@pytest.mark.parametrize(
    ("query", "why"), [("sum(", "parse error"), ("vector(1)/0 - vector(1)/0", "NaN"), ("up[5m]", "not what")]
)
async def test_what_prometheus_cannot_say(prometheus: str, query: str, why: str) -> None:
    """A wrong query, a value that is no number, and a range in place of a moment are problems, not verdicts."""
    gate = parse(f"metric:prometheus {query} <= 0.5")
    reading = await read_metric(gate, RolloutSettings(prometheus=prometheus, metric_seconds=30))
    assert why in reading.problem and not reading.values


@asynccontextmanager
async def server(answer: Any) -> AsyncIterator[str]:
    """A server that answers every request with ``answer`` (a coroutine function)."""
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_graphite_answers() -> None:
    """The newest point of each series that has one; the target is sent as it was written."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query["target"])
        points = [[0.1, 1], [0.3, 2], [None, 3]]
        return web.json_response(
            [{"target": "a", "datapoints": points}, {"target": "b", "datapoints": [[None, 1]]}]
        )

    async with server(answer) as url:
        gate = parse("metric:graphite summarize(a.b, '1min') <= 0.5")
        reading = await read_metric(gate, RolloutSettings(graphite=url))
    assert reading.values == (0.3,) and asked == ["summarize(a.b, '1min')"]


async def test_servers_that_misbehave(tmp_path: Path) -> None:
    """Silence, a redirect elsewhere, nonsense and too much are problems within the time; nobody is redirected."""
    followed: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        followed.append(request.path)
        return web.Response(status=302, headers={"Location": "/secret"})

    async def silent(_request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def nonsense(_request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async def endless(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        for _ in range(80):
            await stream.write(b"x" * (1 << 16))
        return stream

    gate = parse("metric:prometheus up <= 1")
    for answer, why in (
        (redirect, "302"),
        (silent, "no answer"),
        (nonsense, "not what"),
        (endless, "larger than"),
    ):
        async with server(answer) as url:
            seconds = 1.0 if answer is silent else 30.0
            reading = await read_metric(gate, RolloutSettings(prometheus=url, metric_seconds=seconds))
        assert why in reading.problem, reading
    assert followed == ["/api/v1/query"]
    assert "cannot be reached" in (await read_metric(gate, RolloutSettings(prometheus=url))).problem
    assert "rollout.prometheus" in (await read_metric(gate, RolloutSettings())).problem
