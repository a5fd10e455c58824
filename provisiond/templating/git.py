"""Git repositories as sources: fetched into a bare cache by the git program, read from its objects, never checked out.

Git is given argument lists, a configuration of our own and an allow-list of protocols: no shell, no hooks, no submodules, no
prompts, no configuration of the machine's. A run has limits of time and size (RLIMIT_FSIZE by prlimit). A deploy key lies in a
file of mode 0600 for as long as a run takes, and is named to ssh in a configuration file, not on a command line.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from provisiond.errors import ConfigError
from provisiond.templating.catalogue import MAX_FILE, MAX_FILES

MAX_OUTPUT = 32 << 20  # bytes read of one run
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]"
_PATH = r"[A-Za-z0-9_.~/%+@-]+"
_HTTPS = re.compile(rf"https://({_HOST})(:[0-9]{{1,5}})?/{_PATH}")
_SSH = re.compile(rf"ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?({_HOST})(:[0-9]{{1,5}})?/{_PATH}")
_SCP = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]*@({_HOST}):(?!-)[A-Za-z0-9_.~%+@][A-Za-z0-9_.~/%+@-]*")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/@-]{0,250}")
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PLAIN = ("100644", "100755")  # modes of files; a link is 120000, a submodule 160000


class GitError(ConfigError):
    """A repository cannot be read; says which, and what git said."""


@dataclass(frozen=True)
class Repository:
    """``url`` https://, ssh://, user@host:path, or file:// below one of ``directories``. ``key`` is an OpenSSH private key's text."""

    url: str
    key: str = field(default="", repr=False)
    known_hosts: str = ""
    directories: Sequence[Path] = ()


@dataclass(frozen=True)
class Limits:
    """Of one run of git: seconds, and bytes of any file that it writes."""

    seconds: float = 120.0
    size: int = 256 << 20


@dataclass(frozen=True)
class Commit:
    """One commit."""

    sha: str
    author: str
    message: str


def wrong_url(url: str, directories: Sequence[Path]) -> str:
    """Why ``url`` is none that is fetched from; "" when it is one."""
    if url.startswith("file://"):
        path = Path(url.removeprefix("file://"))
        return (
            ""
            if path.is_absolute() and ".." not in path.parts and below(path, directories)
            else ("this directory is not one of templates.source_dirs, below which sources may lie")
        )
    if "@" in url.partition("://")[2].partition("/")[0] and url.startswith("https://"):
        return "a password in the address would be shown to everybody; use ssh with a deploy key"
    if any(form.fullmatch(url) for form in (_HTTPS, _SSH, _SCP)):
        return ""
    return "write it as https://HOST/PATH, ssh://USER@HOST/PATH, USER@HOST:PATH or file:///PATH"


def wrong_ref(ref: str) -> str:
    """Why ``ref`` is no branch, tag or commit; "" when it may be one, or is empty (the repository's default branch)."""
    if not ref or (
        _REF.fullmatch(ref) and ".." not in ref and "@{" not in ref and not ref.endswith((".lock", "/", "."))
    ):
        return ""
    return "is no name of a branch, tag or commit"


def below(path: Path, directories: Sequence[Path]) -> bool:
    """Whether ``path``, its links followed, lies in one of ``directories``."""
    return any(path.resolve().is_relative_to(directory.resolve()) for directory in directories)


