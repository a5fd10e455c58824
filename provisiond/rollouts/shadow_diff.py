"""Differences that many hosts have in common: a host's own name, MACs and addresses stand as HOST, MAC and IP in them. Pure."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence

from provisiond.inventory.masking import MASK, secret_values
from provisiond.inventory.resolve import ResolvedHost

CONTEXT = 2  # lines shown around a change
MAX_LINES = 4000  # of what is left to compare after equal beginnings and ends; more takes difflib too long
MAX_TEXT = 64 << 10  # characters kept of one difference

OwnValues = Sequence[tuple[str, str]]
"""Pairs of a value of the host's own and the word that stands for it, the longest first."""


def own_values(host: ResolvedHost) -> OwnValues:
    """What tells this host from others: name, full name, id, and MAC and address of each network card."""
    found = {host.fqdn: "FQDN", host.name: "HOST", host.id: "HOST-ID"}
    for number, card in enumerate(host.interfaces):
        place = "" if number == 0 else str(number + 1)
        bare = card.mac.replace(":", "")
        for mac in (card.mac, card.mac.replace(":", "-"), bare, card.mac.upper(), bare.upper()):
            found.setdefault(mac, f"MAC{place}")
        if card.ip:
            found.setdefault(card.ip, f"IP{place}")
    return _longest_first(found)


def secrets_of(host: ResolvedHost) -> OwnValues:
    """Values of its parameters that are secrets by their names. Short ones are left: they would be found everywhere."""
    return _longest_first({v: MASK for v in secret_values(host.parameters) if len(v) >= 4})


def blank(text: str, values: OwnValues) -> str:
    """``text`` with each of ``values`` replaced where it stands as a word of its own."""
    for value, word in values:
        at = text.find(value)
        if at < 0:
            continue
        pieces, done = [], 0
        while at >= 0:
            end = at + len(value)
            if (at == 0 or not text[at - 1].isalnum()) and (end == len(text) or not text[end].isalnum()):
                pieces += [text[done:at], word]
                done = end
            at = text.find(value, end)
        text = "".join([*pieces, text[done:]])
    return text


def shape(values: OwnValues) -> str:
    """What a validator might still tell two hosts apart by, when their values have been blanked.

    A name is put down as what it is made of (``web01`` as a9), an address by its version, a MAC by whether it has letters:
    YAML 1.1 reads some words as numbers.
    """
    parts = set()
    for value, word in values:
        if word.startswith("IP"):
            parts.add(f"{word} {6 if ':' in value else 4}")
        elif word.startswith("MAC"):
            digits = value.replace(":", "").replace("-", "").isdigit()
            parts.add(f"{word} {9 if digits else 'a'}")
        elif word != "HOST-ID":
            parts.add(f"{word} {re.sub('[A-Za-z]+', 'a', re.sub('[0-9]+', '9', value))}")
    return ", ".join(sorted(parts))


def difference(before: str, after: str) -> str:
    """The unified difference, without file names and line numbers, so that equal changes at other places are equal texts."""
    old, new = before.splitlines(), after.splitlines()
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    start, end = max(start - CONTEXT, 0), max(end - CONTEXT, 0)
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    if len(old) > MAX_LINES or len(new) > MAX_LINES:
        return f"- {len(old)} lines\n+ {len(new)} lines\n(too long to be compared line by line)"
    lines = list(difflib.unified_diff(old, new, n=CONTEXT, lineterm=""))[2:]
    if not lines:
        return "(only the ends of lines differ)"
    text = "\n".join("@@" if line.startswith("@@ ") else line for line in lines)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "\n(cut here: it is longer)"


def digest(kind: str, template: str, text: str) -> str:
    """What makes two differences one: kind, template and the changed lines; lines around them may differ. 64 hex digits."""
    changed = (
        [line for line in text.splitlines() if not line.startswith((" ", "@@"))]
        if kind == "changed"
        else [text]
    )
    return hashlib.sha256("\0".join([kind, template, *changed]).encode(errors="replace")).hexdigest()


def _longest_first(found: dict[str, str]) -> OwnValues:
    return sorted(((v, w) for v, w in found.items() if v), key=lambda pair: -len(pair[0]))
