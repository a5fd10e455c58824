"""provisionctl release, source and deployment, against a whole daemon on a real socket; only drivers and machines are fakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.releases.repository import make_repository
from tests.integration.test_cli import Lab, running


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A running daemon; release #1 is that of the shipped templates."""
    async with running(tmp_path / "state") as lab:
        yield lab


async def test_releases(lab: Lab, tmp_path: Path) -> None:
    """A clean checkout is imported with its commit, compared, made current, planned back and taken back."""
    repository = make_repository(tmp_path / "ours")
    made = await lab.ctl("release", "import", str(repository.path))
    assert made.code == 0 and "release #2" in made.err and "1 passed, 0 failed" in made.err, made.err
    again = await lab.ctl("release", "import", str(repository.path))
    assert again.code == 0 and "are release #2" in again.err
    shown = json.loads((await lab.ctl("-o", "json", "release", "show", "#2")).out)
    assert shown["git_commit"] == repository.git("rev-parse", "HEAD") and shown["message"].startswith("first")
    repository.commit("echo two\n", "second")
    (repository.path / "script" / "hello.sh.j2").open("a").write("echo three\n")
    changed = await lab.ctl("-o", "json", "release", "import", str(repository.path), "-m", "by hand")
    third = json.loads(changed.out)
    assert (third["number"], third["git_commit"], third["message"]) == (3, None, "by hand")
    (repository.path / "script" / "hello.sh.j2").open("a").write("if true; then\n")
    refused = await lab.ctl("release", "import", str(repository.path))
    assert refused.code == 1 and "files.script/hello.sh.j2" in refused.err
    forced = await lab.ctl("release", "import", str(repository.path), "--force")
    assert forced.code == 0 and "in spite of its problems" in forced.err

    diff = await lab.ctl("release", "diff", "2", "3")
    assert diff.code == 0 and "-echo one" in diff.out and "+echo three" in diff.out
    as_json = json.loads((await lab.ctl("release", "diff", "2", "3", "--format", "json")).out)
    assert [t["path"] for t in as_json["templates"]] == ["script/hello.sh.j2"]
    text = await lab.ctl("release", "files", "3", "script/hello.sh.j2")
    assert text.out.endswith("echo two\necho three\n")
    assert "script/hello.sh.j2" in (await lab.ctl("release", "files", third["digest"][:8])).out

    used = await lab.ctl("release", "use", "3", "--reason", "new disks")
    assert used.code == 0 and "release #3 is current everywhere (before: #1)" in used.err
    plan = await lab.ctl("release", "rollback", "--plan")
    assert plan.code == 0 and "release #1 would be current everywhere (before: #3)" in plan.out
    assert "3" in (await lab.ctl("release", "show")).out.split("\n")[0]
    back = await lab.ctl("release", "rollback", "--reason", "it bricks")
    assert back.code == 0 and "release #1 is current everywhere (before: #3)" in back.err
    history = await lab.ctl("release", "history")
    assert "it bricks" in history.out and "new disks" in history.out and "user:admin" in history.out
    listed = (await lab.ctl("release", "list")).out.split("\n")
    assert "PROBLEMS" in listed[0] and "by hand" in listed[2] and "everywhere" in listed[4]
    for wrong in (("use", "99"), ("rollback", "--group", "none"), ("show", "zz")):
        assert (await lab.ctl("release", *wrong)).code == 1
    assert (await lab.ctl("release", "import")).code == 2
    assert (await lab.ctl("release", "import", str(tmp_path / "none"))).code == 2


async def test_sources(lab: Lab, tmp_path: Path) -> None:
    """Made with a webhook's secret out of a file, looked at when asked, changed and forgotten; failures are told."""
    secret = tmp_path / "hook"
    secret.write_text("a secret of sixteen\n")
    location = "https://127.0.0.1:1/templates.git"
    made = await lab.ctl(
        "-o", "json", "source", "create", "ours", location, "--ref", "main", "--hook-secret-file", str(secret)
    )
    assert made.code == 0, made.err
    shown = json.loads(made.out)
    assert (shown["kind"], shown["has_hook"], shown["poll_seconds"]) == ("git", True, None)
    assert "sixteen" not in made.out
    polled = await lab.ctl("source", "poll", "ours")
    assert polled.code == 1 and "ls-remote failed" in polled.err
    assert "ls-remote failed" in (await lab.ctl("source", "list")).out
    changed = await lab.ctl(
        "-o", "json", "source", "update", "ours", "--poll", "600", "--hook-secret-file", ""
    )
    assert (json.loads(changed.out)["poll_seconds"], json.loads(changed.out)["has_hook"]) == (600, False)
    imported = await lab.ctl("release", "import", "--source", "ours")
    assert imported.code == 1 and "ls-remote failed" in imported.err
    refused = await lab.ctl("source", "create", "etc", "/etc")
    assert refused.code == 1 and "templates.source_dirs" in refused.err
    assert (await lab.ctl("source", "delete", "ours")).code == 0
    assert (await lab.ctl("source", "show", "ours")).code == 1


async def test_deployments(lab: Lab) -> None:
    """A build shows its release by number and digest and every file it was served, with its text; secrets are masked."""
    made = await lab.ctl("hypervisor", "create", "hv1", "fake://memory", "--driver", "fake")
    assert made.code == 0, made.err
    assert (await lab.ctl("flavor", "create", "small")).code == 0
    created = await lab.ctl(
        "host", "create", "vm1", "--mac", "52:54:00:00:00:07", "--subnet", "lab", "--image", "img", "--on", "hv1",
        "--flavor", "small", "--param", "root_password=$6$abc$verysecrethash", "--build", "--wait",
    )  # fmt: skip
    assert created.code == 0, created.err
    await lab.daemon.world.renderings.close()
    release = json.loads((await lab.ctl("-o", "json", "release", "show")).out)
    listed = await lab.ctl("deployment", "list", "vm1")
    assert f"#1 {release['digest'][:12]}" in listed.out
    build = json.loads((await lab.ctl("-o", "json", "deployment", "show", "vm1")).out)
    assert (build["number"], build["release_number"], build["release"]) == (1, 1, release["digest"])
    assert {f["kind"] for f in build["files"]} == {"user-data", "meta-data", "network-config", "vendor-data"}
    assert all(len(f["digest"]) == 64 and f["size"] > 0 and f["times"] == 1 for f in build["files"])
    shown = await lab.ctl("deployment", "show", "vm1", "1", "--file", "user-data")
    assert shown.out.startswith("#cloud-config") and "verysecret" not in shown.out and "MASKED" in shown.out
    table = await lab.ctl("deployment", "show", "vm1")
    assert "user-data" in table.out and "cloud-init/user-data.j2" in table.out
    assert (await lab.ctl("deployment", "show", "vm1", "7")).code == 1
    assert (await lab.ctl("deployment", "show", "vm1", "--file", "kickstart")).code == 1


def test_git_is_there() -> None:
    """The daemon's git and prlimit are of Debian's packages git and util-linux, which the package asks for."""
    assert shutil.which("git") and shutil.which("prlimit")
