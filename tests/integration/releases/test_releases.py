"""Releases through the API, on both databases: imported, looked at, compared, made current and rolled back; never changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from provisiond.inventory.store import EVENTS
from provisiond.inventory.tables import Deployment, Host, HostGroup
from provisiond.templating.catalogue import read_files, shipped_directory
from provisiond.templating.releases import find_release
from tests.integration.doors import Doors, open_doors

FIXTURE = "about: a host of these tests.\nlike: redhat-bios-dhcp\nparameters: {greeting: hello}\n"
HEADER = "{#\nkind: script\nabout: a test\nparameters:\n  greeting: {type: string, default: hi, about: What is said.}\nfixtures: [tester]\n#}\n"


def files(body: str = "echo {{ parameters.greeting | shell }}\n", **more: str) -> dict[str, str]:
    """A small set of templates, with the host they are tried on."""
    return {"script/hello.sh.j2": HEADER + "#!/bin/sh\n" + body, "fixtures/tester.yaml": FIXTURE, **more}


@pytest.fixture
async def doors(empty_database_url: str, tmp_path: Path) -> AsyncIterator[Doors]:
    """An API over a fresh database; release #1 is that of the shipped templates."""
    async with open_doors(tmp_path / "state", empty_database_url) as doors:
        yield doors


async def made(doors: Doors, body: str, **more: Any) -> dict[str, Any]:
    """A release of these files."""
    status, release = await doors.call("POST", "/releases", {"files": files(body), **more})
    assert status == 201, release
    return dict(release)


