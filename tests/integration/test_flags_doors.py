"""Feature flags over the API and by provisionctl."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.integration.doors import Doors, open_doors


async def ctl(doors: Doors, *arguments: str) -> tuple[int, str, str]:
    """Exit code, answer and messages of one provisionctl."""
    env = {**os.environ, "PROVISIOND_URL": doors.url, "PROVISIOND_TOKEN": doors.token, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from provisiond.ctl.app import main; main()", "-o", "json", *arguments),
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_flags_by_provisionctl_and_api(tmp_path: Path) -> None:
    """Made, changed, listed and forgotten; every wrong name at once; viewers only look."""
    async with open_doors(tmp_path) as doors:
        await doors.call("POST", "/groups", {"name": "web"})
        code, out, err = await ctl(
            doors, "flag", "create", "new-disk", "--percent", "5", "--group", "web", "--about", "swap"
        )
        assert code == 0, err
        assert (json.loads(out)["percent"], json.loads(out)["groups"]) == (5, ["web"])
        code, out, err = await ctl(doors, "flag", "set", "new-disk", "--percent", "25", "--group", "")
        assert code == 0 and (
            json.loads(out)["percent"],
            json.loads(out)["groups"],
            json.loads(out)["about"],
        ) == (25, [], "swap"), err
        code, _, err = await ctl(doors, "flag", "set", "new-disk", "--host", "nobody", "--group", "none")
        assert code == 1 and "there is no host 'nobody'" in err and "there is no group 'none'" in err
        assert (await ctl(doors, "flag", "set", "new-disk"))[0] == 2
        once = {"Idempotency_Key": "k"}
        bodies: list[Any] = [await doors.call("POST", "/flags", {"name": "b"}, **once) for _ in range(2)]
        assert [status for status, _ in bodies] == [201, 201]
        status, listed = await doors.call("GET", "/flags")
        assert status == 200 and [flag["name"] for flag in listed["items"]] == ["b", "new-disk"]
        assert (await doors.call("POST", "/flags", {"name": "No Name", "percent": 101}))[0] == 422
        await doors.call("POST", "/users", {"name": "eva", "role": "viewer"})
        _, made = await doors.call("POST", "/tokens", {"user": "eva"})
        assert (await doors.call("GET", "/flags/b", token=made["token"]))[0] == 200
        assert (await doors.call("DELETE", "/flags/b", token=made["token"]))[0] == 403
        assert (await doors.call("DELETE", "/flags/b"))[0] == 204
        assert (await doors.call("GET", "/flags/b"))[0] == 404
