"""Host fixtures: read from YAML, laid over each other, and refused with the file and key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.errors import ConfigError
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.fixtures import read_fixtures


def write(directory: Path, **files: str) -> Path:
    """A directory of templates with these fixtures in it."""
    (directory / "fixtures").mkdir(exist_ok=True, parents=True)
    for name, text in files.items():
        (directory / "fixtures" / f"{name}.yaml").write_text(text)
    return directory


def test_shipped_fixtures_are_those_the_headers_name() -> None:
    """Every fixture a shipped template names is there."""
    named = {f for h in read_directory(shipped_directory()).headers.values() for f in h.fixtures}
    assert named <= read_fixtures([shipped_directory()]).keys()


def test_like_and_overlay(tmp_path: Path) -> None:
    """A fixture takes what it does not say from the one it is like; the operator's own replaces the shipped of its name."""
    shipped = write(
        tmp_path / "a",
        base="about: b\nsubnets: {n: {cidr: 10.0.0.0/24}}\ninterfaces: [{name: e, mac: m, subnet: n}]\nparameters: {x: {a: 1, b: 2}, l: [1]}\n",
        near="about: n\nlike: base\nname: db01\nparameters: {x: {a: 3}, l: [2]}\n",
    )
    near = read_fixtures([shipped])["near"].context()
    assert near["parameters"] == {"x": {"a": 3, "b": 2}, "l": [2]}
    assert (near["host"]["name"], near["host"]["prefix"]) == ("db01", 24)
    own = write(tmp_path / "b", base="about: other\nparameters: {x: {b: 9}}\n")
    assert read_fixtures([shipped, own])["near"].parameters == {"x": {"b": 9, "a": 3}, "l": [2]}


def test_a_stranger_has_no_host() -> None:
    """A machine nobody knows is seen by boot templates as one that is no host."""
    context = read_fixtures([shipped_directory()])["any-machine"].context()
    assert "host" not in context and context["boot"]["mac"] == "52:54:00:aa:bb:99"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no mapping"),
        ("about: [", "x.yaml"),
        ("about: a\nfirmwear: bios\n", "firmwear: Extra inputs"),
        ("about: a\noperating_system: {name: a, family: redhat, version: 9.4}\n", "operating_system.version"),
        ("about: a\nlike: nobody\n", "no fixture 'nobody'"),
        ("about: a\nlike: x\n", "without end"),
        ("about: a\ninterfaces: [{name: e, mac: m, subnet: n}]\n", "the subnet 'n'"),
        ("about: a\nmethod: image\n", "there is no image"),
    ],
)
def test_wrong_fixtures(tmp_path: Path, text: str, said: str) -> None:
    """The file and the key are named."""
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        read_fixtures([write(tmp_path, x=text)])
    assert said in str(caught.value)
