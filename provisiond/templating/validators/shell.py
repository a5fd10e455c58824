"""Shell scripts: syntax by ``bash -n`` (``sh -n`` for sh), sense by shellcheck; many at once through one process each.

Scripts within other documents (kickstart sections, late commands, files that cloud-init writes) come through here too, as
``Script`` with the line they begin after.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from provisiond.templating.validators.verdict import Problem, Target, Verdict, as_files, number_of, run

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
_BASH_N = f"""for f in "$@"; do case $f in *.bash) bash -n "$f";; *) sh -n "$f";; esac || echo "$f: 1: {_BROKEN}" >&2; done"""
_SAID = re.compile(r"^(?P<path>.*?/\d+\.(?:bash|dash)): (?:line )?(?P<line>\d+): (?P<text>.*)$")
_REMEMBERED = 4096


@dataclass(frozen=True)
class Script:
    """A script; its first line is the one after ``after`` in the document. ``what`` is put before each problem.

    ``one_line``: the document holds it in one line (JSON), so the line within it goes into the sentence.
    """

    text: str
    shell: str = "sh"
    after: int = 0
    what: str = ""
    one_line: bool = False

    def place(self, problem: Problem) -> Problem:
        """A problem of this script as one of the document."""
        if self.one_line:
            return Problem(
                f"{self.what}: line {problem.line} of the script: {problem.message}", self.after + 1
            )
        return Problem(
            f"{self.what}: {problem.message}" if self.what else problem.message,
            self.after + (problem.line or 1),
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

    Equal scripts are looked at once, and remembered while the process lives.
    """
    wanted = list(
        dict.fromkeys((s.text, s.shell) for scripts in documents for s in scripts if s.shell in _LANGUAGES)
    )
    tools = (shutil.which("bash") is not None, shutil.which("shellcheck") is not None)
    fresh = [w for w in wanted if (w, tools) not in _known]
    if len(_known) + len(fresh) > _REMEMBERED:
        _known.clear()
        fresh = wanted
    for at in range(0, len(fresh), 500):
        _look(fresh[at : at + 500], tools)
    answers = []
    for scripts in documents:
        problems: list[Problem] = []
        looked = False
        for script in scripts:
            if script.shell not in _LANGUAGES:
                continue
            looked = True
            problems += [script.place(p) for p in _known[(script.text, script.shell), tools]]
        missing = [] if not looked or tools[0] else ["bash -n: bash is not installed"]
        missing += [] if not looked or tools[1] else ["shellcheck: the package shellcheck is not installed"]
        answers.append((problems, missing))
    return answers


_LANGUAGES = frozenset({"sh", "bash", "dash", "ksh"})
_known: dict[tuple[tuple[str, str], tuple[bool, bool]], tuple[Problem, ...]] = {}


def _look(scripts: Sequence[tuple[str, str]], tools: tuple[bool, bool]) -> None:
    found: dict[int, list[Problem]] = {number: [] for number in range(len(scripts))}
    suffixes = [".bash" if shell in ("bash", "ksh") else ".dash" for _, shell in scripts]
    with as_files([text for text, _ in scripts], suffixes) as paths:
        if tools[0]:
            for line in run(["bash", "-c", _BASH_N, "bash", *paths]).stderr.splitlines():
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
    for number, script in enumerate(scripts):
        _known[script, tools] = tuple(found[number])


def _shellcheck(paths: Sequence[str]) -> list[tuple[int, Problem]]:
    found = []
    for shell in ("bash", "dash"):
        mine = [path for path in paths if path.endswith(shell)]
        if not mine:
            continue
        said = run(
            ["shellcheck", "--norc", "--format=json1", f"--severity={SEVERITY}", f"--shell={shell}",
             f"--exclude={','.join(EXCLUDED)}", *mine]
        )  # fmt: skip
        for comment in json.loads(said.stdout)["comments"] if said.stdout.strip() else []:
            found.append(
                (
                    number_of(comment["file"]),
                    Problem(f"SC{comment['code']}: {comment['message']}", comment["line"]),
                )
            )
    return found
