"""What the ramdisk tells of the machine and of its work: each report is read, proved, and delivered to whom it concerns.

A report of work that is over, or is not its host's any more, changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import web

from provisiond.boot import said, sessions
from provisiond.boot.callbacks import clean
from provisiond.boot.machines import BootWorld, Machine, Machines
from provisiond.boot.target import Boot
from provisiond.boot.turns import Turns
from provisiond.discovery import controllers, intake
from provisiond.errors import Conflict
from provisiond.inventory.facts import Facts
from provisiond.inventory.masking import cut_out
from provisiond.lifecycle import agent_logs, signals, task_signals

LOG_TAIL = 64 * 1024


class Reports:
    """One method for each POST below /agent but claim; what it returns is the answer, as JSON. ``turns`` are those of GET /agent/plan."""

    def __init__(self, world: BootWorld, machines: Machines, turns: Turns) -> None:
        self._world, self._machines, self._turns = world, machines, turns
        self._intake = intake.Intake(world)

    async def progress(self, request: web.Request) -> dict[str, Any]:
        """{"id", "percent", "text", "done", "total"} -> {"go": true}, or {"go": false, "why"}: the work is not wanted any more."""
        body = await said.body_of(request)
        _, machine = await sessions.prove(self._machines, request)
        work, percent = said.text(body, "id"), body.get("percent")
        if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
            raise web.HTTPBadRequest(text="percent must be a number from 0 to 100")
        text = " ".join(self._told(machine, body, "text", 256).split())
        done, total = said.count(body, "done"), said.count(body, "total")
        why = await self._go(machine, work, int(percent), text, done, total)
        return {"go": False, "why": why} if why else {"go": True}

    async def _go(self, machine: Machine, work: str, percent: int, text: str, done: int, total: int) -> str:
        """Tell it, and why the machine is to stop; '' to go on."""
        host, store = machine.host, self._world.store
        if _is_build(machine, work):
            if machine.target.boot is not Boot.IMAGE:
                return machine.target.why
            if total:
                text = f"{text} ({done >> 20} of {total >> 20} MiB)"
            await self._machines.alive(work)
            await signals.progress(store, work, percent, text)
            return ""
        if host is not None and host.task is not None and host.task.id == work:
            if not machine.target.tasked:
                return machine.target.why
            return await task_signals.progress(store, work, percent, text, done, total)
        return "this work is over: its host has something else to do"

    async def done(self, request: web.Request) -> dict[str, Any]:
        """{"id", "result"}: the plan is carried out."""
        body = await said.body_of(request)
        _, machine = await sessions.prove(self._machines, request)
        work, result = said.text(body, "id"), body.get("result")
        if _is_build(machine, work):
            await signals.built(self._world.store, work)
        elif _is_task(machine, work):
            assert machine.host is not None
            given = result if isinstance(result, dict) else {}
            await controllers.keep(self._world, machine.host.id, machine.host.task, given)
            await task_signals.done(self._world.store, work, given)
        return {}

    async def failed(self, request: web.Request) -> dict[str, Any]:
        """{"id", "message", "log"}: it cannot be carried out."""
        body = await said.body_of(request)
        _, machine = await sessions.prove(self._machines, request)
        work = said.text(body, "id")
        message = " ".join(self._told(machine, body, "message", 2048).split())
        message = message or "the ramdisk reported a failure without a message"
        tail = self._told(machine, body, "log", LOG_TAIL).encode()[-LOG_TAIL:].decode("utf-8", "ignore")
        if _is_build(machine, work):
            await signals.failed(self._world.store, work, message, tail)
        elif _is_task(machine, work):
            await task_signals.failed(self._world.store, work, message, tail)
        return {}

    async def log(self, request: web.Request) -> dict[str, Any]:
        """{"id", "text"}: the whole log of the work; kept beside the database."""
        body = await said.body_of(request)
        _, machine = await sessions.prove(self._machines, request)
        if machine.host is not None:
            text = self._told(machine, body, "text", agent_logs.LOG_BYTES)
            folder = self._world.settings.state.agent_log_dir
            try:
                await asyncio.to_thread(agent_logs.keep, folder, machine.host.id, said.text(body, "id"), text)
            except ValueError as error:
                raise web.HTTPBadRequest(text=str(error)) from None
        return {}

    async def facts(self, request: web.Request) -> dict[str, Any]:
        """What the machine is made of -> {"host": name}."""
        body = await said.body_of(request)
        session, _ = await sessions.prove(self._machines, request)
        facts = Facts.model_validate(body)
        try:
            began = time.monotonic()
            host = await self._intake.take(session, facts)
            self._turns.end(session.id, time.monotonic() - began)
            return {"host": host}
        except Conflict as error:
            raise web.HTTPConflict(text=str(error)) from None

    async def test(self, request: web.Request) -> dict[str, Any]:
        """{"id", "name", "verdict", "output", "seconds"}: one hardware test is through."""
        body = await said.body_of(request)
        _, machine = await sessions.prove(self._machines, request)
        seconds, name = body.get("seconds"), said.text(body, "name")[:64]
        if not name:
            raise web.HTTPBadRequest(text="name must say which test it was")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            seconds = 0.0
        output = self._told(machine, body, "output", task_signals.TEST_OUTPUT)
        if _is_task(machine, work := said.text(body, "id")):
            try:
                await task_signals.record_test(
                    self._world.store, work, name, said.text(body, "verdict"), output, float(seconds)
                )
            except Conflict as error:
                raise web.HTTPBadRequest(text=str(error)) from None
        return {}

    async def erased(self, request: web.Request) -> dict[str, Any]:
        """{"id", "disk", "method", "started", "ended", "verified", "message"}: one disk was erased, or it was tried."""
        body = await said.body_of(request)
        _, machine = await sessions.prove(self._machines, request)
        if _is_task(machine, work := said.text(body, "id")):
            await task_signals.record_erasure(
                self._world.store, work, said.disk_of(body.get("disk")), method=clean(said.text(body, "method"), 32) or "unknown",
                started=said.time_of(body, "started"), ended=said.time_of(body, "ended"), verified=body.get("verified") is True,
                message=self._told(machine, body, "message", 1024),
            )  # fmt: skip
        return {}

    def _told(self, machine: Machine, body: dict[str, Any], name: str, limit: int) -> str:
        """A text of the machine's without control characters, tokens, tickets and secrets of its host."""
        text = clean(said.text(body, name), limit)
        host = machine.host
        if host is None:
            return text
        if host.task is not None and host.task.secret:
            text = cut_out(text, json.loads(self._world.box.decrypt(host.task.secret)))
        return cut_out(text, host.parameters)


def _is_build(machine: Machine, work: str) -> bool:
    deployment = machine.host.deployment if machine.host else None
    return deployment is not None and deployment.id == work and deployment.ended_at is None


def _is_task(machine: Machine, work: str) -> bool:
    return machine.host is not None and machine.host.task is not None and machine.host.task.id == work
