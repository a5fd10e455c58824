"""What a validator says, and how a program that validates is run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

TIMEOUT = 60
"""Seconds that one run of a program may take; it may be given many documents at once."""
HUNG = 124
"""The status of a program that took longer, as timeout(1) says it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; ``line`` of the rendered text, from 1, where it is known."""

    message: str
    line: int | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


@dataclass(frozen=True)
class Verdict:
    """``validator`` names who looked; ``skipped`` names each who could not, and why. Skipped is never the same as passed."""

    validator: str
    problems: tuple[Problem, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems and not self.skipped

    def __str__(self) -> str:
        said = [str(p) for p in self.problems] + [f"skipped: {s}" for s in self.skipped]
        return f"{self.validator}: " + ("; ".join(said) or "passed")

    def with_more(self, problems: Sequence[Problem], skipped: Sequence[str] = ()) -> Verdict:
        """The same with what a second checker found, in the order of lines."""
        found = sorted(dict.fromkeys([*self.problems, *problems]), key=lambda p: p.line or 0)
        return replace(self, problems=tuple(found), skipped=tuple(dict.fromkeys([*self.skipped, *skipped])))


@dataclass(frozen=True)
class Target:
    """What the texts are for: operating system family and version as hosts have them, such as redhat and 9.4; may be empty."""

    kind: str
    family: str = ""
    version: str = ""


Checker = Callable[[Sequence[str], Target], list[Verdict]]
"""Looks at many texts of one kind; one verdict for each, in their order. Pure but for the programs it runs."""


def run(
    command: Sequence[str], text: str | None = None, *, seconds: float = TIMEOUT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program on standard input; its messages in English. One that hangs is ended, with status HUNG."""
    try:
        done = subprocess.run(
            list(command), input=None if text is None else text.encode(), capture_output=True, timeout=seconds, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, HUNG, "", f"ended after {seconds} seconds")
    # decoded here, as Python's text mode makes line ends of what the program shows of a document
    out, err = (said.decode("utf-8", "replace") for said in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, err)


def ended_badly(done: subprocess.CompletedProcess[str]) -> Problem:
    """A program that gave no answer that could be read: what it says, so that silence is never taken for consent."""
    name = Path(done.args[0]).name
    return Problem(f"{name} ended with status {done.returncode}: {done.stderr.strip()[:200] or 'no message'}")


@contextmanager
def as_files(texts: Sequence[str], suffixes: Sequence[str]) -> Iterator[list[str]]:
    """The texts as files that only we may read (they hold secrets), named by number and suffix, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="provisiond-lint-") as directory:
        paths = []
        for number, (text, suffix) in enumerate(zip(texts, suffixes, strict=True)):
            path = Path(directory, f"{number}{suffix}")
            path.write_text(text, encoding="utf-8")
            paths.append(str(path))
        yield paths


def number_of(path: str) -> int:
    """Which of the texts a path of ``as_files`` belongs to."""
    return int(Path(path).name.partition(".")[0])
