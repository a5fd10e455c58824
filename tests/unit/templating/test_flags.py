"""Feature flags in templates: declared in the header, asked for by name, evaluated before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisiond.errors import RenderError
from provisiond.templating.catalogue import Catalogue, shipped_directory
from provisiond.templating.context import build_context
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.render import Renderer

HEADER = "{#\nkind: script\nabout: Made for a test.\nflags: {new-disk: A new layout of disks.}\n#}\n"


def renderer(text: str, **others: str) -> Renderer:
    return Renderer(Catalogue.of({"a.j2": HEADER + text, **{f"{n}.j2": t for n, t in others.items()}}))


def test_a_flag_is_what_the_context_says() -> None:
    """On, off, and off where the daemon knows no such flag."""
    template = renderer("{% if flag('new-disk') %}new{% else %}old{% endif %}")
    assert template.render("a.j2", {"flags": {"new-disk": True, "other": True}}) == "new"
    assert template.render("a.j2", {"flags": {"new-disk": False}}) == "old"
    assert template.render("a.j2", {}) == "old"


def test_an_undeclared_flag_is_an_error_that_names_it() -> None:
    """Template, line and the flag's name are in it, even where the flag is known and on."""
    with pytest.raises(RenderError, match="'typo' is not declared in the header under flags") as caught:
        renderer("\n{{ flag('typo') }}").render("a.j2", {"flags": {"typo": True}, "host": {"name": "web01"}})
    assert (caught.value.template, caught.value.line) == ("a.j2", 7)
    assert "web01" in str(caught.value)


def test_what_is_included_brings_its_flags() -> None:
    """A snippet, and a macro of an imported one, declare what they ask for themselves."""
    snippet = "{#\nkind: snippet\nabout: Part.\nflags: {part: Of the part.}\n#}\n"
    template = renderer(
        "{% include 'b.j2' %}{% from 'c.j2' import m %}{{ m() }}",
        b=snippet + "{{ flag('part') }},",
        c=snippet.replace("part:", "macro:") + "{% macro m() %}{{ flag('macro') }}{% endmacro %}",
    )
    assert template.render("a.j2", {"flags": {"part": True, "macro": False}}) == "true,false"
    assert template.flags("a.j2") == {"new-disk", "part", "macro"}


def test_flags_are_asked_by_name_only() -> None:
    """The mapping itself is not there, so that nothing is read that was not declared."""
    with pytest.raises(RenderError, match="'flags' is missing"):
        renderer("{{ flags }}").render("a.j2", {"flags": {"new-disk": True}})


@pytest.mark.parametrize("header", ["flags: {Bad Name: x}", "flags: [new-disk]", "flags: {a: {b: c}}"])
def test_a_wrong_declaration_is_refused(header: str) -> None:
    """Names are plain, and each has a line about it."""
    with pytest.raises(RenderError, match="header is wrong"):
        Catalogue.of({"a.j2": f"{{#\nkind: script\nabout: Made for a test.\n{header}\n#}}\n"})


def test_a_made_up_host_has_flags() -> None:
    """So that both sides of a flag can be looked at before a machine sees them."""
    fixture = read_fixtures([shipped_directory()])["image-bios-dhcp"].model_copy(
        update={"flags": {"new-disk": True}}
    )
    template = renderer("{{ flag('new-disk') }}")
    assert template.render("a.j2", fixture.context()) == "true"
    assert (
        template.render("a.j2", read_fixtures([shipped_directory()])["image-bios-dhcp"].context()) == "false"
    )


def test_the_next_build_gets_those_of_now() -> None:
    """A build keeps what it began with; what is rendered for the next one does not."""
    fixture = read_fixtures([shipped_directory()])["image-bios-dhcp"]
    host = replace(fixture.host(), flags={"new-disk": True})
    assert host.deployment is not None
    host.deployment.flags = {"new-disk": False}
    assert build_context(host, fixture.urls())["flags"] == {"new-disk": False}
    assert build_context(host, fixture.urls(), next_build=True)["flags"] == {"new-disk": True}
