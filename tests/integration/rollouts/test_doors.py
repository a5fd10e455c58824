"""Rollouts as operators meet them: provisionctl and the API against a whole daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from sqlalchemy import select

from provisiond.inventory.release_tables import Release
from provisiond.templating.catalogue import Catalogue
from tests.integration.test_cli import Lab, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A running daemon with two hosts of group web in service, and a second release."""
    async with running(tmp_path) as lab:
        assert (await lab.ctl("group", "create", "web")).code == 0
        for n in (1, 2):
            created = await lab.ctl(
                "host", "create", f"web0{n}", "--mac", f"52:54:00:00:00:0{n}", "--subnet", "lab", "--image", "img", "--group", "web",
                "--bmc", f"fake://admin@web0{n}", "--build", *(("--wait",) if n == 2 else ()), PROVISIOND_BMC_PASSWORD="x",
            )  # fmt: skip
            assert created.code == 0, created.err
        await another(lab, "second")
        yield lab


async def another(lab: Lab, note: str) -> None:
    """One more release than there are."""
    async with lab.daemon.world.store.write() as session:
        newest = (await session.execute(select(Release).order_by(Release.number.desc()))).scalars().first()
        assert newest is not None
        files = {path: text.rstrip("\n") + "\n{# " + note + " #}\n" for path, text in newest.files.items()}
        session.add(Release(number=newest.number + 1, digest=Catalogue.of(files).digest, files=files))


async def test_from_start_to_done_and_back(lab: Lab) -> None:
    """A good release is watched to its end; a bad one ends non-zero, and its report says what the machine said."""
    way = (
        "--group",
        "web",
        "--steps",
        "1,100%",
        "--gate",
        "success>=95%",
        "--window",
        "0s",
        "--rebuild",
        "1",
    )
    good = await lab.ctl("rollout", "start", "2", *way, "--gate", "duration<=50x", "--wait")
    assert good.code == 0, good.err
    for shown in (
        "step 1 (1 of 2): release #2 for 1 of 2 hosts",
        "gate success>=95% passed: 1 of 1",
        "done: release #2 is current",
    ):
        assert shown in good.err, good.err
    await another(lab, "third")
    lab.verdict = "the first boot's script ended with 1"
    bad = await lab.ctl("rollout", "start", "3", *way, "--wait")
    assert bad.code == 1, bad.err
    assert "goes back from step 1 (1 of 2)" in bad.err and "provisionctl rollout report 2" in bad.err
    report = await lab.ctl("rollout", "report", "2")
    assert report.code == 0
    assert (
        "success>=95% failed" in report.out
        and "script ended with 1" in report.out
        and "the log's tail" in report.out
    )
    listed = json.loads((await lab.ctl("-o", "json", "rollout", "list")).out)
    assert [(r["number"], r["state"], r["release"], r["before"]) for r in listed] == [
        (2, "back", 3, 2),
        (1, "done", 2, 1),
    ]
    history = await lab.ctl("rollout", "history", "2")
    assert "rollout.report" in history.out and "rollout.gone-back" in history.out


async def test_an_operator_decides(lab: Lab) -> None:
    """Pause, resume, approve, back and cancel; each only where it makes sense."""
    begun = await lab.ctl(
        "rollout", "start", "2", "--group", "web", "--steps", "1,100%", "--gate", "approval", "--window", "0s"
    )
    assert begun.code == 0, begun.err
    view = await _until(lab, "waiting")
    assert view["can"] == ["pause", "approve", "back", "cancel"]
    assert (await lab.ctl("rollout", "pause", "1", "--reason", "lunch")).code == 0
    refused = await lab.ctl("rollout", "pause", "1")
    assert (
        refused.code == 1
        and "rollout 1 is paused and cannot pause now; it can: resume, approve, back, cancel" in refused.err
    )
    assert (await lab.ctl("rollout", "back", "1", "--reason", "not today")).code == 0
    report = await lab.ctl("rollout", "report", "1")
    assert "user:admin asked for it: not today" in report.out
    await _until(lab, "back")
    again = await lab.ctl("rollout", "start", "2", "--group", "web", "--steps", "1,100%")
    assert again.code == 0, again.err
    assert (await lab.ctl("rollout", "cancel", "2")).code == 0
    assert json.loads((await lab.ctl("-o", "json", "rollout", "show", "2")).out)["state"] == "cancelled"


async def _until(lab: Lab, state: str) -> dict[str, Any]:
    """Rollout 1, when the daemon has brought it to ``state``."""
    async with asyncio.timeout(60):
        while True:
            view: dict[str, Any] = json.loads((await lab.ctl("-o", "json", "rollout", "show", "1")).out)
            if view["state"] == state:
                return view


async def test_a_bad_start_names_every_wrong_field(lab: Lab) -> None:
    """Every wrong gate, step, release and group in one answer, and nothing was begun."""
    url, token = lab.daemon.api_url, (lab.directory / "admin.token").read_text().strip()
    body = {
        "release": "77", "group": "nowhere", "steps": ["5%", "1%", "x"],
        "gates": ["success>=95%", "sucess>=1%", "metric:prometheus up >= 1", "duration<=0x"],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {token}"}
    async with ClientSession(headers=headers) as http:
        async with http.post(f"{url}/api/v1/rollouts", json=body) as answer:
            assert answer.status == 422
            fields = {e["field"] for e in (await answer.json())["errors"]}
        assert fields == {"release", "group", "steps.1", "steps.2", "gates.1", "gates.2", "gates.3"}
        good = {"release": "2", "group": "web", "steps": ["100%"], "gates": ["approval"]}
        once = {"Idempotency-Key": "k1"}
        async with http.post(f"{url}/api/v1/rollouts", json=good, headers=once) as answer:
            assert answer.status == 201
            first = await answer.json()
        async with http.post(f"{url}/api/v1/rollouts", json=good, headers=once) as answer:
            assert answer.status == 201 and (await answer.json())["number"] == first["number"]
        async with http.post(f"{url}/api/v1/rollouts", json=good) as answer:
            assert answer.status == 409
            assert "rollout 1 is under way in group web" in (await answer.json())["detail"]
        async with http.get(f"{url}/api/v1/rollouts/1x") as answer:
            assert answer.status == 404
