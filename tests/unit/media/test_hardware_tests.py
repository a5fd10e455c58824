"""Scripts of hardware tests: their headers, one's own over the shipped ones, and which may run."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.config import InspectionSettings, Settings
from provisiond.errors import Invalid
from provisiond.media.hardware_tests import (
    DEFAULT_TIMEOUT,
    BadTest,
    TestScript,
    bad_tests,
    choose_tests,
    find_test,
    list_tests,
    parse_test,
    script,
    shipped_directory,
)

SCRIPT = b"#!/bin/sh\n# provisiond: about=Fans turn, all of them, timeout=30, destructive=no\nexit 0\n"


def _settings(directory: Path | None) -> Settings:
    return Settings(inspection=InspectionSettings(tests_dir=directory))


def test_shipped_tests_are_sound() -> None:
    """Every shipped script has a header, can be run, and only the writing one is destructive."""
    tests = {t.name: t for t in list_tests(_settings(None))}
    assert {"memory", "cpu-burn", "disk-smart", "disk-read", "disk-write", "network"} == set(tests)
    assert [t.name for t in tests.values() if t.destructive] == ["disk-write"]
    assert bad_tests(_settings(None)) == []
    for test in tests.values():
        assert os.access(test.path, os.X_OK) and script(test).startswith(b"#!")
        subprocess.run(
            ["python3", "-c", "import ast,sys; ast.parse(open(sys.argv[1]).read())", test.path], check=True
        )


def test_a_header_is_read() -> None:
    """about may have commas; what is not said has a default."""
    test = parse_test("fans", SCRIPT, Path("fans"))
    assert (test.about, test.timeout, test.destructive) == ("Fans turn, all of them", 30, False)
    assert test.sha256 == hashlib.sha256(SCRIPT).hexdigest()
    assert parse_test("fans", b"#!/bin/sh\n# provisiond: about=x\n", Path("fans")).timeout == DEFAULT_TIMEOUT


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("Fans", SCRIPT, "rename"),
        ("a b", SCRIPT, "rename"),
        ("fans", SCRIPT[10:], "interpreter"),
        ("fans", b"#!/bin/sh\nexit 0\n", "about"),
        ("fans", SCRIPT.replace(b"30", b"soon"), "timeout=soon"),
        ("fans", SCRIPT.replace(b"30", b"0"), "timeout=0"),
        ("fans", SCRIPT.replace(b"=no", b"=maybe"), "yes or no"),
    ],
)
def test_scripts_that_cannot_be_used_say_why(name: str, text: bytes, says: str) -> None:
    """A wrong name, no interpreter, no header or a wrong field of it."""
    with pytest.raises(BadTest, match=says):
        parse_test(name, text, Path(name))


def test_ones_own_takes_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    """A script dropped into the directory is there at once, over a shipped one of its name; a broken one changes nothing."""
    (tmp_path / "fans").write_bytes(SCRIPT)
    (tmp_path / "memory").write_bytes(SCRIPT)
    (tmp_path / "cpu-burn").write_bytes(b"nonsense")
    (tmp_path / "README.md").write_text("about these")
    settings = _settings(tmp_path)
    tests = {t.name: t for t in list_tests(settings)}
    assert tests["fans"].own and tests["memory"].path == tmp_path / "memory" and not tests["cpu-burn"].own
    [bad] = bad_tests(settings)
    assert str(tmp_path / "cpu-burn") in str(bad)
    assert find_test(settings, "fans") == tests["fans"] and find_test(settings, "README.md") is None


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """Where one's own directory is not there, the shipped tests are, and somebody can say why."""
    settings = _settings(tmp_path / "gone")
    assert len(list_tests(settings)) == 6
    assert "cannot be read" in str(bad_tests(settings)[0])


def test_tests_are_chosen_by_name_or_all_of_them() -> None:
    """In the order asked for; "all" takes every one that does not write to disks."""
    settings = _settings(None)
    assert [t.name for t in choose_tests(settings, ["network", "memory", "network"])] == ["network", "memory"]
    everything = [t.name for t in choose_tests(settings, "all")]
    assert "memory" in everything and "disk-write" not in everything
    assert next(t.name for t in choose_tests(settings, ["network", "all"])) == "network"
    assert choose_tests(settings, []) == []


def test_every_wrong_name_is_told() -> None:
    """Names that are none, and tests that write to disks, all in one answer."""
    with pytest.raises(Invalid) as error:
        choose_tests(_settings(None), ["memory", "nonsense", "disk-write"])
    assert [f.field for f in error.value.fields] == ["tests.1", "tests.2"]
    assert "release" in error.value.fields[1].message


def test_a_script_that_changed_is_not_sent(tmp_path: Path) -> None:
    """The machine was promised a digest: another text is refused."""
    (tmp_path / "fans").write_bytes(SCRIPT)
    [test] = [t for t in list_tests(_settings(tmp_path)) if t.own]
    assert script(test) == SCRIPT
    (tmp_path / "fans").write_bytes(SCRIPT + b"# more\n")
    with pytest.raises(BadTest, match="changed"):
        script(test)


@given(st.binary(max_size=300), st.text(max_size=20))
def test_any_file_is_a_test_or_says_why_not(text: bytes, name: str) -> None:
    """No file in the directory makes the listing fail."""
    try:
        assert isinstance(parse_test(name, b"#!/bin/sh\n# provisiond: about=" + text, Path("x")), TestScript)
    except BadTest as bad:
        assert str(bad)


def test_the_directory_is_found() -> None:
    """The shipped tests lie beside the package or below share/."""
    assert (shipped_directory() / "memory").is_file()
