"""The ramdisk's door, below /agent: JSON in and out. What is refused says why in {"error": "..."}. What it tells: agent_reports.py.

    POST /agent/claim      a ticket becomes a session          GET  /agent/plan          what to do now
    POST /agent/progress   go on, or stop                      POST /agent/done  failed  log      of the plan with that id
    POST /agent/facts      what the machine is made of         POST /agent/test  erased           results on the way
    GET  /agent/test/NAME  script of a hardware test           GET  /agent/rescue        GET /agent/speed?mib=N   zeros

All but claim want `Authorization: Bearer SESSION:SECRET`. Every call may be repeated: each is one transaction that leaves alone
what is stored already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from provisiond.boot import plan as plans
from provisiond.boot import said, sessions
from provisiond.boot.agent_reports import Reports
from provisiond.boot.image_source import image_source
from provisiond.boot.machines import BootWorld, Machine, Machines
from provisiond.boot.scripts import NotServable
from provisiond.boot.sessions import AgentRefused
from provisiond.boot.target import Boot
from provisiond.boot.turns import Turns
from provisiond.config import Settings
from provisiond.errors import FieldError, Invalid, NotFound, RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle.table import RESTING, State
from provisiond.media.hardware_tests import BadTest, TestScript, choose_tests, find_test, script
from provisiond.templating.context import BuildUrls

log = structlog.get_logger(__name__)

MAX_SPEED_MIB = 1024
SPEED_TESTS = 4  # at once: they are to measure the network, and machines are built meanwhile
# machines that are asked for their facts; a report costs some 10 ms of one processor
REPORTS_PER_SECOND = 25.0
REPORTS_AT_ONCE = 10
_ZEROS = bytes(1 << 18)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def agent_app(world: BootWorld, machines: Machines) -> web.Application:
    """The application below /agent of the boot server. ``machines`` is shared with it, so that boots are counted once."""
    app = web.Application(middlewares=[_json_errors])
    turns = Turns(REPORTS_PER_SECOND, REPORTS_AT_ONCE)
    door, reports = _Door(world, machines, turns), Reports(world, machines, turns)
    get, post = app.router.add_get, app.router.add_post
    post("/claim", door.claim)
    get("/plan", door.plan)
    get("/rescue", door.rescue)
    get("/test/{name}", door.test_script)
    get("/speed", door.speed)
    for name in ("facts", "progress", "done", "failed", "log", "test", "erased"):
        post(f"/{name}", _answered(getattr(reports, name)))
    return app


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as one sentence. What went wrong inside is logged, not told to machines."""
    try:
        return await handler(request)
    except AgentRefused as refused:
        return _error(refused.status, str(refused))
    except web.HTTPException as answer:
        return _error(answer.status, answer.text or str(answer.reason))
    except NotFound:
        return _error(410, "this session is over: its host was deleted")
    except (NotServable, RenderError) as error:
        log.error("agent.not_servable", path=request.path, error=str(error))
        return _error(
            503,
            str(error)
            if isinstance(error, NotServable)
            else "it cannot be rendered; the host's history says why",
        )
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("agent.request_broke", path=request.path)
        return _error(500, "the daemon failed to answer; its log says why")


