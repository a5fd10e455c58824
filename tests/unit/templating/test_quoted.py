"""What reaches the output without a filter that quotes it."""

from __future__ import annotations

import pytest

from provisiond.errors import RenderError
from provisiond.templating.catalogue import Catalogue
from provisiond.templating.render import Renderer

HEADER = "{#\nkind: kickstart\nabout: x\n#}\n"
HOSTILE = (
    "a b",
    "it's",
    "a\nb",
    "#x",
    "%end",
    "{{ x }}",
    "a\0b",
    "-rf",
    "$HOME",
    "`id`",
    "a;b",
    "&amp;",
    "<x>",
    "key:",
    "é",
    "\u2028",
)


def render(body: str, value: object) -> str:
    """``body`` with the parameter ``v``."""
    renderer = Renderer(Catalogue.of({"t.j2": HEADER + body}))
    return renderer.render("t.j2", {"host": {"name": "web01"}, "parameters": {"v": value}})


@pytest.mark.parametrize("value", HOSTILE)
def test_a_bare_value_that_is_more_than_a_word_is_refused(value: str) -> None:
    """With the template, the line and what to do, but without the value, which may be a secret."""
    with pytest.raises(RenderError, match="put out without a filter") as caught:
        render("one\ntwo {{ parameters.v }}\n", value)
    assert (caught.value.template, caught.value.line) == ("t.j2", 6)
    assert len(value) < 5 or value not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "web01",
        "10.0.0.1",
        "/dev/sda",
        "https://a.example/x?".rstrip("?"),
        "UTC",
        "2001:db8::1",
        7,
        True,
        1.5,
        "",
    ],
)
def test_a_plain_word_a_number_and_nothing_are_put_out(value: object) -> None:
    """What no syntax gives a meaning needs no filter."""
    assert render("{{ parameters.v }}", value) == (str(value).lower() if value is True else str(value))


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ("{{ 'a; b' }}", "a; b"),
        ("{{ 'x y' if parameters.v else 'n; o' }}", "x y"),
        ("{% set p = ' --proxy=' ~ (parameters.v | ks) %}url{{ p }}", "url --proxy='a b'"),
        ("{% set p %}<{{ parameters.v | xml }}>{% endset %}{{ p }}", "<a b>"),
        ("{% macro m(x) %}[{{ x | shell }}]{% endmacro %}{{ m(parameters.v) }}", "['a b']"),
        ("{{ [parameters.v, 'c d'] | map('shell') | join(' ') }}", "'a b' 'c d'"),
        ("{{ (parameters.v | shell) + ' | cat' }}", "'a b' | cat"),
        ("{{ ('  ' * 2) }}|", "    |"),
        ("{{ parameters.v | yaml | indent(2) }}", '"a b"'),
        ("{{ ' x ' | trim }}", "x"),
        ("{% filter shell %}a {{ parameters.v | plain }}{% endfilter %}", "'a a b'"),
    ],
)
def test_a_templates_own_text_and_what_filters_made_stay_as_they_are(body: str, made: str) -> None:
    """Literals, results of filters and macros, and what is joined of them."""
    assert render(body, "a b") == made


@pytest.mark.parametrize(
    "body",
    [
        "{{ 'x=' ~ parameters.v }}",
        "{{ 'x=' + parameters.v }}",
        "{{ [parameters.v, 'c'] | join(' ') }}",
        "{{ 'X' | replace('X', parameters.v) }}",
        "{{ parameters.v | upper }}",
        "{{ parameters.v | shell | upper }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(parameters.v) }}",
        "{% set p = parameters.v %}{{ p }}",
        "{% set p %}{{ parameters.v }}{% endset %}{{ p }}",
        "{{ parameters.v | default('x') }}",
        "{{ parameters.v | trim }}",
        "{{ (parameters.v | string) }}",
        '{{ (parameters.v | shell).strip("\'") }}',
    ],
)
def test_no_detour_makes_a_bare_value_quoted(body: str) -> None:
    """Joining with a literal, changing, passing on: the value stays what it was."""
    with pytest.raises(RenderError, match="put out without a filter"):
        render(body, "a b; reboot")
