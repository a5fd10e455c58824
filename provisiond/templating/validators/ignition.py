"""Ignition by ``ignition-validate`` (Debian package ignition); scripts in its files by the shells.

Without the program the document is still read as JSON, and the verdict says that the rest was skipped.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote_to_bytes

from provisiond.templating.validators.shell import Script, check_scripts, shell_of
from provisiond.templating.validators.trees import Tree, read_json
from provisiond.templating.validators.verdict import Problem, Target, Verdict, as_files, run

NAME = "ignition-validate"
_SAID = re.compile(r"^(?:error|warning) at (?P<path>\S+?)(?:, line (?P<line>\d+) col \d+)?: (?P<text>.*)$")


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """One process for each document, two at a time: it reads one only. Its warnings (unused keys) are problems too."""
    trees = [read_json(text) for text in texts]
    verdicts = [Verdict(NAME, tree.problems) for tree in trees]
    well = [number for number, tree in enumerate(trees) if not tree.problems]
    if shutil.which(NAME) is None:
        missing = (f"{NAME}: the package ignition is not installed",)
        verdicts = [v.with_more([], missing) for v in verdicts]
    else:
        with (
            as_files([texts[number] for number in well], [".ign"] * len(well)) as paths,
            ThreadPoolExecutor(2) as pool,
        ):
            for number, found in zip(well, pool.map(_validate, paths), strict=True):
                verdicts[number] = verdicts[number].with_more(found)
    scripts = check_scripts([list(_scripts(tree)) for tree in trees])
    return [v.with_more(*more) for v, more in zip(verdicts, scripts, strict=True)]


def _validate(path: str) -> list[Problem]:
    done = run([NAME, path])
    problems = []
    for line in (done.stdout + done.stderr).split("\n"):
        if said := _SAID.match(line):
            where = said["path"].removeprefix("$.").removeprefix("$")
            problems.append(
                Problem(
                    f"{where}: {said['text']}" if where else said["text"],
                    int(said["line"]) if said["line"] else None,
                )
            )
        elif line.strip():
            problems.append(Problem(line.strip().replace(path, "it")))
    if done.returncode and not problems:
        problems.append(Problem(f"{NAME} ended with status {done.returncode}"))
    return problems


def _scripts(tree: Tree) -> Iterator[Script]:
    """Files whose contents are a data: URL (RFC 2397) of a shell script."""
    value = tree.value if isinstance(tree.value, dict) else {}
    storage = value.get("storage")
    files = storage.get("files") if isinstance(storage, dict) else None
    for number, file in enumerate(files if isinstance(files, list) else []):
        contents = file.get("contents") if isinstance(file, dict) else None
        if not isinstance(contents, dict) or contents.get("compression"):
            continue
        source = contents.get("source")
        text = _data(source) if isinstance(source, str) and source.startswith("data:") else ""
        if text.startswith("#!"):
            where = ["storage", "files", number, "contents", "source"]
            line = lambda where=where: (tree.line(where) or 1) - 1  # noqa: E731
            yield Script(text, shell_of(text), line, str(file.get("path", "a file")), one_line=True)


def _data(url: str) -> str:
    head, _, body = url[len("data:") :].partition(",")
    raw: Any = unquote_to_bytes(body)
    if head.endswith(";base64"):
        try:
            raw = base64.b64decode(raw)
        except binascii.Error:
            return ""
    return bytes(raw).decode("utf-8", "replace")
