"""Pages that are made from the code say what the code says, and what is installed is all of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from provisiond.config import Settings, document
from provisiond.lifecycle import document as lifecycle
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.reference import reference

ROOT = Path(__file__).parents[2]
AGAIN = "is out of date: make docs"


def test_the_page_of_the_lifecycle_is_up_to_date() -> None:
    """docs/lifecycle.md is what the table and the steps say."""
    assert (ROOT / "docs/lifecycle.md").read_text() == lifecycle.document(), f"docs/lifecycle.md {AGAIN}"


def test_the_page_of_the_settings_is_up_to_date() -> None:
    """docs/configuration.md is what the settings say."""
    assert (ROOT / "docs/configuration.md").read_text() == document(), f"docs/configuration.md {AGAIN}"


def test_the_page_of_the_parameters_is_up_to_date() -> None:
    """docs/templates/parameters.md is what the templates' headers say."""
    page = (ROOT / "docs/templates/parameters.md").read_text()
    assert page == reference(read_directory(shipped_directory())), f"docs/templates/parameters.md {AGAIN}"


@pytest.mark.parametrize("section", Settings.model_fields)
def test_every_setting_is_described(section: str) -> None:
    """A key without a description, or a default that the page cannot show, does not pass."""
    table = Settings.model_fields[section].annotation
    assert table is not None
    for key, field in table.model_fields.items():
        assert field.description, f"{section}.{key} has no description"
        assert field.description.endswith((".", ")")), f"{section}.{key}: a description is a sentence"
        assert "|" not in field.description, f"{section}.{key} would break the table"


def test_every_step_says_what_it_does() -> None:
    """A step without a docstring would be an empty line in the page."""
    lines = [line for line in lifecycle.document().splitlines() if line.startswith("- `")]
    assert len(lines) > 10
    assert not [line for line in lines if line.endswith("s a run): ")]


def test_what_is_installed_has_every_template() -> None:
    """pyproject.toml names each directory of templates and the recipes, so that an installed provisiond has them all."""
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    taken = {path for globs in files.values() for pattern in globs for path in ROOT.glob(pattern)}
    there = {p for p in (ROOT / "templates").rglob("*") if p.suffix in (".j2", ".yaml")}
    there |= {ROOT / "pxe/loaders.toml", *(ROOT / "pxe/image/recipes").iterdir()}
    others = {*(ROOT / "packaging").iterdir(), *(ROOT / "pxe/ramdisk").rglob("*")}
    assert taken - others == there


def test_every_page_is_linked() -> None:
    """docs/index.md leads to every page, and no link in it is dead."""
    index = (ROOT / "docs/index.md").read_text()
    links = {part.partition(")")[0] for part in index.split("](")[1:]}
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert links - {"../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md"} == pages
