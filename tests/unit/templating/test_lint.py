"""Lint: what is wrong in a directory of templates, with the template's line, family by family; and its command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from provisiond.ctl import app
from provisiond.errors import ConfigError
from provisiond.templating.catalogue import Catalogue, shipped_directory
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.lint import Family, lint_directory
from provisiond.templating.places import Place, places
from provisiond.templating.render import Renderer

HEAD = "{#\nkind: KIND\nabout: a test\nparameters:\n  zone: {type: string, default: UTC, about: a zone}\nfixtures: [FIXTURES]\n#}\n"


def template(kind: str, body: str, fixtures: str = "redhat-bios-dhcp") -> str:
    """A template whose body begins in line 8."""
    return HEAD.replace("KIND", kind).replace("FIXTURES", fixtures) + body


def directory(at: Path, **files: str) -> Path:
    """A directory with these templates; ``__`` in a name is a slash."""
    for name, text in files.items():
        path = at / (name.replace("__", "/") + ".j2")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return at


def said(families: list[Family]) -> list[str]:
    """Every finding as FILE:LINE: MESSAGE."""
    return [str(f) for family in families for r in family.results for f in r.findings]


GOOD = {
    "ipxe__a": template("ipxe-local", "#!ipxe\necho {{ parameters.zone | ipxe }}\n", "any-machine"),
    "kickstart__b": template("kickstart", "lang en_US.UTF-8\ntimezone {{ parameters.zone | ks }}\n"),
    "snippets__c": template("snippet", "{% macro m() %}x{% endmacro %}\n", ""),
}


def test_a_good_directory(tmp_path: Path) -> None:
    """Nothing is found, snippets count as passed, and the families come one by one, snippets first."""
    families = list(lint_directory(directory(tmp_path, **GOOD)))
    assert [(f.name, f.count("passed"), f.failed) for f in families] == [
        ("snippets", 1, False), ("ipxe", 1, False), ("kickstart", 1, False),
    ]  # fmt: skip
    assert families[2].results[0].validator == "pykickstart RHEL9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (template("kickstart", "lang x\n\nnonsense --a\n"), "a.j2:10: Unknown command: nonsense (line 3 of it for redhat-bios-dhcp)"),
        (template("kickstart", "{% for x in [1] %}\n{% endfor %}\nnonsense{{ host.firmware }}\n"), "a.j2:10: Unknown command: nonsensebios"),
        (template("kickstart", "{{ host.nothing }}\n"), "a.j2:8: 'host.nothing' is missing"),
        (template("kickstart", "{% if %}\n"), "a.j2:8: its syntax is wrong"),
        (template("kickstart", "\n{% include 'b.j2' %}\n"), "a.j2: there is no template 'b.j2' in this release"),
        (template("kickstart", "\n{{ parameters.zoen | default('') }}{{ parameters.zon | ks }}\n"), "a.j2:9: it uses parameters.zon, which neither"),
        (template("kickstart", "lang x\n", "redhat-nobody"), "a.j2:6: there is no fixture 'redhat-nobody'"),
        ("kind: kickstart\n", "a.j2:1: it does not begin with a header"),
        ("{#\nkind: kickstart\nabout: x\nfoo: [\n#}\n", "its header is not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """Each thing that is wrong is told once or once a fixture, with the line of the template."""
    found = said(list(lint_directory(directory(tmp_path, a=text))))
    assert any(message in f for f in found), found
    assert len(found) == len(set(found))


def test_lines_out_of_snippets(tmp_path: Path) -> None:
    """A wrong line that a snippet makes, included or by a macro, is told as the snippet's."""
    included = template("snippet", "# harmless\n# another\ntimezone --wrong {{ parameters.zone }}\n", "")
    macros = template("snippet", "{% macro m() %}\nrootpw --worse\n{% endmacro %}\n", "")
    main = template("kickstart", "lang x\n{% include 's/i.j2' %}\n{% from 's/m.j2' import m %}\n{{ m() }}\n")
    found = said(list(lint_directory(directory(tmp_path, a=main, s__i=included))))
    assert "s/m.j2" in found[0]
    found = said(list(lint_directory(directory(tmp_path, a=main, s__i=included, s__m=macros))))
    assert any(f.startswith("s/i.j2:10: ") for f in found), found
    directory(tmp_path, s__i=template("snippet", "# well\n", ""))
    found = said(list(lint_directory(tmp_path)))
    assert any(f.startswith("s/m.j2:9: ") for f in found), found


