"""Every template on every fixture of its header: byte for byte as its golden file, and passed by its validator.

``make golden`` (pytest tests/golden --regen) writes the files anew; the difference is then read in git.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.render import Limits, Renderer
from provisiond.templating.validators import validate
from tests.golden.hosts import FIXTURES, context_of

EXPECTED = Path(__file__).parent / "expected"
RENDERER = Renderer(read_directory(shipped_directory()), Limits(seconds=60.0))
CASES = [
    (path, fixture) for path, header in RENDERER.catalogue.headers.items() for fixture in header.fixtures
]


def golden_path(template: str, fixture: str) -> Path:
    """Such as expected/kickstart/redhat-9.ks@redhat-bios-dhcp."""
    return EXPECTED / f"{template.removesuffix('.j2')}@{fixture}"


@pytest.mark.parametrize(("template", "fixture"), CASES, ids=[f"{t}@{f}" for t, f in CASES])
def test_golden(template: str, fixture: str, pytestconfig: pytest.Config) -> None:
    """The rendered text is what it was when someone last looked at it, and its format's own checker takes it."""
    text = RENDERER.render(template, context_of(fixture))
    golden = golden_path(template, fixture)
    if pytestconfig.getoption("--regen", default=False):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    system = FIXTURES[fixture].operating_system
    family, version = (system.family, system.version) if system else ("", "")
    verdict = validate(RENDERER.catalogue.headers[template].kind, text, family=family, version=version)
    assert not verdict.problems, f"{verdict}\n{text}"
    assert golden.is_file(), f"{golden} is missing: run 'make golden' and read what it wrote"
    assert text == golden.read_text()
    if verdict.skipped:
        pytest.skip(str(verdict))


def test_no_golden_file_is_left_over() -> None:
    """Every golden file belongs to a template and a fixture of its header."""
    known = {golden_path(*case) for case in CASES}
    assert {p for p in EXPECTED.rglob("*") if p.is_file()} == known


def test_every_template_has_a_fixture() -> None:
    """A template that no fixture renders would be tested by nobody; snippets are rendered by those that include them."""
    without = [
        path for path, h in RENDERER.catalogue.headers.items() if not h.fixtures and h.kind != "snippet"
    ]
    assert without == []
