"""Which texts may be put out as they are: a template's own, and what a quoting filter has made. Anything else must be harmless.

It is what autoescaping is for HTML, for syntaxes that have no single way to quote. Texts are marked by their type: literals
of templates, results of quoting filters and of macros are Quoted, and stay so when they are joined with each other. A value of
a host that reaches the output unmarked is put out if it is a plain word of letters, digits and ``_./:@+=,%~-`` (which no
syntax here gives a meaning in the middle of a word) and refused otherwise, with the template and the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

_HARMLESS = re.compile(r"[A-Za-z0-9_/](?:[A-Za-z0-9_./:@+=,%~-]*[A-Za-z0-9_/+=])?\Z", re.ASCII)


class Quoted(str):
    """A text that may stand in the output as it is."""

    __slots__ = ()


def refuse_unquoted(value: str) -> None:
    """ValueError where a text that nothing has quoted could be more than a word of its own."""
    if value and type(value) is not Quoted and not _HARMLESS.match(value):
        raise ValueError(
            f"the text {_shown(value)} is put out without a filter that quotes it; put it through the one of its place "
            "(shell, ks, preseed, yaml, xml, grub, ipxe, word, ...)"
        )


def _shown(value: str) -> str:
    """What is odd about a text, not the text: it may be a secret."""
    odd = next((c for c in value if not re.match(r"[A-Za-z0-9]", c)), "")
    return (
        f"of {len(value)} characters, with U+{ord(odd):04X} in it," if odd else f"of {len(value)} characters"
    )


def joined(text: str, parts: Iterable[Any]) -> str:
    """``text``, which was made of ``parts``: Quoted if each of them may stand in the output as it is."""
    fine = all(type(part) is not str or not part or _HARMLESS.match(part) for part in parts)
    return Quoted(text) if fine else text


class MarkingCodeGenerator(CodeGenerator):
    """Compiles literal texts to ``environment.literals['...']``, where they stand as Quoted."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            literals: dict[str, Quoted] = self.environment.literals  # type: ignore[attr-defined]
            literals[str(node.value)] = Quoted(node.value)
            self.write(f"environment.literals[{str(node.value)!r}]")
        else:
            super().visit_Const(node, frame)
