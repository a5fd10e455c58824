"""Git as a source: real repositories, over files and over a real sshd with a deploy key; and what is refused."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from provisiond.templating.git import Git, GitError, Limits, Repository, wrong_ref, wrong_url
from provisiond.templating.imports import belongs
from tests.contract.test_handover import Sshd, configure
from tests.integration.releases.repository import HEADER, make_repository
from tests.integration.releases.repository import Repository as Made


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """A running sshd with a deploy key."""
    if os.geteuid() or not shutil.which("/usr/sbin/sshd"):
        pytest.skip("needs root and openssh-server")
    folder = Path(tempfile.mkdtemp(prefix="rg", dir="/tmp"))
    server = configure(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A repository with a first commit."""
    return make_repository(tmp_path / "repository")


def over(how: str, made: Made, request: pytest.FixtureRequest) -> Repository:
    """The repository as a source by ``how``."""
    if how == "file":
        return Repository(f"file://{made.path}", directories=[made.path.parent])
    server: Sshd = request.getfixturevalue("sshd")
    return Repository(
        f"ssh://root@127.0.0.1:{server.port}{made.path}",
        key=(server.folder / "key").read_text(),
        known_hosts=f"[127.0.0.1]:{server.port} {server.host_key}",
    )


def opened(repository: Repository, folder: Path, limits: Limits | None = None) -> Git:
    return Git(repository, folder / "cache.git", folder / "run", limits)


@pytest.mark.parametrize("how", ["file", "ssh"])
async def test_every_kind_of_ref(
    made: Made, tmp_path: Path, request: pytest.FixtureRequest, how: str
) -> None:
    """The default branch, a branch, tags of both kinds, and commits that are no tip, whole and shortened; nothing of keys is left."""
    first = made.git("rev-parse", "HEAD")
    made.git("tag", "light")
    second = made.commit("echo two\n", "second")
    made.git("tag", "-a", "-m", "annotated", "v2")
    made.git("checkout", "-q", "-b", "side/branch")
    third = made.commit("echo three\n", "third")
    made.git("checkout", "-q", "main")
    fourth = made.commit("echo four\n", "fourth")
    git = opened(over(how, made, request), tmp_path)
    wanted = {
        "": fourth, "main": fourth, "side/branch": third, "light": first, "v2": second, second: second, first[:12]: first, "main2": None,
    }  # fmt: skip
    for ref, commit in wanted.items():
        if commit is None:
            with pytest.raises(GitError, match="no branch, tag or commit 'main2'"):
                await git.fetch(ref)
            continue
        found = await git.fetch(ref)
        assert found.sha == commit, ref
        if len(ref) != 12:
            assert await git.newest(ref) == commit
    found = await git.fetch("light")
    assert found.author == "Ann Author <ann@example.org>" and found.message == "first\n\nThe body of it."
    assert await git.files(first, "", belongs) == {"script/hello.sh.j2": HEADER + "echo one\n"}
    assert list((tmp_path / "run").iterdir()) == []
    assert "PRIVATE" not in repr(over(how, made, request))


async def test_ssh_wants_the_right_key_and_the_right_host(
    made: Made, tmp_path: Path, request: pytest.FixtureRequest, sshd: Sshd
) -> None:
    """An unknown host key, another one, no deploy key or one that is not let in: refused, in words, and no key is told."""
    good = over("ssh", made, request)
    other = (sshd.folder / "host").read_text()  # a key, but nobody's whom this server lets in
    known = good.known_hosts
    changed = known.rpartition(" ")[0] + " " + (sshd.folder / "key.pub").read_text().split()[1]
    for key, hosts in ((good.key, ""), (good.key, changed), ("", known), (other, known)):
        with pytest.raises(GitError) as caught:
            await opened(Repository(good.url, key, hosts), tmp_path).fetch("main")
        assert "ls-remote failed" in str(caught.value) and "PRIVATE" not in str(caught.value)
    assert (await opened(good, tmp_path).fetch("main")).message.startswith("first")