class Git:
    """Runs git for one repository, with ``cache`` as its bare copy. ``run_dir`` is where keys lie meanwhile."""

    def __init__(
        self, repository: Repository, cache: Path, run_dir: Path, limits: Limits | None = None
    ) -> None:
        if why := wrong_url(repository.url, repository.directories):
            raise GitError(f"{repository.url}: {why}")
        self._repository, self._cache, self._run_dir = repository, cache, run_dir
        self._limits = limits or Limits()

    async def newest(self, ref: str) -> str | None:
        """The commit that ``ref`` is at over there; None where it names no branch or tag (a commit, perhaps). Raises GitError."""
        _check_ref(ref)
        if _SHA.fullmatch(ref):
            return ref
        patterns = [f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/tags/{ref}^{{}}"] if ref else ["HEAD"]
        async with self._environment() as run:
            said = await run("ls-remote", "-q", "--", self._repository.url, *patterns)
        lines = [line.split("\t", 1) for line in said.decode(errors="replace").splitlines() if "\t" in line]
        found = {name: sha for sha, name in lines}
        wanted = (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}") if ref else ("HEAD",)
        return next((found[name] for name in (*wanted[2:], *wanted[:2]) if name in found), None)

    async def fetch(self, ref: str) -> Commit:
        """Bring ``ref`` (branch, tag, commit or the beginning of one; "": the default branch) into the cache. Raises GitError."""
        _check_ref(ref)
        newest = await self.newest(ref)
        async with self._environment() as run:
            await self._ready(run)
            target = "refs/provisiond/fetched"
            if newest is not None:
                try:
                    await run(*_FETCH, "--depth=1", "--", self._repository.url, f"+{newest}:{target}")
                    return await _commit(run, target)
                except GitError:
                    pass  # a server may refuse to give single commits
            await self._ready(run, afresh=True)  # what was fetched at depth 1 would hide what lies below it
            await run(
                *_FETCH,
                "--",
                self._repository.url,
                "+refs/heads/*:refs/provisiond/heads/*",
                "+refs/tags/*:refs/provisiond/tags/*",
            )
            return await _commit(run, newest or ref)

    async def files(self, commit: str, subdirectory: str, wanted: Callable[[str], bool]) -> dict[str, str]:
        """Path -> text of the ``wanted`` files below ``subdirectory`` of a fetched commit. Raises GitError naming every file that is none."""
        async with self._environment() as run:
            tree = f"{commit}:{subdirectory.strip('/')}"
            listed = await run("ls-tree", "-r", "-z", "-l", "--full-tree", tree)
            blobs: dict[str, str] = {}
            wrong = []
            for entry in listed.split(b"\0")[:-1]:
                about, _, raw = entry.partition(b"\t")
                mode, _, sha, length = about.decode().split()
                path = raw.decode(errors="replace")
                if not wanted(path):
                    continue
                if mode not in _PLAIN:
                    wrong.append(f"{path} is a link or submodule, which are not followed")
                elif int(length) > MAX_FILE:
                    wrong.append(f"{path} is larger than {MAX_FILE >> 10} KiB")
                blobs[path] = sha
            if len(blobs) > MAX_FILES:
                wrong.append(f"there are more than {MAX_FILES} templates")
            if not blobs:
                wrong.append(f"there is no template in {subdirectory or 'it'}")
            if wrong:
                raise GitError(f"{self._repository.url} at {commit[:12]}: {'; '.join(wrong[:50])}")
            given = "".join(f"{sha}\n" for sha in blobs.values()).encode()
            answer = await run("cat-file", "--batch", given=given)
        texts, at = {}, 0
        for path in blobs:
            end = answer.index(b"\n", at)
            size = int(answer[at:end].split()[2])
            try:
                texts[path] = answer[end + 1 : end + 1 + size].decode()
            except UnicodeDecodeError as error:
                raise GitError(
                    f"{self._repository.url} at {commit[:12]}: {path} is not UTF-8: {error}"
                ) from None
            at = end + size + 2
        return texts

    # --- inner -------------------------------------------------------------------------------------------

    async def _ready(self, run: Run, *, afresh: bool = False) -> None:
        """An empty cache where there is none, where it is broken, has grown past twice the limit, or is wanted ``afresh``."""
        if self._cache.is_dir():
            size = sum(f.stat().st_size for f in self._cache.rglob("*") if f.is_file())
            with suppress(GitError):
                if size <= 2 * self._limits.size and not afresh:
                    await run("rev-parse", "--git-dir")
                    return
            await asyncio.to_thread(shutil.rmtree, self._cache)
        self._cache.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        await run("init", "-q", "--bare", "--template=", "--", str(self._cache), inside=False)

    @asynccontextmanager
    async def _environment(self) -> AsyncIterator[Run]:
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        folder = Path(tempfile.mkdtemp(prefix="git-", dir=self._run_dir))
        try:
            _write(folder / "gitconfig", _CONFIG + ("[safe]\n\tdirectory = *\n" if self._local else ""))
            options = [
                "BatchMode yes",
                "StrictHostKeyChecking yes",
                "IdentitiesOnly yes",
                "IdentityAgent none",
                "ConnectTimeout 20",
            ]
            options += [
                "PasswordAuthentication no",
                "ForwardAgent no",
                "ClearAllForwardings yes",
                "PermitLocalCommand no",
            ]
            options += [
                f'UserKnownHostsFile "{folder}/known_hosts"',
                "GlobalKnownHostsFile /dev/null",
                "UpdateHostKeys no",
            ]
            _write(folder / "known_hosts", self._repository.known_hosts.strip() + "\n")
            if self._repository.key:
                _write(folder / "key", self._repository.key.strip() + "\n")
                options.append(f'IdentityFile "{folder}/key"')
            else:
                options.append("IdentityFile none")
            _write(folder / "ssh_config", "\n".join(options) + "\n")
            environment = {
                "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"), "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false",
                "GIT_ALLOW_PROTOCOL": "file" if self._local else "https:ssh", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1",
                "GIT_SSH_COMMAND": f"ssh -F {shlex.quote(str(folder / 'ssh_config'))}", "GIT_SSH_VARIANT": "ssh",
            }  # fmt: skip
            yield Run(environment, self._cache, self._limits, self._repository.url)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @property
    def _local(self) -> bool:
        return self._repository.url.startswith("file://")


