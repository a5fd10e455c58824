"""The quoting filters, each read back by the format's own reader: the same value comes out, or the filter refused it."""

from __future__ import annotations

import base64
import shlex
import subprocess
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from provisiond.templating import quoting

NASTY = ["'", '"', "\\", "\n", "\r", "\0", "#", "%end", "{{", "}}", "$(id)", "`id`", "${net0/mac}", ";", "&&", "||", " ", "\t", "é", "\u2028",
         "\x85", "\ufeff", "\U0001f600", "\ud800", "-", "--lock", "=", "!", "*", "~", "<", "&", "]]>", "a"]  # fmt: skip
hostile = st.one_of(st.lists(st.sampled_from(NASTY), max_size=8).map("".join), st.text(max_size=40))


def quoted(quote: Callable[[object], str], value: object) -> str | None:
    """What the filter makes of ``value``; None when it refuses it."""
    try:
        return quote(value)
    except ValueError:
        return None


@settings(max_examples=150, deadline=None)
@given(hostile)
def test_shell_reads_back(value: str) -> None:
    """A POSIX shell sees one word with exactly this value."""
    text = quoted(quoting.shell, value)
    if text is not None:
        done = subprocess.run(
            ["sh"], input=f"printf '<%s>' {text}", capture_output=True, text=True, check=True
        )
        assert done.stdout == f"<{value}>" and done.stderr == ""


@settings(max_examples=500, deadline=None)
@given(hostile)
def test_kickstart_token_reads_back(value: str) -> None:
    """The splitting that pykickstart does of a line gives one token with this value, before a comment and after an option."""
    text = quoted(quoting.ks, value)
    if text is not None:
        assert shlex.split(f"command --opt={text} {text} # end", comments=True) == [
            "command",
            f"--opt={value}",
            value,
        ]
        assert not value.startswith("-")


@settings(max_examples=500, deadline=None)
@given(st.recursive(st.one_of(hostile, st.none(), st.booleans(), st.integers(-(2**62), 2**62)),
                    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(hostile, inner, max_size=4)), max_leaves=8))  # fmt: skip
def test_yaml_reads_back(value: object) -> None:
    """YAML gives the same tree, in a flow list and as a mapping's value, with whatever follows untouched."""
    text = quoted(quoting.yaml, value)
    if text is not None:
        assert "\n" not in text
        assert pyyaml.safe_load(f"before: 1\nkey: {text}\nlist: [{text}, 2]\n") == {
            "before": 1,
            "key": value,
            "list": [value, 2],
        }


@settings(max_examples=500, deadline=None)
@given(hostile)
def test_xml_reads_back(value: str) -> None:
    """XML gives the same text, as content and as an attribute."""
    text = quoted(quoting.xml, value)
    if text is not None:
        node = ElementTree.fromstring(f'<a b="{text}">{text}</a>')
        assert (node.text or "") == value and node.get("b") == value


@settings(max_examples=500, deadline=None)
@given(hostile)
def test_words_of_loaders_stay_words(value: str) -> None:
    """What the loaders' filters let through is one printable word without anything these loaders would expand."""
    for quote in (quoting.kargs, quoting.ipxe, quoting.pxelinux):
        text = quoted(quote, value)
        if text is not None:
            assert text == value and text.isascii() and text.isprintable() and text.split() == [text]
    assert "${" not in (quoted(quoting.ipxe, value) or "")
    assert not set(quoted(quoting.kargs, value) or "") & set("\"'\\`")
    assert all(c.isascii() and c.isprintable() and c not in "$'\"\\;|&<>`#" for c in quoting.plain(value))


@settings(max_examples=300, deadline=None)
@given(hostile)
def test_preseed_stays_on_its_line(value: str) -> None:
    """A debconf value is on one line, keeps its ends, and joins no other line."""
    text = quoted(quoting.preseed, value)
    if text is not None:
        assert text == value and len(text.splitlines()) <= 1 and text == text.strip() and "\\" not in text


@settings(max_examples=100, deadline=None)
@given(hostile)
def test_grub_reads_back(value: str) -> None:
    """GRUB's single quotes are a shell's: the shell stands in for it here, and grub-script-check takes it in the golden tests."""
    text = quoted(quoting.grub, value)
    if text is not None:
        done = subprocess.run(
            ["sh"], input=f"printf '<%s>' {text}", capture_output=True, text=True, check=True
        )
        assert done.stdout == f"<{value}>"


@pytest.mark.parametrize(
    ("quote", "value", "text"),
    [
        (quoting.shell, "it's", "'it'\"'\"'s'"),
        (quoting.shell, "", "''"),
        (quoting.shell, 5, "5"),
        (quoting.shell, True, "true"),
        (quoting.ks, "a b", "'a b'"),
        (quoting.yaml, None, "null"),
        (quoting.yaml, "\0\x85", '"\\u0000\\u0085"'),
        (quoting.kargs, "console=ttyS0,115200n8", "console=ttyS0,115200n8"),
        (quoting.grub, "it's", "'it'\\''s'"),
        (quoting.url, "a b/ü", "a%20b%2F%C3%BC"),
        (quoting.word, "@^minimal-environment", "@^minimal-environment"),
        (quoting.plain, "boot $(x)\nnow", "boot ?(x)?now"),
        (quoting.xml, "<&\"'>", "&lt;&amp;&quot;&apos;&gt;"),
        (quoting.b64encode, "é\n", base64.b64encode("é\n".encode()).decode()),
    ],
)
def test_exact_text(quote: Callable[[object], str], value: object, text: str) -> None:
    """The table of what comes out, written out in full."""
    assert quote(value) == text


@pytest.mark.parametrize(
    ("quote", "value"),
    [
        (quoting.shell, "a\nb"), (quoting.shell, None), (quoting.shell, ["a"]), (quoting.ks, "--lock"), (quoting.preseed, " a"),
        (quoting.preseed, "a\\"), (quoting.yaml, float("nan")), (quoting.yaml, "\ud800"), (quoting.yaml, {1: 2}), (quoting.kargs, "a b"),
        (quoting.kargs, 'a="b"'), (quoting.ipxe, "${x}"), (quoting.ipxe, "||"), (quoting.ipxe, "#x"), (quoting.pxelinux, "a b"),
        (quoting.word, "a;b"), (quoting.word, "-x"), (quoting.word, ""), (quoting.xml, "\0"), (quoting.b64encode, 5), (quoting.kargs, ""),
    ],
)  # fmt: skip
def test_refused(quote: Callable[[object], str], value: object) -> None:
    """What a place cannot hold is refused, not changed."""
    with pytest.raises(ValueError, match=r"."):
        quote(value)
