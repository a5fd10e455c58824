"""Sources through the API: kept with their secrets, polled once by several daemons, told by webhooks; on both databases."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from provisiond.templating.git import Git
from provisiond.templating.polling import Poller
from tests.integration.doors import Doors, open_doors
from tests.integration.releases.repository import Repository, make_repository

SECRET = "a secret of sixteen"


@pytest.fixture
async def doors(empty_database_url: str, tmp_path: Path) -> AsyncIterator[Doors]:
    """An API that allows sources below the test's directory."""
    async with open_doors(
        tmp_path / "state", empty_database_url, templates={"source_dirs": [tmp_path / "srv"]}
    ) as doors:
        yield doors


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "srv" / "templates")


@pytest.fixture
async def poller(doors: Doors) -> AsyncIterator[Poller]:
    """The daemon's own."""
    poller = Poller(doors.deps.store, doors.deps.sources)
    await poller.start()
    yield poller
    await poller.stop()


def source(repository: Repository, **more: Any) -> dict[str, Any]:
    return {"name": "ours", "kind": "git", "location": f"file://{repository.path}", **more}


async def seen(doors: Doors, after: Any = None) -> dict[str, Any]:
    """The source once it was looked at after ``after``."""
    async with asyncio.timeout(60):
        while True:
            found = (await doors.call("GET", "/template-sources/ours"))[1]
            if found["polled_at"] not in (None, after):
                return dict(found)
            await asyncio.sleep(0.05)


async def releases(doors: Doors) -> list[tuple[int, str, str | None]]:
    """Number, source and commit, the newest first."""
    items = (await doors.call("GET", "/releases"))[1]["items"]
    return [(r["number"], r["source"], r["git_commit"]) for r in items]


async def test_import_from_a_source(doors: Doors, repository: Repository) -> None:
    """The branch of the source or another ref; author and message are the commit's; nothing becomes current."""
    first = repository.git("rev-parse", "HEAD")
    second = repository.commit("echo two\n", "second")
    assert (await doors.call("POST", "/template-sources", source(repository)))[0] == 201
    status, release = await doors.call("POST", "/releases", {"source": "ours"})
    assert (status, release["git_commit"], release["author"]) == (201, second, "Ann Author <ann@example.org>")
    status, older = await doors.call("POST", "/releases", {"source": "ours", "ref": first})
    assert (status, older["number"], older["message"]) == (201, 3, "first\n\nThe body of it.")
    assert (await doors.call("POST", "/releases", {"source": "ours", "ref": "-x"}))[0] == 422
    assert (await doors.call("POST", "/releases", {"source": "none"}))[0] == 404
    assert (await doors.call("GET", "/releases/current"))[1]["number"] == 1
    status, problem = await doors.call("POST", "/releases", {"source": "ours", "ref": "nowhere"})
    assert status == 422 and "no branch, tag or commit 'nowhere'" in problem["errors"][0]["message"]


async def test_imports_at_once(doors: Doors, repository: Repository) -> None:
    """Several that import the source, and an older commit of it, in the same moment all get what they asked for."""
    first = repository.git("rev-parse", "HEAD")
    second = repository.commit("echo two\n", "second")
    await doors.call("POST", "/template-sources", source(repository))
    asked = [{"source": "ours"}, {"source": "ours", "ref": first}] * 4
    answers = await asyncio.gather(*(doors.call("POST", "/releases", body) for body in asked))
    assert [told.get("git_commit", told) for _, told in answers] == [second, first] * 4
    assert len(await releases(doors)) == 3


async def test_a_directory(doors: Doors, repository: Repository) -> None:
    """A directory is read as it lies; a clean checkout has its commit."""
    body = {"name": "ours", "kind": "directory", "location": str(repository.path)}
    assert (await doors.call("POST", "/template-sources", body))[0] == 201
    head = repository.git("rev-parse", "HEAD")
    assert (await doors.call("POST", "/releases", {"source": "ours"}))[1]["git_commit"] == head
    (repository.path / "script" / "new.sh.j2").write_text("{#\nkind: script\nabout: x\n#}\necho\n")
    status, release = await doors.call("POST", "/releases", {"source": "ours"})
    assert (status, release["git_commit"], len(release["files"])) == (201, None, 2)