_CONFIG = """[core]
\thooksPath = /dev/null
\tsymlinks = false
[fetch]
\tfsckObjects = true
\trecurseSubmodules = false
\tunpackLimit = 1
[gc]
\tauto = 0
[http]
\tfollowRedirects = initial
[submodule]
\trecurse = false
"""
_FETCH = ("fetch", "-q", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--force")


@dataclass(frozen=True)
class Run:
    """One call runs git to its end; within the bare cache unless it is not ``inside``. Raises GitError."""

    environment: dict[str, str] = field(repr=False)
    cache: Path
    limits: Limits
    url: str

    async def __call__(self, *arguments: str, given: bytes = b"", inside: bool = True) -> bytes:
        where = ["--git-dir", str(self.cache)] if inside and self.cache.is_dir() else []
        command = ["prlimit", f"--fsize={self.limits.size}", "--core=0", "--", "git", *where, *arguments]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=self.environment, cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise GitError(
                f"git cannot be run: {error.strerror}; install Debian's packages git and util-linux"
            ) from None
        try:
            async with asyncio.timeout(self.limits.seconds):
                out, said, too_much = await _talk(process, given)
                code = await process.wait()
        except TimeoutError:
            raise GitError(
                f"{self.url}: git {arguments[0]} took longer than {self.limits.seconds:.0f} s"
            ) from None
        finally:
            if process.returncode is None:
                _kill(process)
                await process.wait()
        if too_much:
            raise GitError(f"{self.url}: git {arguments[0]} puts out more than {MAX_OUTPUT >> 20} MiB")
        if code != 0:
            raise GitError(
                f"{self.url}: git {arguments[0]} failed: {_said(said, self.environment['HOME'], code)}"
            )
        return out


async def _talk(process: asyncio.subprocess.Process, given: bytes) -> tuple[bytes, bytes, bool]:
    """Its output, what it said, and whether it was ended because it put out too much."""
    assert process.stdin and process.stdout and process.stderr
    out, said = bytearray(), bytearray()
    too_much = False

    async def feed(into: asyncio.StreamWriter) -> None:
        # a git that needs nothing may have ended already; uvloop then refuses to write, and with a RuntimeError
        with suppress(ConnectionError, RuntimeError):
            if given:
                into.write(given)
                await into.drain()
        into.close()

    async def drain_out(source: asyncio.StreamReader) -> None:
        nonlocal too_much
        while piece := await source.read(1 << 16):
            if len(out) + len(piece) > MAX_OUTPUT and not too_much:
                too_much = True
                _kill(process)
            if not too_much:
                out.extend(piece)

    async def drain_said(source: asyncio.StreamReader) -> None:
        while piece := await source.read(1 << 16):
            said.extend(piece[: (1 << 16) - len(said)])

    await asyncio.gather(feed(process.stdin), drain_out(process.stdout), drain_said(process.stderr))
    return bytes(out), bytes(said), too_much


def _kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started: ssh, index-pack."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _commit(run: Run, name: str) -> Commit:
    for candidate in (name, f"refs/provisiond/heads/{name}", f"refs/provisiond/tags/{name}"):
        with suppress(GitError):
            sha = (
                (await run("rev-parse", "-q", "--verify", "--end-of-options", f"{candidate}^{{commit}}"))
                .decode()
                .strip()
            )
            told = (await run("log", "-1", "--no-show-signature", "--format=%an <%ae>%x00%B", sha)).decode(
                errors="replace"
            )
            author, _, message = told.partition("\0")
            return Commit(sha, author, message.strip())
    raise GitError(f"{run.url}: there is no branch, tag or commit {name!r}")


def _check_ref(ref: str) -> None:
    if why := wrong_ref(ref):
        raise GitError(f"ref {ref!r} {why}")


def _said(text: bytes, folder: str, code: int) -> str:
    """What git said, in one line, without the names of our files."""
    lines = [
        line.strip()
        for line in text.decode(errors="replace").replace(folder, "").splitlines()
        if line.strip()
    ]
    shown = "; ".join("".join(c for c in line if c.isprintable()) for line in lines)[-800:]
    if code in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ):
        return "it is larger than sources may be"
    return shown or f"exit code {code}"


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
