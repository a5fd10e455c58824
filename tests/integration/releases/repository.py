"""A real git repository with small templates in it, for tests of sources."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HEADER = "{#\nkind: script\nabout: a test\nfixtures: [redhat-bios-dhcp]\n#}\n#!/bin/sh\n"


@dataclass
class Repository:
    """A work tree at ``path``."""

    path: Path

    def git(self, *arguments: str) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        identity = [
            "-c",
            "user.name=Ann Author",
            "-c",
            "user.email=ann@example.org",
            "-c",
            "protocol.file.allow=always",
        ]
        done = subprocess.run(
            ["git", "-C", str(self.path), *identity, *arguments],
            check=True,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, body: str, message: str = "a change", path: str = "script/hello.sh.j2") -> str:
        """Write a template and commit it; the commit."""
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(HEADER + body)
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD")


def make_repository(path: Path) -> Repository:
    """With one commit on ``main``."""
    path.mkdir(parents=True)
    made = Repository(path)
    made.git("init", "-q", "-b", "main")
    made.commit("echo one\n", "first\n\nThe body of it.")
    return made
