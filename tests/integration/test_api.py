"""The REST API on a real socket, on both databases: what a client may rely on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from provisiond.inventory import history
from provisiond.inventory.hardware_tables import Erasure
from provisiond.inventory.store import EVENTS
from provisiond.inventory.tables import new_id
from provisiond.lifecycle import agent_logs
from tests.integration.doors import Doors, open_doors
from tests.machines import Lobby, server


@pytest.fixture
async def doors(empty_database_url: str, tmp_path: Path) -> AsyncIterator[Doors]:
    """An API over a fresh database."""
    async with open_doors(tmp_path / "state", empty_database_url) as doors:
        yield doors


def host(number: int, **more: Any) -> dict[str, Any]:
    """A small physical host."""
    return {"name": f"h{number:04}", "mac": f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}", **more}


async def test_an_idempotency_key_makes_it_once(doors: Doors) -> None:
    """Sent again, the same request gets the same answer; another request with that key is refused."""
    first = await doors.call("POST", "/hosts", host(1), Idempotency_Key="k")
    again = await doors.call("POST", "/hosts", host(1), Idempotency_Key="k")
    assert first == again and first[0] == 201
    status, problem = await doors.call("POST", "/hosts", host(2), Idempotency_Key="k")
    assert status == 422 and "another request" in problem["detail"]
    assert (await doors.call("POST", "/hosts", host(1)))[0] == 422
    many = {"hosts": [host(3), host(4)]}
    assert await doors.call("POST", "/hosts", many, Idempotency_Key="m") == await doors.call(
        "POST", "/hosts", many, Idempotency_Key="m"
    )


async def test_duplicates_at_the_same_moment(doors: Doors) -> None:
    """Twenty at once with one key: one host, twenty equal answers. A wrong request's answer is not kept."""
    answers = await asyncio.gather(
        *(doors.call("POST", "/hosts", host(1), Idempotency_Key="k") for _ in range(20))
    )
    assert all(answer == answers[0] for answer in answers) and answers[0][0] == 201
    assert len((await doors.call("GET", "/hosts"))[1]["items"]) == 1
    assert (await doors.call("POST", "/hosts", {"name": "x"}, Idempotency_Key="w"))[0] == 422
    assert (await doors.call("POST", "/hosts", host(9), Idempotency_Key="w"))[0] == 201


async def test_gathered_creates_keep_their_own_answers(doors: Doors) -> None:
    """Of many at once some are wrong: those alone are refused, each in its own words, and the others are made."""
    bodies = [host(n) for n in range(40)]
    bodies[7]["name"] = "h0003"
    bodies[21] = {"hosts": [host(121), {"name": "h0121", "mac": "zz"}]}
    bodies[30] = {"hosts": [host(130), host(131, subnet="nowhere")]}
    answers = await asyncio.gather(*(doors.call("POST", "/hosts", body) for body in bodies))
    wrong = {number: answer for number, (status, answer) in enumerate(answers) if status != 201}
    assert set(wrong) in ({7, 21, 30}, {3, 21, 30})  # whichever of the two came first
    assert [e["field"] for e in (wrong.get(7) or wrong[3])["errors"]] == ["name"]
    assert [e["field"] for e in wrong[30]["errors"]] == ["hosts.1.subnet"]
    names = {item["name"] for item in (await doors.call("GET", "/hosts"))[1]["items"]}
    assert len(names) == 37 and not {"h0121", "h0130", "h0131"} & names


async def test_lists_in_pages(doors: Doors) -> None:
    """Pages by cursor hold every host once; filters hold on each of them."""
    assert (await doors.call("POST", "/hosts", {"hosts": [host(n) for n in range(25)]}))[0] == 201
    seen, cursor = [], None
    while True:
        path = "/hosts?limit=10&name=h00*" + (f"&cursor={cursor}" if cursor else "")
        page = (await doors.call("GET", path))[1]
        seen += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [f"h{n:04}" for n in range(25)]
    assert (await doors.call("GET", "/hosts?limit=0"))[0] == 422


