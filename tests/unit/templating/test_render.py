"""Rendering: what an error says, what the sandbox refuses, and that no template can work or grow without end."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest

from provisiond.errors import RenderError
from provisiond.templating.catalogue import Catalogue, read_directory, shipped_directory
from provisiond.templating.render import Limits, Renderer
from tests.golden.hosts import context_of

HEADER = (
    "{#\nkind: test\nabout: a test\nparameters:\n  zone: {type: string, default: UTC, about: a zone}\n#}\n"
)
NEEDY = "{#\nkind: test\nabout: a test\nparameters:\n  site: {type: string, required: true, about: where it stands}\n#}\n"
SNIPPET = "{#\nkind: snippet\nabout: a snippet\n#}\n{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"


def render(body: str, header: str = HEADER, **context: Any) -> str:
    """``body`` rendered as a template of its own, quickly or not at all."""
    renderer = Renderer(Catalogue.of({"a.j2": header + body, "s.j2": SNIPPET}), Limits(0.5, 1 << 18))
    return renderer.render("a.j2", {"host": {"name": "web01", "ip": None}, "parameters": {}, **context})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{{ host.name }} {{ parameters.zone }}", "web01 UTC"),
        ("{{ parameters.none | default('x') }}{{ parameters.none is defined }}", "xfalse"),
        ("{% from 's.j2' import twice %}{{ twice('ab') }}", "abab"),
        ("{% import 's.j2' as s with context %}{{ s.twice(1) }}", "11"),
        ("{% for i in range(3) %}{{ i }}{{ ',' if not loop.last }}{% endfor %}", "0,1,2"),
        (
            "{% set n = namespace(x='a') %}{% for i in [1, 2] %}{% set n.x = n.x ~ i %}{% endfor %}{{ n.x }}",
            "a12",
        ),
        ("{{ {'items': 5}.items }}", "5"),
        ("{% for i in [1, [2]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}", "12"),
        ("{{ ['b', 'a'] | sort | join('-') }} {{ 'a.b' | replace('.', '') }}", "a-b ab"),
        ("{{ 'x\ny' | indent(2) }}", "x\n  y"),
    ],
)
def test_text(body: str, text: str) -> None:
    """The parts of Jinja that templates use work."""
    assert render(body) == text


@pytest.mark.parametrize(
    ("body", "line", "key"),
    [
        ("{{ host.missing }}", 7, "host.missing"),
        ("one\n{{ parameters.site }}", 8, "parameters.site"),
        ("\n\n{{ nothing.at.all }}", 9, "nothing"),
        ("{{ host['serial'] | shell }}", 7, "host.serial"),
        ("{% if host.missing %}{% endif %}", 7, "host.missing"),
        ("{% for x in host.missing %}{% endfor %}", 7, "host.missing"),
        ("{{ host.missing ~ 'x' }}", 7, "host.missing"),
        ("{{ host.missing + 1 }}", 7, "host.missing"),
    ],
)
def test_missing_key(body: str, line: int, key: str) -> None:
    """A missing name is an error with template, line, key and host."""
    with pytest.raises(RenderError) as caught:
        render(body)
    assert (caught.value.template, caught.value.line, caught.value.key) == ("a.j2", line, key)
    assert key in str(caught.value) and "web01" in str(caught.value) and f"a.j2:{line}" in str(caught.value)


def test_missing_required_parameter() -> None:
    """A parameter without default that the host lacks is named before anything is rendered, with what it is for."""
    with pytest.raises(
        RenderError, match=r"host web01 has no parameter 'site' \(where it stands\); set it"
    ) as caught:
        render("{{ parameters.site }}", NEEDY)
    assert caught.value.key == "parameters.site"


def test_parameter_of_the_wrong_type() -> None:
    """A parameter that is not what the header says is refused with its name and the host's."""
    with pytest.raises(RenderError, match=r"parameter 'zone' of host web01 must be a string, not int"):
        render("{{ parameters.zone }}", parameters={"zone": 5})