async def test_everything_wrong_is_named(doors: Doors, repository: Repository, tmp_path: Path) -> None:
    """Each wrong field in one answer; a source cannot reach out of the directories that are allowed."""
    status, problem = await doors.call(
        "POST", "/template-sources",
        {"name": "x", "kind": "git", "location": "ext::sh", "ref": "-b", "subdirectory": "../x", "key": "none", "poll_seconds": 60},
    )  # fmt: skip
    assert status == 422
    assert {e["field"] for e in problem["errors"]} == {
        "location",
        "ref",
        "subdirectory",
        "key",
        "known_hosts",
    }
    (tmp_path / "srv" / "out").symlink_to("/etc")
    for location in (
        "/etc",
        str(tmp_path),
        str(tmp_path / "srv" / "out"),
        "srv",
        str(tmp_path / "srv" / ".." / "x"),
    ):
        body = {"name": "x", "kind": "directory", "location": location}
        status, problem = await doors.call("POST", "/template-sources", body)
        assert status == 422 and problem["errors"][0]["field"] == "location", location
    assert (await doors.call("POST", "/template-sources", source(repository)))[0] == 201
    status, problem = await doors.call("POST", "/template-sources", source(repository))
    assert status == 422 and problem["errors"][0]["field"] == "name"


async def test_secrets_are_kept_encrypted_and_shown_to_nobody(doors: Doors, repository: Repository) -> None:
    """Key and webhook secret are in no answer and in no column as they are; a new key for the box takes them along."""
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0IQ==\n-----END OPENSSH PRIVATE KEY-----"
    body = source(repository, key=key, known_hosts="git.example.org ssh-ed25519 AAAA", hook_secret=SECRET)
    status, made = await doors.call("POST", "/template-sources", body)
    assert status == 201 and (made["has_key"], made["has_hook"]) == (True, True)
    answers = [
        made,
        *[(await doors.call("GET", f"/template-sources{p}"))[1] for p in ("", "/ours")],
        (await doors.call("GET", "/history"))[1],
    ]
    async with doors.deps.store.read() as session:
        row = (await session.execute(text("SELECT * FROM template_source"))).one()
    assert not any("c2VjcmV0" in str(a) or SECRET in str(a) for a in [*answers, tuple(row)])
    assert await doors.deps.box.rotate(doors.deps.store) >= 2
    assert doors.deps.sources.hook_secret(await doors.deps.sources.row("ours")) == SECRET
    changed = (await doors.call("PATCH", "/template-sources/ours", {"key": None, "ref": "main"}))[1]
    assert (changed["has_key"], changed["has_hook"], changed["ref"]) == (False, True, "main")
    assert (await doors.call("DELETE", "/template-sources/ours"))[0] == 204
    assert (await doors.call("GET", "/template-sources/ours"))[0] == 404


async def test_polling(doors: Doors, repository: Repository, poller: Poller) -> None:
    """What is new becomes a release that is not current; nothing new is nothing; a failure is told until it is mended."""
    first = repository.git("rev-parse", "HEAD")
    await doors.call("POST", "/template-sources", source(repository, poll_seconds=3600))
    found = await seen(doors)
    assert (found["commit"], found["failure"]) == (first, "") and found["due_at"] > found["polled_at"]
    assert (await releases(doors))[0] == (2, "ours", first)
    assert (await doors.call("POST", "/template-sources/ours/poll", {}))[0] == 202
    again = await seen(doors, found["polled_at"])
    assert len(await releases(doors)) == 2
    broken = repository.commit("if true; then\n", "broken")
    await doors.call("POST", "/template-sources/ours/poll", {})
    failed = await seen(doors, again["polled_at"])
    assert "script/hello.sh.j2" in failed["failure"] and failed["commit"] == first != broken
    mended = repository.commit("echo three\n", "mended")
    await doors.call("POST", "/template-sources/ours/poll", {})
    found = await seen(doors, failed["polled_at"])
    assert (found["failure"], found["commit"]) == ("", mended)
    assert (await releases(doors))[:-1] == [(3, "ours", mended), (2, "ours", first)]
    assert (await doors.call("GET", "/releases/current"))[1]["number"] == 1
    kinds = [
        e["kind"]
        for e in (await doors.call("GET", "/history"))[1]["items"]
        if e["kind"].startswith("source.")
    ]
    assert kinds == ["source.created", "source.failed"]