def test_places() -> None:
    """Every line of a text knows where it was made, loops and conditions and all."""
    body = "one\n{% if true %}\ntwo {{ host.name }}\n{% endif %}\n{% for x in [1, 2] %}\nn {{ x }}\n{% endfor %}\nend\n"
    catalogue = Catalogue.of({"a.j2": template("x", body)})
    context = read_fixtures([shipped_directory()])["redhat-bios-dhcp"].context()
    assert places(Renderer(catalogue), "a.j2", context)[:5] == [
        Place("a.j2", line) for line in (8, 10, 13, 13, 15)
    ]


def test_own_fixtures(tmp_path: Path) -> None:
    """Fixtures beside the templates are found; a wrong one is an error that names it."""
    place = directory(tmp_path, a=template("kickstart", "lang {{ host.name | ks }}\n", "mine"))
    (place / "fixtures").mkdir()
    (place / "fixtures" / "mine.yaml").write_text("about: mine\nlike: redhat-bios-dhcp\nname: db01\n")
    assert said(list(lint_directory(place))) == []
    (place / "fixtures" / "mine.yaml").write_text("about: mine\nnaem: db01\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: naem"):
        list(lint_directory(place))


def test_skipped_is_counted(tmp_path: Path) -> None:
    """A template without a fixture and one without a validator are skipped, and say why."""
    place = directory(tmp_path, x__a=template("kickstart", "x\n", ""), x__b=template("windows", "x\n"))
    (family,) = lint_directory(place)
    assert family.count("skipped") == 2 and not family.failed
    assert {s for r in family.results for s in r.skipped} == {
        "its header names no fixture to render it on", "there is no validator for windows",
    }  # fmt: skip


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 when all is well, with a line for each family."""
    assert app.run(["template", "lint", str(directory(tmp_path, **GOOD))]) == 0
    out = capsys.readouterr().out
    assert re.search(r"kickstart +1 +0 +0", out) and re.search(r"ipxe +1 +0 +0", out)


def test_the_command_stops_at_the_first_family_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, FILE:LINE on stderr, and what comes after it only with --keep-going."""
    wrong = {
        **GOOD,
        "grub__a": template("grub-local", "if true; fi\n"),
        "kickstart__b": template("kickstart", "nonsense\n"),
    }
    place = str(directory(tmp_path, **wrong))
    assert app.run(["template", "lint", place]) == 1
    out, err = capsys.readouterr()
    assert f"{place}/grub/a.j2:8: syntax error" in err and "kickstart" not in out
    assert app.run(["template", "lint", place, "--keep-going", "--format", "json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["passed"], document["failed"]) == (2, 2)
    problems = [
        p
        for f in document["families"]
        for r in f["results"]
        if r["status"] == "failed"
        for p in r["problems"]
    ]
    assert [(p["file"], p["line"], p["rendered_line"]) for p in problems] == [
        ("grub/a.j2", 8, 1), ("kickstart/b.j2", 8, 1),
    ]  # fmt: skip


def test_the_command_on_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory is wrong usage; no templates in it is a failure; a skipped validator is one only with --strict."""
    assert app.run(["template", "lint", str(tmp_path / "nowhere")]) == 2
    assert app.run(["template", "lint", str(tmp_path)]) == 1
    assert "there is no *.j2" in capsys.readouterr().err
    place = str(directory(tmp_path, **GOOD))
    monkeypatch.setenv("PATH", "")
    directory(tmp_path, grub__a=template("grub-local", "echo a\n"))
    assert app.run(["template", "lint", place]) == 0
    assert "grub: skipped: grub-script-check" in capsys.readouterr().err
    assert app.run(["template", "lint", place, "--strict"]) == 1
