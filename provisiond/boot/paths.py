"""Paths and texts as they may be logged: a build's token is a secret, and stands in the path of everything below it; the ramdisk's
ticket is one, and stands in its kernel's arguments."""

from __future__ import annotations

import re

_SECRET_PART = re.compile(r"((?:^|/)boot/)[A-Za-z0-9_-]{20,128}(?=/|$)")
_TICKET = re.compile(r"(provisiond\.ticket=)[A-Za-z0-9_-]+")


def without_token(path: str) -> str:
    """``path`` (of HTTP, or of TFTP without its leading slash) or a text, with TOKEN and TICKET in their place."""
    return _TICKET.sub(r"\1TICKET", _SECRET_PART.sub(r"\1TOKEN", path))