async def test_a_fault_while_looking_is_written_down(
    doors: Doors, repository: Repository, poller: Poller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks, the source says so and is due again in its time: nobody waits for an answer that never comes."""

    async def broken(*_: object) -> str:
        raise RuntimeError("the handler is closed")

    monkeypatch.setattr(Git, "newest", broken)
    await doors.call("POST", "/template-sources", source(repository, poll_seconds=3600))
    found = await seen(doors)
    assert "unforeseen" in found["failure"] and found["due_at"] > found["polled_at"]


async def test_several_daemons_poll_once(doors: Doors, repository: Repository) -> None:
    """Of five that look in the same moment one takes the source."""
    await doors.call("POST", "/template-sources", source(repository, poll_seconds=3600))
    pollers = [Poller(doors.deps.store, doors.deps.sources) for _ in range(5)]
    taken = [t for t in await asyncio.gather(*(p.take() for p in pollers)) if t is not None]
    assert len(taken) == 1 and taken[0][0].name == "ours"


async def test_webhooks(doors: Doors, repository: Repository, poller: Poller) -> None:
    """GitHub's, Gitea's and GitLab's way to prove who sent it; all else is refused in the same words; the news is read at once."""
    await doors.call("POST", "/template-sources", source(repository, hook_secret=SECRET))
    url, body = (
        f"{doors.url}/api/v1/template-sources/ours/hook",
        json.dumps({"ref": "refs/heads/main"}).encode(),
    )
    made = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()

    async def post(at: str, headers: dict[str, str]) -> tuple[int, str]:
        async with doors.session.post(
            at, data=body, headers={"Content-Type": "application/json", **headers}
        ) as answer:
            return answer.status, json.loads(await answer.text()).get("detail", "")

    before = None
    for number, headers in enumerate(
        ({"X-Hub-Signature-256": f"sha256={made}"}, {"X-Gitea-Signature": made}, {"X-Gitlab-Token": SECRET})
    ):
        commit = repository.commit(f"echo {number}\n")
        assert (await post(url, headers))[0] == 202
        found = await seen(doors, before)
        before = found["polled_at"]
        assert found["commit"] == commit and (await releases(doors))[0][2] == commit
    wrong: list[tuple[str, dict[str, str]]] = [
        (url, {}), (url, {"X-Hub-Signature-256": "sha256=" + "0" * 64}), (url, {"X-Gitlab-Token": "another secret of sixteen"}),
        (url, {"X-Hub-Signature-256": f"sha1={made}"}), (url, {"X-Gitlab-Token": ""}), (url.replace("ours", "none"), {"X-Gitlab-Token": SECRET}),
    ]  # fmt: skip
    answers = {await post(at, headers) for at, headers in wrong}
    assert len(answers) == 1 and answers.pop()[0] == 401
    await doors.call("PATCH", "/template-sources/ours", {"hook_secret": None})
    assert (await post(url, {"X-Gitlab-Token": SECRET}))[0] == 401


async def test_roles(doors: Doors, repository: Repository) -> None:
    """Only an administrator says where templates come from; an operator may look and ask for a look."""
    await doors.call("POST", "/template-sources", source(repository))
    await doors.call("POST", "/users", {"name": "op", "role": "operator"})
    token = (await doors.call("POST", "/tokens", {"user": "op"}))[1]["token"]
    assert (await doors.call("GET", "/template-sources/ours", token=token))[0] == 200
    assert (await doors.call("POST", "/template-sources/ours/poll", {}, token=token))[0] == 202
    for method, path in (("POST", ""), ("PATCH", "/ours"), ("DELETE", "/ours")):
        assert (await doors.call(method, f"/template-sources{path}", {}, token=token))[0] == 403
