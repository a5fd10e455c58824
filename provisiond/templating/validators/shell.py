"""Shell scripts: syntax by ``bash -n`` (``sh -n`` for sh), sense by shellcheck; many at once through one process each.

Scripts within other documents (kickstart sections, late commands, files that cloud-init writes) come through here too, as
``Script`` with the line they begin after.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from provisiond.templating.validators.verdict import (
    HUNG,
    TIMEOUT,
    Problem,
    Target,
    Verdict,
    as_files,
    ended_badly,
    number_of,
    run,
)

EXCLUDED = {
    "SC1091": "it cannot follow a file that is only on the machine (. /etc/os-release)",
    "SC2034": "a variable may be set for what is included by another template",
    "SC2154": "a variable may come from the installer's environment",
    "SC2317": "a function may be called by a trap or by the installer",
    "SC2329": "the same, as newer versions call it",
    "SC2016": "a text in single quotes with a dollar in it is how a quoted value arrives",
    "SC2194": "a constant in a case or test is how a parameter arrives",
    "SC2050": "the same in [ ]",
    "SC2043": "a loop over one item is how a list of one parameter arrives",
    "SC2086": "an unquoted word is split on purpose in arguments; a parameter is quoted by its filter",
    "SC2089": "the quotes of a value that a filter quoted are meant literally",
    "SC2090": "the same where the variable is used",
    "SC2115": "a path made of a variable that set -u guards",
    "SC2157": "[ -n 'constant' ] is how a parameter arrives",
    "SC2160": "'if true' is how a boolean parameter arrives",
    "SC2161": "'if 1' is how a number arrives",
    "SC2078": "a constant expression is how a parameter arrives",
    "SC2164": "scripts run with set -e or trap their errors",
    "SC2100": "a value with a dash in it (name=a-2) is how a parameter arrives",
    "SC2174": "mkdir -p -m is used for the last directory only: those above it exist",
    "SC3043": "'local' is in every sh that installers have (dash, busybox)",
}
"""What shellcheck is told not to say of a rendered script, and why."""
SEVERITY = "warning"
_SHELLS = {"sh": "sh", "dash": "dash", "bash": "bash", "ash": "dash", "busybox": "dash", "ksh": "ksh"}
_BROKEN = "its syntax is wrong"
_BASH_N = f"""for f in "$@"; do case $f in *.bash) bash -n "$f";; *) sh -n "$f";; esac || echo "$f: 1: {_BROKEN}" >&2; done; true"""
_SAID = re.compile(r"^(?P<path>.*?/\d+\.(?:bash|dash)): (?:line )?(?P<line>\d+): (?P<text>.*)$")
_REMEMBERED = 4096
_ALONE = 20.0  # seconds for a script by itself
_AT_ONCE = 100  # scripts that one shellcheck is given: some seconds of work


@dataclass(frozen=True)
class Script:
    """A script; its first line is the one after ``after`` in the document. ``what`` is put before each problem.

    A line that takes work to find is given as a function, asked only when something is wrong.
    ``one_line``: the document holds it in one line (JSON), so the line within it goes into the sentence.
    """

    text: str
    shell: str = "sh"
    after: int | Callable[[], int] = 0
    what: str = ""
    one_line: bool = False

    def place(self, problem: Problem) -> Problem:
        """A problem of this script as one of the document."""
        after = self.after() if callable(self.after) else self.after
        if self.one_line:
            said = f"{self.what}: line {problem.line} of the script: {problem.message}"
            return Problem(said, after + 1)
        return Problem(
            f"{self.what}: {problem.message}" if self.what else problem.message, after + (problem.line or 1)
        )


def shell_of(text: str, default: str = "sh") -> str:
    """Which shell a script names in its first line: bash, sh, dash, ksh; empty for an interpreter that is no shell."""
    if not text.startswith("#!"):
        return default
    words = text[2:].split("\n", 1)[0].split()
    names = [w.rpartition("/")[2] for w in words]
    if names[:1] == ["env"]:
        names = [n for n in names[1:] if not n.startswith("-")]
    return _SHELLS.get(names[0], "") if names else default


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Whole documents that are scripts."""
    verdicts = []
    for text, found in zip(
        texts, check_scripts([[Script(text, shell_of(text))] for text in texts]), strict=True
    ):
        if not shell_of(text):
            verdicts.append(
                Verdict("shell", skipped=(f"there is no validator for {text.splitlines()[0][:60]}",))
            )
        else:
            verdicts.append(Verdict("shell").with_more(*found))
    return verdicts