class _Door:
    """The handlers of what the ramdisk asks."""

    def __init__(self, world: BootWorld, machines: Machines, turns: Turns) -> None:
        self._world, self._machines, self._turns = world, machines, turns
        self._speed = asyncio.Semaphore(SPEED_TESTS)

    async def claim(self, request: web.Request) -> web.Response:
        """{"ticket", "secret", "identity": {"macs", "serial", "uuid"}, "version": 1} -> {"session", "host"}."""
        body = await said.body_of(request)
        if body.get("version") != 1:
            raise AgentRefused(400, "this daemon speaks version 1 with its ramdisk: make the ramdisk anew")
        identity = sessions.identity_of(body.get("identity"), request.remote or "")
        claimed = await sessions.claim(
            self._world, said.text(body, "ticket"), said.text(body, "secret"), identity
        )
        return _json({"session": claimed.session, "host": claimed.host})

    async def plan(self, request: web.Request) -> web.Response:
        """What to do now."""
        session, machine = await sessions.prove(self._machines, request)
        try:
            return _json(await self._plan(session, machine))
        except (NotServable, RenderError, Invalid) as error:
            await self._give_up(machine, error)
            return _json(plans.wait())

    async def _plan(self, session: Any, machine: Machine) -> dict[str, Any]:
        host = machine.host
        if host is not None and machine.target.boot is Boot.IMAGE and host.deployment is not None:
            if host.deployment.boots == 0:  # its ramdisk was running before the build began
                machine = await self._machines.hand_out(machine)
            if machine.target.boot is Boot.IMAGE:
                source = await asyncio.to_thread(image_source, self._world.settings, host)
                return plans.image_plan(host, source, self._machines.urls_of(machine))
        elif host is not None and machine.target.tasked and host.task is not None:
            tests = await asyncio.to_thread(_tests_of, host, self._world.settings)
            return plans.task_plan(host, self._world.box, tests)
        if not plans.waits(machine) and session.host_id is not None:
            return dict(plans.REBOOT)
        if session.facts_at is not None:
            moving = host is not None and State(host.row.state) not in RESTING and host.row.failure is None
            return plans.wait(seconds=plans.SOON_SECONDS if moving else plans.WAIT_SECONDS)
        later = self._turns.wait(session.id)
        return plans.wait(seconds=later) if later else plans.wait(facts=True)

    async def _give_up(self, machine: Machine, error: Exception) -> None:
        """What cannot be served fails the work at once, with the reason, instead of by its time limit."""
        log.error("agent.not_servable", host=machine.name, error=str(error))
        await self._machines.give_up(machine, str(error))

    async def test_script(self, request: web.Request) -> web.Response:
        """The script of a hardware test."""
        await sessions.prove(self._machines, request)
        name = request.match_info["name"]
        found = await asyncio.to_thread(find_test, self._world.settings, name)
        if found is None:
            raise web.HTTPNotFound(text=f"there is no hardware test {name!r}")
        try:
            body = await asyncio.to_thread(script, found)
        except BadTest as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        return web.Response(body=body, content_type="text/plain", headers={"Cache-Control": "no-store"})

    async def rescue(self, request: web.Request) -> web.Response:
        """The script that makes the ramdisk a place to repair this host from, while the host is in rescue."""
        _, machine = await sessions.prove(self._machines, request)
        if machine.target.boot is not Boot.RESCUE or machine.host is None:
            raise web.HTTPGone(text=f"host {machine.name} is not in rescue: {machine.target.why}")
        urls = BuildUrls.of(self._world.boot_url, "none")  # no file of a build is fetched by it
        text = await self._world.renderings.serve(machine.host, "rescue", urls, noted=False)
        return web.Response(text=text, headers={"Cache-Control": "no-store"})

    async def speed(self, request: web.Request) -> web.StreamResponse:
        """``mib`` MiB of zeros, at most 1024: what the network carries. 503 while others measure."""
        await sessions.prove(self._machines, request)
        wanted = request.query.get("mib", "")
        if not (wanted.isascii() and wanted.isdecimal() and 0 < int(wanted[:9]) <= MAX_SPEED_MIB):
            raise web.HTTPBadRequest(text=f"mib must be a whole number from 1 to {MAX_SPEED_MIB}")
        if self._speed.locked():
            raise web.HTTPServiceUnavailable(
                text=f"{SPEED_TESTS} machines measure already: ask again", headers={"Retry-After": "5"}
            )
        async with self._speed:
            answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            answer.content_length = int(wanted) << 20
            await answer.prepare(request)
            for _ in range((int(wanted) << 20) // len(_ZEROS)):
                await answer.write(_ZEROS)
            await answer.write_eof()
            return answer


# --- inner -----------------------------------------------------------------------------------------------


def _answered(report: Callable[[web.Request], Awaitable[dict[str, Any]]]) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        return _json(await report(request))

    return handle


def _tests_of(host: ResolvedHost, settings: Settings) -> list[TestScript]:
    """The hardware tests of the host's task: what an inspection was asked for, and the parameter erase_tests before an erasure. Blocks."""
    assert host.task is not None
    if host.task.kind == "inspect":
        return choose_tests(settings, host.task.options.get("tests", ()))
    if host.task.kind == "erase":
        wanted = host.parameters.get("erase_tests", [])
        if not isinstance(wanted, str | list) or not all(isinstance(name, str) for name in wanted):
            raise Invalid([FieldError("erase_tests", f"host {host.name}: a list of names of hardware tests")])
        return choose_tests(settings, wanted, "erase_tests", erasing=True)
    return []


def _json(value: Any) -> web.Response:
    return web.json_response(value, headers={"Cache-Control": "no-store"})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message.strip()}, status=status)