@pytest.mark.parametrize(
    "body",
    [
        "{{ ''.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ host.__class__ }}", "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}", "{{ self.__dict__ }}", "{{ self._TemplateReference__context }}", "{{ range.__self__ }}",
        "{{ fail.__globals__ }}", "{{ dict.__base__ }}", "{{ namespace.__init__ }}", "{{ host | attr('__class__') }}",
        "{{ ['a'] | map(attribute='__class__') | first }}", "{{ 'a'.format() }}", "{{ 'a'.format_map({}) }}", "{{ '%s' % 'a' }}",
        "{{ host.update({}) }}", "{% set x = [1] %}{{ x.append(2) }}", "{{ host.setdefault('a', 1) }}", "{{ host.pop('name') }}",
        "{% import 's.j2' as s %}{{ s._body_stream }}", "{% from 's.j2' import twice %}{{ twice._func }}",
        "{% from 's.j2' import twice %}{{ twice.__init__.__globals__ }}", "{% for i in [1] %}{{ loop._iterator }}{% endfor %}",
        "{% set n = namespace() %}{{ n.__class__ }}", "{{ 'x' | _concat }}", "{{ [1] | _turns }}", "{{ ''['__class__'] }}",
        "{{ 'a'.encode() }}", "{{ ('a').join(['b']) }}", "{{ host }}", "{{ none }}", "{{ range }}",
        "{% include '/etc/passwd' %}", "{% include '../a.j2' %}", "{% include host.name %}", "{% extends parameters.zone %}",
        "{{ ().__class__.__bases__ }}", "{{ undefined_name.__init__.__globals__ }}", "{{ host.get.__self__ }}", "{{ url_for.__globals__ }}",
    ],
)  # fmt: skip
def test_escapes_fail(body: str) -> None:
    """Every known way out of a Jinja sandbox, and every method that changes data, ends in an error."""
    with pytest.raises(RenderError):
        render(body)


@pytest.mark.parametrize(
    "body",
    [
        "{{ 'x' * 1000000000 }}", "{{ [0] * 1000000000 }}", "{{ 1000000000 * 'x' }}", "{{ 'x'.ljust(1000000000) }}", "{{ 2 ** 10000000 }}",
        "{% set n = namespace(x='aaaaaaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
        "{% set n = namespace(x=7) %}{% for i in range(9999) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(99) %}xxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{% set x %}{% for a in range(9999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endset %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(22) }}",
        "{% include 'a.j2' %}", "{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}", "{{ range(100000000) | list }}",
        "{{ range(9999) | map('string') | join('xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx') }}", "{{ 'x' | indent(100000000) }}",
        "{{ ((((((((((((9 ** 64) * 9 ** 64) * 9 ** 64) * 9 ** 64))))))))) }}", "{{ 'x' | center(100000000) }}", "{{ 'aaa' | wordwrap(1) }}",
    ],
)  # fmt: skip
def test_work_is_bounded(body: str) -> None:
    """Whatever a template tries, it ends soon with an error instead of with the daemon's memory."""
    began = time.monotonic()
    with pytest.raises(RenderError):
        render(body)
    assert time.monotonic() - began < 15.0


def test_deadline() -> None:
    """A template that stays below every count still ends soon after its time."""
    files = {
        "a.j2": HEADER
        + "{% for a in range(9999) %}{{ (range(3000) | map('string') | list | sort | unique | list | length) }}{% endfor %}"
    }
    began = time.monotonic()
    with pytest.raises(RenderError, match=r"longer than 0\.2 s"):
        Renderer(Catalogue.of(files), Limits(0.2, 1 << 20)).render("a.j2", {"parameters": {}})
    assert time.monotonic() - began < 15.0


def test_fail_says_why() -> None:
    """A template can refuse what it cannot express, and its reason reaches the operator."""
    with pytest.raises(RenderError, match=r"a\.j2:7: no LUKS here \(rendered for host web01\)"):
        render("{{ fail('no LUKS here') }}")


def test_host_values_are_never_templates() -> None:
    """Jinja in a parameter is text, and unquoted it is refused."""
    zone = "{{ host.name }}{% raw %}"
    assert render("{{ parameters.zone | yaml }}", parameters={"zone": zone}) == f'"{zone}"'
    with pytest.raises(RenderError, match="without a filter that quotes it"):
        render("{{ parameters.zone }}", parameters={"zone": zone})


@pytest.mark.parametrize(
    "template", ["{% if x %}", "{{ x | nofilter }}", "{{ x is notest }}", "{% do x %}", "{{"]
)
def test_syntax_errors_have_a_line(template: str) -> None:
    """Syntax errors and unknown filters name the template and the line."""
    with pytest.raises(RenderError) as caught:
        render("\n" + template, x=1)
    assert caught.value.template == "a.j2" and caught.value.line == 8


def test_a_kickstart_takes_under_three_milliseconds() -> None:
    """p50 of a kickstart in a warm process, in time of the processor: others use the machine at the same time."""
    renderer = Renderer(read_directory(shipped_directory()))
    context = context_of("redhat-uefi-static")
    times = []
    for _ in range(60):
        began = time.thread_time()
        renderer.render("kickstart/redhat-9.ks.j2", context)
        times.append(time.thread_time() - began)
    print(f"template_render_kickstart_p50 {median(times) * 1000:.2f} ms")
    assert median(times) < 0.003