def check_scripts(documents: Sequence[Sequence[Script]]) -> list[tuple[list[Problem], list[str]]]:
    """For each document what is wrong in its scripts, in the document's lines, and which checkers were missing.

    Scripts of one shape are looked at once, and remembered while the process lives.
    """
    tools = (shutil.which("bash") is not None, shutil.which("shellcheck") is not None)
    keys = [
        [(shape(s.text), s.shell, tools) if s.shell in _LANGUAGES else None for s in scripts]
        for scripts in documents
    ]
    wanted: dict[_Key, Script] = {}
    for scripts, mine in zip(documents, keys, strict=True):
        wanted |= {key: script for script, key in zip(scripts, mine, strict=True) if key is not None}
    known = {
        key: said for key in wanted if (said := _known.get(key)) is not None
    }  # a copy: other threads ask here, too
    fresh = [(key, script) for key, script in wanted.items() if key not in known]
    for at in range(0, len(fresh), _AT_ONCE):
        known |= _look(fresh[at : at + _AT_ONCE], tools)
    if len(_known) > _REMEMBERED:
        _known.clear()
    _known.update(known)
    answers = []
    for scripts, mine in zip(documents, keys, strict=True):
        problems = [
            script.place(problem)
            for script, key in zip(scripts, mine, strict=True)
            if key is not None
            for problem in known[key]
        ]
        looked = any(key is not None for key in mine)
        missing = [] if not looked or tools[0] else ["bash -n: bash is not installed"]
        missing += [] if not looked or tools[1] else ["shellcheck: the package shellcheck is not installed"]
        answers.append((problems, missing))
    return answers


def shape(text: str) -> bytes:
    """What the checkers' answer depends on: the text without the numbers, addresses, names and tokens that are a host's own.

    Words that hold a digit, and long ones of mixed characters, are replaced by their number in the order they are met, so that
    equal ones stay equal; numbers and addresses by their kind. They change neither syntax nor sense of a script. Every other
    character counts, so that nothing a value could break out with is lost. Shadow runs check thousands of such scripts.
    """
    words: dict[str, str] = {}

    def bare(found: re.Match[str]) -> str:
        if found["word"] is None:
            return "\0#" if found["address"] is None else "\0@"
        return words.setdefault(found["word"], f"\0{len(words)}\0")

    return hashlib.sha256(_VALUE.sub(bare, text).encode()).digest()


_VALUE = re.compile(
    r"(?P<address>\b[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{1,4}\b)"  # MAC, IPv6
    r"|\b(?P<number>[0-9]+)\b"
    r"|(?P<word>(?=[a-z_+/-]*[0-9A-Z])[A-Za-z0-9][A-Za-z0-9_+/-]{15,}|[A-Za-z]*[0-9][A-Za-z0-9]*)"
)
_LANGUAGES = frozenset({"sh", "bash", "dash", "ksh"})
_Key = tuple[bytes, str, tuple[bool, bool]]
_known: dict[_Key, tuple[Problem, ...]] = {}


def _look(
    scripts: Sequence[tuple[_Key, Script]], tools: tuple[bool, bool]
) -> dict[_Key, tuple[Problem, ...]]:
    found: dict[int, list[Problem]] = {number: [] for number in range(len(scripts))}
    suffixes = [".bash" if script.shell in ("bash", "ksh") else ".dash" for _, script in scripts]
    with as_files([script.text for _, script in scripts], suffixes) as paths:
        if tools[0]:
            done = run(["bash", "-c", _BASH_N, "bash", *paths])
            for problems in found.values() if done.returncode else ():
                problems.append(ended_badly(done))
            for line in done.stderr.split("\n"):
                said = _SAID.match(line)
                if not said or said["text"].startswith("`"):  # the second line, which shows the text
                    continue
                problems = found[number_of(said["path"])]
                if said["text"] != _BROKEN or not problems:
                    problems.append(Problem(said["text"], int(said["line"])))
        broken = {number for number, problems in found.items() if problems}
        whole = [path for path in paths if number_of(path) not in broken]
        if tools[1] and whole:
            for number, problem in _shellcheck(whole):
                found[number].append(problem)
    return {key: tuple(found[number]) for number, (key, _) in enumerate(scripts)}


def _shellcheck(paths: Sequence[str]) -> list[tuple[int, Problem]]:
    found: list[tuple[int, Problem]] = []
    for shell in ("bash", "dash"):
        if mine := [path for path in paths if path.endswith(shell)]:
            found += _shellchecked(mine, shell, TIMEOUT)
    return found


def _shellchecked(paths: Sequence[str], shell: str, seconds: float) -> list[tuple[int, Problem]]:
    done = run(
        ["shellcheck", "--norc", "--format=json1", f"--severity={SEVERITY}", f"--shell={shell}", f"--exclude={','.join(EXCLUDED)}", *paths],
        seconds=seconds,
    )  # fmt: skip
    if done.returncode == HUNG and len(paths) > 1:  # one of them holds up all others
        return [said for path in paths for said in _shellchecked([path], shell, _ALONE)]
    if not done.stdout.strip():  # it prints an empty list where all is well
        return [(number_of(path), ended_badly(done)) for path in paths]
    return [
        (number_of(c["file"]), Problem(f"SC{c['code']}: {c['message']}", c["line"]))
        for c in json.loads(done.stdout)["comments"]
    ]