async def test_changes_with_etag(doors: Doors) -> None:
    """If-Match refuses a change to a host that has changed since; without it the last one wins."""
    await doors.call("POST", "/hosts", host(1))
    url, headers = f"{doors.url}/api/v1/hosts/h0001", {"Authorization": f"Bearer {doors.token}"}
    async with doors.session.get(url, headers=headers) as answer:
        tag = answer.headers["ETag"]
    async with doors.session.get(url, headers={**headers, "If-None-Match": tag}) as answer:
        assert answer.status == 304
    status, changed = await doors.call("PATCH", "/hosts/h0001", {"comment": "one"}, If_Match=tag)
    assert (status, changed["comment"]) == (200, "one")
    status, problem = await doors.call("PATCH", "/hosts/h0001", {"comment": "two"}, If_Match=tag)
    assert status == 412 and "has changed since" in problem["detail"]
    assert (await doors.call("GET", "/hosts/h0001"))[1]["comment"] == "one"
    assert (await doors.call("PATCH", "/hosts/h0001", {"comment": "two"}))[0] == 200


async def test_no_stale_answer_after_a_write(doors: Doors) -> None:
    """What a write answered is what every later read shows, on whatever connection."""
    await doors.call("POST", "/hosts", host(1))
    for number in range(30):
        await doors.call("PATCH", "/hosts/h0001", {"comment": str(number)})
        reads = await asyncio.gather(*(doors.call("GET", "/hosts/h0001") for _ in range(5)))
        assert {body["comment"] for _, body in reads} == {str(number)}


async def test_roles(doors: Doors) -> None:
    """A viewer looks, an operator changes, an administrator decides who may; revoking holds at once."""
    tokens = {}
    for role in ("viewer", "operator"):
        await doors.call("POST", "/users", {"name": role, "role": role})
        status, made = await doors.call("POST", "/tokens", {"user": role})
        assert status == 201
        tokens[role] = made["token"]
    assert (await doors.call("GET", "/hosts", token=tokens["viewer"]))[0] == 200
    assert (await doors.call("POST", "/hosts", host(1), token=tokens["viewer"]))[0] == 403
    assert (await doors.call("POST", "/hosts", host(1), token=tokens["operator"]))[0] == 201
    assert (await doors.call("GET", "/users", token=tokens["operator"]))[0] == 403
    assert (await doors.call("POST", "/tokens", {"user": "admin"}, token=tokens["operator"]))[0] == 403
    own = (await doors.call("GET", "/tokens", token=tokens["operator"]))[1]["items"]
    assert {t["user"] for t in own} == {"operator"}
    assert (await doors.call("DELETE", f"/tokens/{own[0]['id']}", token=tokens["operator"]))[0] == 204
    assert (await doors.call("GET", "/hosts", token=tokens["operator"]))[0] == 401
    assert (await doors.call("GET", "/hosts", token="pvd_nobody"))[0] == 401


async def test_verbs_power_lock_and_their_conflicts(doors: Doors) -> None:
    """An intent is recorded and shown; one that the table does not know is a conflict that says what would do."""
    await doors.call("POST", "/hosts", host(1, build=True))
    assert (await doors.call("GET", "/hosts/h0001"))[1]["wanted"] == "build"
    status, problem = await doors.call("POST", "/hosts/h0001/actions/configure", {})
    assert status == 409 and "it can:" in problem["detail"]
    status, problem = await doors.call("POST", "/hosts/h0001/actions/explode", {})
    assert status == 422 and "there are: " in problem["errors"][0]["message"]
    assert (await doors.call("POST", "/hosts/h0001/actions/lock", {}))[1]["locked"] is True
    assert (await doors.call("POST", "/hosts/h0001/actions/retire", {}))[0] == 409
    assert (await doors.call("POST", "/hosts/h0001/power", {"action": "on"}))[0] == 409
    assert (await doors.call("POST", "/hosts/h0001/actions/unlock", {}))[1]["locked"] is False
    status, shown = await doors.call("POST", "/hosts/h0001/actions/maintenance", {"reason": "new disks"})
    assert (status, shown["maintenance"]) == (202, "new disks")
    assert (await doors.call("POST", "/hosts/nobody/actions/build", {}))[0] == 404
    kinds = [e["kind"] for e in (await doors.call("GET", "/hosts/h0001/history"))[1]["items"]]
    assert kinds == ["host.created", "intent.build", "host.locked", "host.unlocked", "host.maintenance"]


