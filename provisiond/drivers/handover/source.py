"""Where playbooks come from: a directory, or a git repository fetched with a fixed list of protocols and no shell."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provisiond.drivers.handover.processes import dying_with_parent, environment
from provisiond.errors import DriverRejected

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}\Z")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://[^\s]+\Z")
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:[^\s:-][^\s]*\Z")
GIT_SECONDS = 300


def check_source(
    settings: Mapping[str, Any], host: str, sources: Sequence[str], protocols: Sequence[str]
) -> None:
    """Raises DriverRejected that names what is wrong with ``playbook`` and its ``directory``, or ``git`` and ``ref``."""
    playbook = settings.get("playbook")
    if (
        not isinstance(playbook, str)
        or not playbook
        or Path(playbook).is_absolute()
        or ".." in Path(playbook).parts
        or playbook.startswith("-")
    ):
        raise DriverRejected(
            f"host {host}: ansible.playbook must name a file below its directory or repository, such as site.yml"
        )
    if ("directory" in settings) == ("git" in settings):
        raise DriverRejected(f"host {host}: parameter 'ansible' needs either 'directory' or 'git'")
    if "directory" in settings:
        directory = Path(str(settings["directory"]))
        if not directory.is_absolute() or not (directory / playbook).is_file():
            raise DriverRejected(
                f"host {host}: there is no playbook {directory / playbook} (ansible.directory must be a whole path)"
            )
        if not (directory / playbook).resolve().is_relative_to(directory.resolve()):
            raise DriverRejected(f"host {host}: playbook {playbook} leads out of {directory}")
        allowed(str(directory.resolve()), sources, host)
        return
    url, ref = settings["git"], settings.get("ref", "HEAD")
    found = _SCHEME.match(url) if isinstance(url, str) else None
    scheme = found[1] if found else "ssh" if isinstance(url, str) and _SCP.match(url) else ""
    if scheme not in protocols:
        raise DriverRejected(f"host {host}: ansible.git must be a URL of one of: {', '.join(protocols)}")
    if not isinstance(ref, str) or not _REF.match(ref) or ".." in ref:
        raise DriverRejected(
            f"host {host}: ansible.ref {str(ref)[:40]!r} is not the name of a branch, tag or commit"
        )
    allowed(url, sources, host)


def allowed(source: str, sources: Sequence[str], host: str) -> None:
    """Raises DriverRejected unless ``source`` is one of ``sources`` or lies below one; no ``sources``: anything may be."""
    if sources and not any(
        source == s.rstrip("/") or source.startswith(s.rstrip("/") + "/") for s in sources
    ):
        raise DriverRejected(
            f"host {host}: {source} is not below any of handover.sources ({', '.join(sources)})"
        )


def fetch(url: str, ref: str, cache: Path, run: Path, protocols: Sequence[str]) -> tuple[Path, str]:
    """Check ``ref`` of the repository out into the run's directory; (that directory, commit). Blocking.

    The objects stay in ``cache``, one repository a URL. Raises RuntimeError with what git said.
    """
    store = cache / hashlib.sha256(url.encode()).hexdigest()[:24]
    tree = run / "project"
    tree.mkdir(mode=0o700, exist_ok=True)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache / f"{store.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (store / "HEAD").exists():
            _git(run, protocols, "init", "--quiet", "--bare", "--", str(store))
        _git(
            run,
            protocols,
            f"--git-dir={store}",
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--force",
            "--",
            url,
            ref,
        )
        commit = _git(run, protocols, f"--git-dir={store}", "rev-parse", "FETCH_HEAD^{commit}").strip()
        _git(
            run,
            protocols,
            f"--git-dir={store}",
            f"--work-tree={tree}",
            "checkout",
            "--quiet",
            "--force",
            commit,
            "--",
            ".",
        )
    return tree, commit


def _git(run: Path, protocols: Sequence[str], *arguments: str) -> str:
    fixed = (
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "protocol.ext.allow=never",
        "-c",
        "core.symlinks=true",
        "-c",
        "gc.auto=0",
    )
    done = subprocess.run(
        dying_with_parent(["git", *fixed, *arguments]),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS, check=False, cwd=run,
        env=environment(
            run, GIT_ALLOW_PROTOCOL=":".join(protocols), GIT_TERMINAL_PROMPT="0", GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull,
            GIT_INDEX_FILE=str(run / "git-index"), GIT_ASKPASS="true", GIT_LFS_SKIP_SMUDGE="1",
            GIT_SSH_COMMAND="ssh -o BatchMode=yes -o StrictHostKeyChecking=yes",
        ),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            f"git {next(a for a in arguments if not a.startswith('-'))}: {done.stderr.strip()[-400:]}"
        )
    return done.stdout
