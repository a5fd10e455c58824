"""The quoting filters: each puts one value into one syntax, or refuses it, so that no parameter breaks out of its place.

A filter takes a string, number or boolean and returns text that its format reads back as exactly that value. What a format
cannot hold on one line (newlines, NUL, control characters) is refused with ``ValueError``, which the renderer reports with the
template, the line and the host. Longer text goes through ``b64encode`` and is decoded on the machine.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote as percent_encode
from xml.sax.saxutils import escape as xml_escape

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHELL_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+\Z", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9@_=+~^/][A-Za-z0-9@_=+~^.,:/*-]*\Z", re.ASCII)
_PRINTABLE_WORD = re.compile(r"[!-~]+\Z", re.ASCII)
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 .,:/_@()+-]", re.ASCII)
_YAML_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_XML_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _text(value: Any) -> str:
    """``value`` as text on one line; ``ValueError`` when it is not a scalar or holds a control character."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"a text or a number is needed here, not {_name_type(value)}")
    found = _CONTROL.search(value)
    if found:
        raise ValueError(
            f"the value holds a line break or control character (U+{ord(found.group()):04X}), which cannot stand here"
        )
    return value


def _name_type(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", tuple: "a list", type(None): "nothing (null)"}
    return names.get(type(value), type(value).__name__)


def shell(value: Any) -> str:
    """One word of a POSIX shell (XCU 2.2.2, single quotes): ``it's`` becomes ``'it'"'"'s'``."""
    text = _text(value)
    return text if _SHELL_PLAIN.match(text) else "'" + text.replace("'", "'\"'\"'") + "'"


def ks(value: Any) -> str:
    """One token of a kickstart command line, which pykickstart splits by shell rules. A leading dash would be an option: refused."""
    text = _text(value)
    if text.startswith("-"):
        raise ValueError(f"the value {text[:20]!r} begins with a dash and would be read as an option")
    return shell(text)


def preseed(value: Any) -> str:
    """A debconf value: the rest of one line, taken as it is. Refused: blanks at its ends, which are dropped, and backslashes,
    which join lines or are eaten, by reader."""
    text = _text(value)
    if text != text.strip():
        raise ValueError("the value begins or ends with a blank, which debconf would drop")
    if "\\" in text:
        raise ValueError("the value holds a backslash, which debconf would not keep")
    return text


def yaml(value: Any) -> str:
    """Any plain value as YAML in flow style on one line (JSON, RFC 8259, with what YAML 1.1 cannot hold raw as escapes)."""
    text = json.dumps(
        _without_surrogates(value), ensure_ascii=False, allow_nan=False, separators=(", ", ": ")
    )
    return _YAML_UNSAFE.sub(lambda m: f"\\u{ord(m.group()):04x}", text)


def _without_surrogates(value: Any, depth: int = 0) -> Any:
    if depth > 16:
        raise ValueError("the value is nested deeper than 16 levels")
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("the value holds half a surrogate pair, which no text file can hold")
        return value
    if isinstance(value, dict):
        return {_yaml_key(k): _without_surrogates(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(v, depth + 1) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the value is not a finite number")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"a plain value is needed here, not {_name_type(value)}")


def _yaml_key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError("keys of a mapping are texts")
    return str(_without_surrogates(key))


def kargs(value: Any) -> str:
    """One kernel argument (Documentation/admin-guide/kernel-parameters): printable ASCII without blank, quote, backslash or
    dollar sign: boot loaders' configurations are read by shells."""
    text = _text(value)
    if not _PRINTABLE_WORD.match(text) or set(text) & set("\"'\\`$"):
        raise ValueError(
            f"{text[:40]!r} is not one kernel argument: no blanks, quotes, backslashes, dollar signs or non-ASCII characters there"
        )
    return text


def ipxe(value: Any) -> str:
    """One word of an iPXE script, which knows no quotes: anything it would split, expand or take for a comment is refused."""
    text = _text(value)
    if not _PRINTABLE_WORD.match(text) or "$" in text or text.startswith("#") or text in {"||", "&&", ";"}:
        raise ValueError(
            f"{text[:40]!r} cannot be one word of an iPXE script: no blanks, '$', leading '#' or separators there"
        )
    return text


def grub(value: Any) -> str:
    """One word of a GRUB script in single quotes (GRUB manual, Quoting)."""
    text = _text(value)
    return "'" + text.replace("'", "'\\''") + "'"


def pxelinux(value: Any) -> str:
    """One word of a PXELINUX configuration, which knows no quotes: printable ASCII without blanks."""
    text = _text(value)
    if not _PRINTABLE_WORD.match(text) or text.startswith("#"):
        raise ValueError(f"{text[:40]!r} cannot be one word of a PXELINUX configuration: no blanks there")
    return text


def word(value: Any) -> str:
    """A plain name (package, repository id, unit, device, user): letters, digits and ``@_=+~^.,:/*-``; anything else is refused."""
    text = _text(value)
    if not _WORD.match(text):
        raise ValueError(f"{text[:40]!r} is not a plain name")
    return text


def plain(value: Any) -> str:
    """Text for a person, cut to 200 harmless characters on one line; the rest becomes ``?``. The only filter that changes its value."""
    return _NOT_PLAIN.sub("?", str(value)[:200])


def xml(value: Any) -> str:
    """Text or attribute value of an XML document (XML 1.0, section 2.2 says which characters it can hold)."""
    text = value if isinstance(value, str) else _text(value)
    if _XML_FORBIDDEN.search(text):
        raise ValueError("the value holds a character that XML cannot hold")
    return xml_escape(text, {'"': "&quot;", "'": "&apos;", "\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def url(value: Any) -> str:
    """One component of a URL (RFC 3986, section 2.1): everything but letters, digits and ``-._~`` percent-encoded."""
    return percent_encode(_text(value), safe="")


def b64encode(value: Any) -> str:
    """The UTF-8 bytes of a text in base64 (RFC 4648) without line breaks; the way for text of several lines."""
    if not isinstance(value, str):
        raise ValueError(f"a text is needed here, not {_name_type(value)}")
    return base64.b64encode(value.encode("utf-8", "strict")).decode("ascii")


QUOTING: dict[str, Callable[[Any], str]] = {
    f.__name__: f
    for f in (shell, ks, preseed, yaml, kargs, ipxe, grub, pxelinux, word, plain, xml, url, b64encode)
}