async def moves(doors: Doors, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    return [await doors.call("POST", f"/releases/{path}", body) for path, body in calls]


async def test_import_and_look(doors: Doors) -> None:
    """A release has number, digest, origin and what the validators said; the same files again are the same release."""
    commit = "a" * 40
    release = await made(
        doors, "echo one\n", git_commit=commit, author="Ann <a@example.org>", message="first\n\nof all"
    )
    assert (release["number"], release["new"], release["current"]) == (2, True, [])
    assert (
        release["git_commit"] == commit
        and release["author"].startswith("Ann")
        and release["imported_by"] == "user:admin"
    )
    assert (release["lint"]["passed"], release["lint"]["failed"], release["lint"]["forced"]) == (1, 0, False)
    assert [(f["path"], f["kind"]) for f in release["files"]] == [("script/hello.sh.j2", "script")]
    status, again = await doors.call(
        "POST", "/releases", {"files": files("echo one\n"), "message": "another"}
    )
    assert (status, again["new"], again["number"], again["message"]) == (200, False, 2, "first\n\nof all")
    for name in ("2", "%232", release["digest"], release["digest"][:6]):
        assert (await doors.call("GET", f"/releases/{name}"))[1]["digest"] == release["digest"]
    assert (await doors.call("GET", "/releases/current"))[1]["number"] == 1
    text = (await doors.call("GET", "/releases/2/files/script/hello.sh.j2"))[1]["text"]
    assert text.endswith("echo one\n")
    assert [r["number"] for r in (await doors.call("GET", "/releases"))[1]["items"]] == [2, 1]
    for wrong in ("3", release["digest"][:5], "nothing", "abcdef0", "-1"):
        assert (await doors.call("GET", f"/releases/{wrong}"))[0] == 404, wrong
    events = (await doors.call("GET", "/history?kind=release.imported"))[1]["items"]
    assert [e["data"]["number"] for e in events] == [2]


async def test_what_is_wrong_is_refused_and_named(doors: Doors) -> None:
    """Every wrong file in one answer; problems of the validators too, unless forced, and then they are recorded."""
    bad = {
        "a.j2": "no header",
        "../b.j2": "x",
        "/c.j2": "x",
        "d.txt": "x",
        "e.j2": "{#\nkind: x\nabout: x\n#}\n\0",
    }
    status, problem = await doors.call("POST", "/releases", {"files": bad})
    named = {e["field"] for e in problem["errors"]}
    assert status == 422 and named == {"files.../b.j2", "files./c.j2", "files.d.txt", "files.e.j2"}
    status, problem = await doors.call("POST", "/releases", {"files": {"a.j2": "no header", "b.j2": "none"}})
    assert status == 422 and {e["field"] for e in problem["errors"]} == {"files.a.j2", "files.b.j2"}
    status, problem = await doors.call("POST", "/releases", {"files": files("if true; then\n")})
    assert status == 422 and problem["errors"][0]["field"] == "files.script/hello.sh.j2"
    status, problem = await doors.call("POST", "/releases", {"files": files("{{ nothing.here }}\n")})
    assert status == 422 and "nothing" in problem["errors"][0]["message"]
    status, problem = await doors.call(
        "POST", "/releases", {"files": files(**{"fixtures/bad.yaml": "about: x\nwrong: 1\n"})}
    )
    assert status == 422 and "wrong" in problem["errors"][0]["message"]
    bodies: list[dict[str, Any]] = [
        {},
        {"files": files(), "source": "x"},
        {"files": files(), "ref": "main"},
        {"files": {}},
    ]
    for body in bodies:
        assert (await doors.call("POST", "/releases", body))[0] == 422
    assert len((await doors.call("GET", "/releases"))[1]["items"]) == 1
    release = await made(doors, "if true; then\n", force=True)
    assert release["lint"]["forced"] and release["problems"] == len(release["lint"]["problems"]) > 0


async def test_releases_cannot_be_changed_through_the_api(doors: Doors) -> None:
    """There is no way to change or delete one."""
    release = await made(doors, "echo one\n")
    for method in ("DELETE", "PATCH", "PUT"):
        for path in ("/releases/2", "/releases/2/files/script/hello.sh.j2", f"/releases/{release['digest']}"):
            assert (await doors.call(method, path, {}))[0] == 405, (method, path)
    assert (await doors.call("GET", "/releases/2"))[1]["digest"] == release["digest"]


async def test_the_same_files_at_once_are_one_release(doors: Doors) -> None:
    """Ten imports in the same moment, of three sets: three releases, numbered without a gap."""
    bodies = [{"files": files(f"echo {n % 3}\n")} for n in range(10)]
    answers = await asyncio.gather(*(doors.call("POST", "/releases", body) for body in bodies))
    assert sorted(a["number"] for status, a in answers if status == 201) == [2, 3, 4]
    assert len({a["digest"] for _, a in answers}) == 3


async def test_use_and_rollback(doors: Doors) -> None:
    """Current everywhere and in a group; each rollback goes one further back; the group's pointer goes away at last."""
    for body in ("echo two\n", "echo three\n", "echo four\n"):
        await made(doors, body)
    assert (await doors.call("POST", "/groups", {"name": "web"}))[0] == 201
    first, third, again = await moves(
        doors, ("2/use", {}), ("3/use", {"reason": "new disks"}), ("%233/use", {})
    )
    assert first == (200, {"where": "everywhere", "before": 1, "now": 2, "changed": True})
    assert third[1]["before"] == 2 and again[1] == {
        "where": "everywhere",
        "before": 3,
        "now": 3,
        "changed": False,
    }
    rest = await moves(
        doors, ("4/use", {"group": "web"}), ("rollback", {"reason": "it bricks"}), ("rollback", {})
    )
    assert [(r[1]["before"], r[1]["now"]) for r in rest] == [(None, 4), (3, 2), (2, 1)]
    status, problem = (await moves(doors, ("rollback", {})))[0]
    assert status == 409 and "no earlier release everywhere" in problem["detail"]
    current = {r["number"]: r["current"] for r in (await doors.call("GET", "/releases"))[1]["items"]}
    assert current == {4: ["web"], 3: [], 2: [], 1: ["everywhere"]}
    forth, plan, gone, none = await moves(
        doors, ("rollback", {"to": "3"}), ("rollback", {"group": "web", "plan": True}), ("rollback", {"group": "web"}),
        ("rollback", {"group": "web"}),
    )  # fmt: skip
    assert (forth[1]["before"], forth[1]["now"]) == (1, 3)
    assert (plan[1]["before"], plan[1]["now"], plan[1]["plan"]) == (4, None, True)
    assert (gone[1]["before"], gone[1]["now"], gone[1]["changed"]) == (4, None, True)
    assert none[0] == 409 and "nothing can be rolled back in group web" in none[1]["detail"]
    history = (await doors.call("GET", "/releases/moves"))[1]["items"]
    assert [(m["before"], m["now"], m["back"]) for m in history] == [
        (1, 3, True), (2, 1, True), (3, 2, True), (2, 3, False), (1, 2, False), (None, 1, False)
    ]  # fmt: skip
    assert history[2]["reason"] == "it bricks" and history[2]["actor"] == "user:admin"
    events = (await doors.call("GET", "/history?kind=release.rolled-back"))[1]["items"]
    assert [(e["data"]["from"], e["data"]["to"], e["data"]["where"]) for e in events] == [
        (3, 2, "everywhere"), (2, 1, "everywhere"), (1, 3, "everywhere"), (4, None, "in group web")
    ]  # fmt: skip
    assert events[0]["cause"] == "it bricks"
    assert (await doors.call("POST", "/releases/9/use", {}))[0] == 404
    assert (await doors.call("POST", "/releases/2/use", {"group": "nowhere"}))[0] == 404


async def test_a_rollout_under_way_is_not_pulled_against(doors: Doors) -> None:
    """At its place neither use nor rollback; elsewhere both."""
    await made(doors, "echo two\n")
    await doors.call("POST", "/groups", {"name": "web"})
    await doors.call("POST", "/groups", {"name": "db"})
    assert (await doors.call("POST", "/releases/1/use", {"group": "web"}))[0] == 200
    status, rollout = await doors.call("POST", "/rollouts", {"release": "2", "group": "web"})
    assert status == 201, rollout
    for path, body in (
        ("2/use", {"group": "web"}),
        ("rollback", {"group": "web"}),
        ("rollback", {"group": "web", "plan": True}),
    ):
        status, problem = await doors.call("POST", f"/releases/{path}", body)
        assert status == 409 and "provisionctl rollout cancel 1" in problem["detail"]
    assert (await doors.call("POST", "/releases/2/use", {"group": "db"}))[0] == 200
    assert (await doors.call("POST", "/releases/rollback", {"group": "db"}))[0] == 200


async def test_a_group_that_goes_takes_its_pointer_along(doors: Doors) -> None:
    """A group of the same name later begins without one; the release is current nowhere."""
    await made(doors, "echo two\n")
    assert (await doors.call("POST", "/groups", {"name": "web"}))[0] == 201
    assert (await doors.call("POST", "/releases/2/use", {"group": "web"}))[0] == 200
    assert (await doors.call("DELETE", "/groups/web"))[0] == 204
    assert (await doors.call("GET", "/releases/2"))[1]["current"] == []
    assert (await doors.call("POST", "/groups", {"name": "web"}))[0] == 201
    assert (await doors.call("GET", "/releases/moves?group=web"))[1]["items"] == []


async def hosts_with_builds(doors: Doors) -> dict[str, str]:
    """Hosts in group web: one building with #2, two in service with #2, one in service with #1; and one elsewhere with #2."""
    store, ids = doors.deps.store, {}
    async with store.write(EVENTS) as session:
        releases = {n: (await find_release(session, str(n))).id for n in (1, 2)}
        group = HostGroup(name="web")
        session.add(group)
        await session.flush()
        for name, state, number, where in (
            ("b1", "building", 2, group.id), ("a1", "active", 2, group.id), ("a2", "active", 2, group.id),
            ("old", "active", 1, group.id), ("b0", "building", 1, group.id), ("far", "active", 2, None), ("new", "ready", None, group.id),
        ):  # fmt: skip
            host = Host(name=name, state=state, group_id=where, locked=name == "a2")
            session.add(host)
            await session.flush()
            ids[name] = host.id
            if number:
                build = Deployment(host_id=host.id, release_id=releases[number])
                session.add(build)
                host.deployment_id = build.id
    return ids


async def test_rollback_plan_and_rebuild(doors: Doors) -> None:
    """The plan names who keeps what and who would be rebuilt, and changes nothing; --rebuild asks those, and says who refuses."""
    await made(doors, "echo two\n")
    await hosts_with_builds(doors)
    await moves(doors, ("1/use", {"group": "web"}), ("2/use", {"group": "web"}))
    before = await doors.call("GET", "/releases/moves?group=web")
    status, plan = await doors.call(
        "POST", "/releases/rollback", {"group": "web", "plan": True, "rebuild": True}
    )
    assert status == 200 and (plan["before"], plan["now"], plan["changing"]) == (2, 1, 6)
    assert [(h["host"], h["release"], h["then"]) for h in plan["keep"]] == [("b0", 1, 1), ("b1", 2, 1)]
    assert [h["host"] for h in plan["rebuild"]] == ["a1", "a2", "b1"] and plan["to_rebuild"] == 3
    assert await doors.call("GET", "/releases/moves?group=web") == before
    status, told = await doors.call(
        "POST", "/releases/rollback", {"group": "web", "rebuild": True, "reason": "disks"}
    )
    assert (told["changed"], told["to_rebuild"], told["rebuilt"]) == (True, 3, 2)
    assert [n["host"] for n in told["not_asked"]] == ["a2"] and "locked" in told["not_asked"][0]["why"]
    states = {h["name"]: h["state"] for h in (await doors.call("GET", "/hosts"))[1]["items"]}
    assert states == {
        "a1": "building",
        "a2": "active",
        "b0": "building",
        "b1": "building",
        "far": "active",
        "new": "ready",
        "old": "active",
    }
    causes = (await doors.call("GET", "/history?kind=intent.rebuild"))[1]["items"]
    assert {(e["host"], e["cause"]) for e in causes} == {
        (h, "release #2 was taken back: disks") for h in ("a1", "b1")
    }
    assert (await doors.call("POST", "/hosts/a2/actions/unlock", {}))[0] == 202
    status, told = await doors.call(
        "POST", "/releases/rollback", {"group": "web", "to": "1", "rebuild": True}
    )
    assert (told["changed"], told["to_rebuild"], told["rebuilt"]) == (
        False,
        1,
        1,
    )  # goes on where it was broken off


async def test_diff_of_templates_and_of_results(doors: Doors) -> None:
    """By template; and by what hosts would get, hosts with the same difference together, secrets masked."""
    name = "cloud-init/meta-data.j2"
    kinds = ("cloud-init/", "ipxe/", "grub/", "pxelinux/", "snippets/")
    shipped = {path: text for path, text in read_files(shipped_directory()).items() if path.startswith(kinds)}
    asks = "{% if parameters.root_password is defined %}x: {{ parameters.root_password | yaml }}{% endif %}\n"
    for body in (shipped, {**shipped, name: shipped[name] + asks}):
        status, answer = await doors.call("POST", "/releases", {"files": body, "force": True})
        assert status == 201, answer
    found = (await doors.call("GET", "/releases/2/diff/3"))[1]
    assert [(t["path"], t["change"]) for t in found["templates"]] == [(name, "changed")]
    assert f"--- #2/{name}" in found["templates"][0]["text"]
    assert "\n+{% if parameters.root_password" in found["templates"][0]["text"]
    await doors.call("POST", "/groups", {"name": "web"})
    await doors.call("POST", "/groups", {"name": "sub", "parent": "web"})
    many = [
        {"name": f"h{n}", "mac": f"52:54:00:00:00:{n:02x}", "group": "sub" if n % 2 else "web", "parameters": {"root_password": f"secret-{n}"}}
        for n in range(1, 5)
    ]  # fmt: skip
    status, answer = await doors.call(
        "POST", "/hosts", {"hosts": [*many, {"name": "h9", "mac": "52:54:00:00:00:09", "group": "web"}]}
    )
    assert status == 201, answer
    for query, hosts in (("group=web", ["h1", "h2", "h3", "h4"]), ("host=h2", ["h2"])):
        status, found = await doors.call("GET", f"/releases/2/diff/3?{query}")
        assert status == 200 and "secret-" not in str(found)
        entries = [e for e in found["rendered"] if e["hosts"][0] != "h9"]
        assert [(e["count"], e["hosts"], e["kind"], e["template"]) for e in entries] == [
            (len(hosts), hosts, "changed", name)
        ]
        assert '+x: "MASKED"' in entries[0]["text"]
    same = (await doors.call("GET", "/releases/1/diff/1?group=web"))[1]
    assert (same["hosts"], same["changed"], same["rendered"]) == (5, 0, [])
    assert (await doors.call("GET", "/releases/2/diff/3?group=web&host=h1"))[0] == 422


async def test_roles(doors: Doors) -> None:
    """A viewer looks and changes nothing."""
    await made(doors, "echo two\n")
    await doors.call("POST", "/users", {"name": "v", "role": "viewer"})
    token = (await doors.call("POST", "/tokens", {"user": "v"}))[1]["token"]
    for path in ("/releases", "/releases/2", "/releases/2/files", "/releases/moves"):
        assert (await doors.call("GET", path, token=token))[0] == 200
    for path, body in (("", {"files": files()}), ("/2/use", {}), ("/rollback", {})):
        assert (await doors.call("POST", f"/releases{path}", body, token=token))[0] == 403
    assert (await doors.call("GET", "/releases/1/diff/2", token=token))[0] == 403
