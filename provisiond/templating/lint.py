"""Lint: a directory of templates read as the daemon reads it, each template rendered on its fixtures and validated.

Nothing here needs a daemon or a database. What is found names the file and the line in it; the families are looked at one
after the other, so that whoever asks can stop at the first that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import nodes

from provisiond.errors import RenderError
from provisiond.templating.catalogue import Catalogue, read_files, shipped_directory
from provisiond.templating.fixtures import Fixture, read_fixtures
from provisiond.templating.headers import Header, parse_header
from provisiond.templating.places import places
from provisiond.templating.render import Renderer
from provisiond.templating.sandbox import Sandbox
from provisiond.templating.validators import Verdict, validate_many

SNIPPET = "snippet"
Watch = Callable[[str, int, int], None]
"""Told the family, how many of its renderings are done, and of how many."""


@dataclass(frozen=True)
class Finding:
    """What is wrong: ``file`` is a template's id, ``line`` of it from 1; ``rendered`` the line of the text made of it."""

    message: str
    file: str
    line: int | None = None
    rendered: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Result:
    """One template on one fixture; without a fixture, what can be said of the template by itself."""

    template: str
    kind: str
    fixture: str = ""
    validator: str = ""
    findings: tuple[Finding, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """failed, skipped (somebody could not look) or passed."""
        return "failed" if self.findings else "skipped" if self.skipped else "passed"


@dataclass(frozen=True)
class Family:
    """All results of one family: kickstart, preseed, ipxe ..."""

    name: str
    results: tuple[Result, ...] = field(repr=False)

    def count(self, status: str) -> int:
        """How many passed, failed or skipped."""
        return sum(r.status == status for r in self.results)

    @property
    def failed(self) -> bool:
        return any(r.findings for r in self.results)

    def document(self) -> dict[str, Any]:
        """The same as JSON can hold."""
        return {
            "family": self.name,
            **{status: self.count(status) for status in ("passed", "failed", "skipped")},
            "results": [
                {
                    "template": r.template, "kind": r.kind, "fixture": r.fixture, "status": r.status, "validator": r.validator,
                    "skipped": list(r.skipped),
                    "problems": [
                        {"file": f.file, "line": f.line, "rendered_line": f.rendered, "message": f.message} for f in r.findings
                    ],
                }
                for r in self.results
            ],
        }  # fmt: skip


def lint_directory(directory: Path, watch: Watch | None = None) -> Iterator[Family]:
    """Family by family, what is wrong in a directory of templates (blocking). Raises ConfigError where it cannot be read.

    Fixtures are the shipped ones and those in ``fixtures/`` of the directory over them. When a header is wrong, nothing is
    rendered: the daemon would not take the directory.
    """
    files = read_files(directory)
    fixtures = read_fixtures([shipped_directory(), directory])
    if wrong := list(_wrong_headers(files)):
        for name in sorted({family_of(r.template, "headers") for r in wrong}):
            yield Family(name, tuple(r for r in wrong if family_of(r.template, "headers") == name))
        return
    yield from lint(Catalogue.of(files), fixtures, watch)


def lint(
    catalogue: Catalogue, fixtures: Mapping[str, Fixture], watch: Watch | None = None
) -> Iterator[Family]:
    """Family by family, every template rendered on the fixtures of its header and validated (blocking)."""
    renderer = Renderer(catalogue)
    families: dict[str, list[str]] = {}
    for path, header in catalogue.headers.items():
        families.setdefault(family_of(path, header.kind), []).append(path)
    for name, paths in sorted(families.items(), key=lambda f: (f[0] != "snippets", f[0])):
        yield Family(name, tuple(_family(name, paths, renderer, fixtures, watch)))


def family_of(template_id: str, kind: str) -> str:
    """The directory a template lies in; for one that lies in none, its kind."""
    directory, _, name = template_id.rpartition("/")
    return directory.partition("/")[0] if name and directory else kind


def _wrong_headers(files: Mapping[str, str]) -> Iterator[Result]:
    for path, text in files.items():
        try:
            parse_header(path, text)
        except RenderError as error:
            yield Result(path, "", findings=(_finding(error),))


def _family(
    name: str, paths: list[str], renderer: Renderer, fixtures: Mapping[str, Fixture], watch: Watch | None
) -> Iterator[Result]:
    headers = renderer.catalogue.headers
    total = sum(len(headers[path].fixtures) for path in paths)
    made = 0
    waiting: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for path in paths:
        header = headers[path]
        found = tuple(_alone(path, header, renderer, fixtures))
        if found or header.kind == SNIPPET:
            yield Result(path, header.kind, findings=found)
        elif not header.fixtures:
            yield Result(path, header.kind, skipped=("its header names no fixture to render it on",))
        for fixture in header.fixtures if _whole(path, renderer) else ():
            if fixture not in fixtures:
                continue
            try:
                text = renderer.render(path, fixtures[fixture].context())
            except RenderError as error:
                yield Result(path, header.kind, fixture, findings=(_finding(error, fixture),))
            else:
                system = fixtures[fixture].operating_system
                group = header.kind, system.family if system else "", system.version if system else ""
                waiting.setdefault(group, []).append((path, fixture, text))
            made += 1
            if watch:
                watch(name, made, total * 2)
    for (kind, family, version), ready in waiting.items():
        verdicts = validate_many(kind, [text for _, _, text in ready], family=family, version=version)
        for (path, fixture, _), verdict in zip(ready, verdicts, strict=True):
            yield _result(path, kind, fixture, verdict, renderer, fixtures[fixture])
        made += len(ready)
        if watch:
            watch(name, made, total * 2)


def _result(
    path: str, kind: str, fixture: str, verdict: Verdict, renderer: Renderer, host: Fixture
) -> Result:
    where = places(renderer, path, host.context()) if verdict.problems else []
    findings = []
    for problem in verdict.problems:
        if problem.line and where:
            place = where[min(problem.line, len(where)) - 1]
            said = f"{problem.message} (line {problem.line} of it for {fixture})"
            findings.append(Finding(said, place.template, place.line, problem.line))
        else:
            findings.append(Finding(f"{problem.message} (for {fixture})", path))
    return Result(path, kind, fixture, verdict.validator, tuple(findings), verdict.skipped)


def _alone(
    path: str, header: Header, renderer: Renderer, fixtures: Mapping[str, Fixture]
) -> Iterator[Finding]:
    """What is wrong with a template whatever it is rendered on: syntax, includes, parameters, names of fixtures."""
    try:
        declared = renderer.parameters(path)
    except RenderError as error:
        yield _finding(error)
        return
    for name, line in _used(renderer.catalogue.files[path]):
        if name not in declared:
            yield Finding(f"it uses parameters.{name}, which neither its header nor what it includes declares", path, line)  # fmt: skip
    for fixture in header.fixtures:
        if fixture not in fixtures:
            yield Finding(
                f"there is no fixture {fixture!r}", path, _line_of(fixture, renderer.catalogue.files[path])
            )


def _whole(path: str, renderer: Renderer) -> bool:
    """Whether it and what it includes can be read at all: else it would fail on every fixture in the same way."""
    try:
        renderer.parameters(path)
    except RenderError:
        return False
    return True


def _used(text: str) -> Iterator[tuple[str, int]]:
    """Names of parameters that a template uses without asking first whether they are there, with the line."""
    tree = Sandbox({}).parse(text)
    asked: set[int] = {id(t.node) for t in tree.find_all(nodes.Test) if t.name in ("defined", "undefined")}
    asked |= {id(f.node) for f in tree.find_all(nodes.Filter) if f.name == "default"}
    seen: set[str] = set()
    places: tuple[Any, ...] = (*tree.find_all(nodes.Getattr), *tree.find_all(nodes.Getitem))
    for node in places:
        if not isinstance(node.node, nodes.Name) or node.node.name != "parameters" or id(node) in asked:
            continue
        name = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
        if isinstance(name, str) and name not in seen:
            seen.add(name)
            yield name, node.lineno


def _line_of(word: str, text: str) -> int:
    return next((n for n, line in enumerate(text.split("\n"), start=1) if word in line), 1)


def _finding(error: RenderError, fixture: str = "") -> Finding:
    message = error.reason + (f" (for {fixture})" if fixture else "")
    return Finding(message, error.template, error.line)
