"""The worked examples of docs/templates/migrating.md are templates that work."""

from __future__ import annotations

import re
from pathlib import Path

from provisiond.templating.catalogue import Catalogue, read_directory, shipped_directory
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.headers import parse_header
from provisiond.templating.render import Renderer
from provisiond.templating.validators import validate

PAGE = Path(__file__).parents[3] / "docs/templates/migrating.md"


def test_examples() -> None:
    """Each has a header; with the shipped snippets each renders on every fixture it names, and pykickstart takes it."""
    examples = re.findall(r"(?s)```jinja\n(.*?)```", PAGE.read_text())
    assert len(examples) == 2
    shipped = read_directory(shipped_directory()).files
    files = {f"site/{n}.j2": text for n, text in enumerate(examples)}
    renderer = Renderer(Catalogue.of({**shipped, **files}))
    fixtures = read_fixtures([shipped_directory()])
    rendered = 0
    for path, text in files.items():
        for name in parse_header(path, text).fixtures:
            fixture = fixtures[name].model_copy(
                update={
                    "storage": {"disk": "/dev/vda"},
                    "parameters": {**fixtures[name].parameters, "motd": 'it\'s "here" $(reboot)'},
                }
            )
            made = renderer.render(path, fixture.context())
            verdict = validate("kickstart", made, family="redhat", version="9.4")
            assert not verdict.problems, f"{verdict}\n{made}"
            assert "printf '%s\\n' 'it'\"'\"'s \"here\" $(reboot)' > /etc/motd" in made
            rendered += 1
    assert rendered == 2