class Stream:
    """Reads server-sent events."""

    def __init__(self, doors: Doors, path: str, **headers: str) -> None:
        sent = {
            "Authorization": f"Bearer {doors.token}",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        self._request = doors.session.get(f"{doors.url}/api/v1{path}", headers=sent)

    async def __aenter__(self) -> Stream:
        self.answer = await self._request.__aenter__()
        assert self.answer.content_type == "text/event-stream"
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.answer.close()

    async def read(self, count: int) -> list[dict[str, Any]]:
        """The next ``count`` events."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            async for line in self.answer.content:
                if line.startswith(b"data: "):
                    found.append(json.loads(line[6:]))
                    if len(found) == count:
                        break
        return found


async def test_events_are_neither_lost_nor_doubled(doors: Doors) -> None:
    """Many watchers, begun at any moment and resumed, see the same events as the history has, each once and in order."""
    await doors.call("POST", "/hosts", host(0))
    all_of_them = len((await doors.call("GET", "/history"))[1]["items"]) + 50

    async def writer(number: int) -> None:
        for n in range(10):
            await doors.call("POST", "/hosts", host(number * 100 + n))

    async def watcher(pause: float) -> list[int]:
        await asyncio.sleep(pause)
        async with Stream(doors, "/events?after=0") as stream:
            ids = [e["id"] for e in await stream.read(15)]
        async with Stream(doors, "/events", Last_Event_ID=str(ids[-1])) as stream:
            return ids + [e["id"] for e in await stream.read(all_of_them - 15)]

    results = await asyncio.gather(*(watcher(n * 0.05) for n in range(6)), *(writer(n) for n in range(1, 6)))
    all_ids = [e["id"] for e in (await doors.call("GET", "/history"))[1]["items"]]
    assert len(all_ids) == all_of_them
    for ids in results[:6]:
        assert ids == all_ids


async def test_a_hosts_own_stream(doors: Doors) -> None:
    """A stream of one host holds its events only, from the moment its head was sent."""
    await doors.call("POST", "/hosts", host(1))
    await doors.call("POST", "/hosts", host(2))
    async with Stream(doors, "/hosts/h0001/events") as stream:
        await doors.call("POST", "/hosts/h0002/actions/lock", {})
        await doors.call("POST", "/hosts/h0001/actions/lock", {})
        assert [(e["host"], e["kind"]) for e in await stream.read(1)] == [("h0001", "host.locked")]
    status, _ = await doors.call("GET", "/hosts/nobody/events")
    assert status == 404


async def test_a_slow_watcher_catches_up_from_the_database(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher that falls behind what is kept in memory still gets everything once."""
    monkeypatch.setattr("provisiond.observe.follow._BACKLOG", 20)
    monkeypatch.setattr("provisiond.observe.follow._PAGE", 7)
    watching = doors.deps.history.watch(after=0)
    got = [e.id for e in await anext(watching)]
    for n in range(60):
        await doors.call("POST", "/hosts", host(n))
    await doors.deps.history.now()  # it is behind by all of them
    everything = [e["id"] for e in (await doors.call("GET", "/history"))[1]["items"]]
    while len(got) < len(everything):
        got += [e.id for e in await asyncio.wait_for(anext(watching), 30)]
    assert got == everything


async def test_an_id_that_becomes_visible_late_is_waited_for(doors: Doors) -> None:
    """PostgreSQL may show event 7 before 6 is committed: watchers get 6 first all the same."""
    if doors.deps.store.sqlite:
        pytest.skip("SQLite has one writer: ids are visible in their order")
    store = doors.deps.store
    async with Stream(doors, "/events") as stream:
        async with store.write(EVENTS) as slow:
            early = await history.add(slow, kind="test.early")
            async with store.write(EVENTS) as quick:
                late = await history.add(quick, kind="test.late")
            await asyncio.sleep(0.4)  # the later one is committed and announced; the earlier one is not
        assert [e["id"] for e in await stream.read(2)] == [early, late]
        with suppress(ZeroDivisionError):
            async with store.write(EVENTS) as broken:  # leaves a gap for ever
                await history.add(broken, kind="test.gone")
                raise ZeroDivisionError
        async with store.write(EVENTS) as session:
            after = await history.add(session, kind="test.after")
        assert [e["id"] for e in await stream.read(1)] == [after]


async def test_the_description_is_valid(doors: Doors) -> None:
    """openapi.json is OpenAPI 3.1 by the specification's own schema, and tells of every route."""
    status, document = await doors.call("GET", "/openapi.json")
    assert status == 200
    validate(document)
    assert document["paths"]["/api/v1/hosts"]["post"]["x-role"] == "operator"
    operations = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(operations) == len(set(operations))


async def test_every_get_answers_as_described(doors: Doors) -> None:
    """Each GET without path parameters answers 200 with what its schema in openapi.json says."""
    from jsonschema import Draft202012Validator

    await doors.call(
        "POST", "/subnets", {"name": "lab", "cidr": "10.0.0.0/24", "pools": ["10.0.0.5-10.0.0.9"]}
    )
    _, made = await doors.call("POST", "/hosts", host(1, subnet="lab", bmc="ipmi://a@10.9.9.9"))
    lobby = Lobby(doors.deps.settings, doors.deps.store, doors.deps.box)
    await lobby.report(server(1), host_id=made["id"])  # one that has told what it is made of
    await lobby.report(server(2))  # and one that waits
    erased = {
        "id": new_id(),
        "task_id": new_id(),
        "host_id": made["id"],
        "host_name": "h0001",
        "disk_name": "sda",
    }
    async with doors.deps.store.write() as session:  # and one disk of the first has been erased
        session.add(Erasure(**erased, disk_size=10**12, method="discard", verified=True))
    document = (await doors.call("GET", "/openapi.json"))[1]
    for path, operations in document["paths"].items():
        get = operations.get("get")
        if get is None or "text/event-stream" in get["responses"]["200"].get("content", {}):
            continue
        here = (
            path.removeprefix("/api/v1")
            .replace("/hosts/{name}", "/hosts/h0001")
            .replace("/subnets/{name}", "/subnets/lab")
        )
        content = get["responses"]["200"].get("content", {}).get("application/json")
        if "{" in here or content is None:
            continue
        status, body = await doors.call("GET", here)
        assert status == 200, here
        Draft202012Validator({**content["schema"], "components": document["components"]}).validate(body)


async def test_health_and_metrics(doors: Doors) -> None:
    """Alive, ready, and figures that count what was done; no names of hosts among them."""
    await doors.call("POST", "/hosts", host(1))
    await doors.deps.history.now()  # what came of it has been counted
    async with doors.session.get(f"{doors.url}/healthz") as answer:
        assert answer.status == 200
    async with doors.session.get(f"{doors.url}/readyz") as answer:
        assert await answer.json() == {"status": "ok", "checks": {"database": "ok"}}
    async with doors.session.get(f"{doors.url}/metrics") as answer:
        text = await answer.text()
    assert 'provisiond_hosts{state="enrolled"} 1.0' in text
    assert 'provisiond_events_total{kind="host.created"} 1.0' in text
    assert 'provisiond_api_seconds_count{method="POST",route="/api/v1/hosts",status="201"} 1.0' in text
    assert "h0001" not in text


async def test_not_ready_says_why(doors: Doors) -> None:
    """A check that fails, or does not answer, makes the daemon not ready, by name."""

    async def broken() -> str:
        return "nobody listens on port 69"

    doors.deps.checks["tftp"] = broken
    async with doors.session.get(f"{doors.url}/readyz") as answer:
        assert (answer.status, (await answer.json())["checks"]["tftp"]) == (503, "nobody listens on port 69")


async def test_no_secret_comes_back(doors: Doors) -> None:
    """A BMC's password is in no answer, event or rendered text, and not in the database in clear."""
    body = host(1, bmc={"driver": "ipmi", "address": "10.0.0.1", "username": "u", "password": "hunter22"})
    texts = [json.dumps(await doors.call("POST", "/hosts", body, Idempotency_Key="k"))]
    for path in ("/hosts/h0001", "/hosts", "/history", "/hosts/h0001/parameters"):
        texts.append(json.dumps(await doors.call("GET", path)))
    assert not any("hunter22" in text for text in texts)


async def test_what_a_ramdisk_logged(doors: Doors) -> None:
    """The newest log, or that of one piece of work; for operators, as plain text."""
    made = (await doors.call("POST", "/hosts", host(1)))[1]
    assert (await doors.call("GET", "/hosts/h0001/agent-log"))[0] == 404
    folder = doors.deps.settings.state.agent_log_dir
    agent_logs.keep(folder, made["id"], "11111111-2222", "first\n")
    agent_logs.keep(folder, made["id"], "33333333-4444", "second\n")
    headers = {"Authorization": f"Bearer {doors.token}"}
    for query, text in (("", "second\n"), ("?work=11111111-2222", "first\n")):
        async with doors.session.get(
            f"{doors.url}/api/v1/hosts/h0001/agent-log{query}", headers=headers
        ) as answer:
            assert (answer.status, answer.content_type, await answer.text()) == (200, "text/plain", text)
    assert (await doors.call("GET", "/hosts/h0001/agent-log?work=../x"))[0] == 422


async def test_the_console_is_followed(doors: Doors) -> None:
    """follow=true sends what comes, until the client leaves."""
    made = (await doors.call("POST", "/hosts", host(1)))[1]
    path = doors.deps.consoles.path(made["id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"one\n")
    url = f"{doors.url}/api/v1/hosts/h0001/console?follow=true"
    async with doors.session.get(url, headers={"Authorization": f"Bearer {doors.token}"}) as answer:
        assert await answer.content.readline() == b"one\n"
        with path.open("ab") as file:
            file.write(b"two\n")
        assert await asyncio.wait_for(answer.content.readline(), 30) == b"two\n"


async def test_a_medium_is_imported_with_progress(doors: Doors, tmp_path: Path) -> None:
    """An import is started, watched, and ends in words when it fails."""
    status, job = await doors.call(
        "POST", "/images", {"name": "i", "source": str(tmp_path / "no.raw"), "format": "raw"}
    )
    assert (status, job["kind"], job["state"]) == (202, "image", "running")
    for _ in range(600):
        job = (await doors.call("GET", f"/imports/{job['id']}"))[1]
        if job["state"] != "running":
            break
        await asyncio.sleep(0.05)
    assert job["state"] == "failed" and "no.raw" in job["message"]
    assert (await doors.call("GET", "/imports"))[1]["items"][0]["id"] == job["id"]


async def test_viewers_see_no_secret_parameters(doors: Doors) -> None:
    """Parameters whose names say secret are masked for viewers, on hosts, groups and globally; operators see what they set."""
    secret = {"root_password": "$6$abc$defghi", "vault": {"token": "t0psecret"}, "port": 22}
    await doors.call("POST", "/groups", {"name": "web", "parameters": secret})
    await doors.call("PUT", "/parameters", {"parameters": secret})
    await doors.call("POST", "/hosts", host(1, group="web", parameters=secret))
    await doors.call("POST", "/users", {"name": "eve", "role": "viewer"})
    token = (await doors.call("POST", "/tokens", {"user": "eve"}))[1]["token"]
    for path in ("/hosts/h0001", "/hosts/h0001/parameters", "/groups", "/groups/web", "/parameters"):
        text = json.dumps((await doors.call("GET", path, token=token))[1])
        assert "defghi" not in text and "t0psecret" not in text and '"port": 22' in text, path
    assert (await doors.call("GET", "/hosts/h0001"))[1]["parameters"] == secret
    body = {"host": "h0001", "kind": "user-data"}
    assert (await doors.call("POST", "/templates/render", body, token=token))[0] == 403