async def test_only_plain_files_are_read(made: Made, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Links and submodules are refused by name, other files are left alone; a subdirectory is a root of its own; no hook runs."""
    made.commit("echo\n", path="deep/down/a.sh.j2")
    (made.path / "README.md").write_text("no template")
    (made.path / "fixtures").mkdir()
    (made.path / "fixtures" / "mine.yaml").write_text("about: x\n")
    made.commit("echo\n", path="b.sh.j2")
    git = opened(over("file", made, request), tmp_path)
    commit = (await git.fetch("")).sha
    assert set(await git.files(commit, "", belongs)) == {
        "b.sh.j2", "deep/down/a.sh.j2", "fixtures/mine.yaml", "script/hello.sh.j2"
    }  # fmt: skip
    assert set(await git.files(commit, "deep/", belongs)) == {"down/a.sh.j2"}
    for hook in ("post-checkout", "reference-transaction", "post-merge"):
        path = tmp_path / "cache.git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        path.chmod(0o755)
    (made.path / "link.sh.j2").symlink_to("/etc/passwd")
    made.git("-c", "core.symlinks=true", "add", "-A")
    made.git("commit", "-qm", "a link")
    commit = (await git.fetch("")).sha
    with pytest.raises(GitError, match=r"link\.sh\.j2 is a link"):
        await git.files(commit, "", belongs)
    with pytest.raises(GitError, match="ls-tree failed"):
        await git.files(commit, "script/none", belongs)
    assert not (tmp_path / "ran").exists()


async def test_limits_of_size_and_time(made: Made, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Too large a repository and a server that never answers end in words, and the next fetch is well again."""
    first = made.git("rev-parse", "HEAD")
    (made.path / "blob.bin").write_bytes(os.urandom(3 << 20))
    made.git("add", "-A")
    made.git("commit", "-qm", "a large file")
    repository = over("file", made, request)
    with pytest.raises(GitError, match="failed"):
        await opened(repository, tmp_path, Limits(size=1 << 20)).fetch("main")
    assert (await opened(repository, tmp_path, Limits(size=8 << 20)).fetch(first)).sha == first
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        mute = Repository(f"https://127.0.0.1:{silent.getsockname()[1]}/x.git")
        with pytest.raises(GitError, match="took longer than 1 s"):
            await opened(mute, tmp_path, Limits(seconds=1.0)).newest("main")


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x", "file:///etc", "file:///tmp/../etc", "http://git.example.org/x", "git://git.example.org/x",
        "--upload-pack=touch /tmp/x", "-oProxyCommand=x@h:p", "ssh://-oProxyCommand=x/p", "ssh://u@-h/p", "git@-h:x", "git@h:-x",
        "https://user:password@git.example.org/x", "https://token@git.example.org/x", "https://git.example.org/x?y", "/srv/templates",
        "https://git.example.org/x\n", "ssh://git@h/x;y", "fd::17", "",
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str, tmp_path: Path) -> None:
    """Other protocols, options in disguise, passwords and directories that were not allowed are refused."""
    assert wrong_url(url, [tmp_path])
    with pytest.raises(GitError):
        Git(Repository(url, directories=[tmp_path]), tmp_path / "c", tmp_path / "r")


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.org/team/x.git", "https://git.example.org:8443/x", "ssh://git@git.example.org:2222/team/x.git",
        "git@git.example.org:team/x.git", "ssh://git.example.org/~ann/x", "https://[::1]:8443/x",
    ],
)  # fmt: skip
def test_addresses(url: str) -> None:
    """The usual forms are taken."""
    assert wrong_url(url, []) == ""


@pytest.mark.parametrize(
    "ref", ["-x", "--upload-pack=x", "a..b", "a b", "a:b", "HEAD^", "a~1", "@{u}", "x.lock", "a\n", "/x"]
)
async def test_refs_that_are_none(
    ref: str, made: Made, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Options, ranges and expressions are no refs."""
    assert wrong_ref(ref)
    with pytest.raises(GitError, match="is no name of a branch"):
        await opened(over("file", made, request), tmp_path).fetch(ref)


def test_git_that_ends_at_once_under_uvloop(made: Made, tmp_path: Path) -> None:
    """The daemon's event loop refuses to write to a git that has ended; what git said comes back all the same."""

    async def ask() -> list[str]:
        said = []
        for number in range(20):
            git = Git(over_file(made), tmp_path / f"cache{number}", tmp_path / "run")
            try:
                await git.fetch("nobranch")
            except GitError as error:
                said.append(str(error))
        return said

    said = uvloop.run(ask())
    assert len(said) == 20 and all("no branch, tag or commit 'nobranch'" in one for one in said)


def over_file(made: Made) -> Repository:
    """The repository by its path."""
    return Repository(f"file://{made.path}", directories=[made.path.parent])
