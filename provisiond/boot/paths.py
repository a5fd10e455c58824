"""Paths as they may be logged: a build's token is a secret, and stands in the path of everything below it."""

from __future__ import annotations

import re

_SECRET_PART = re.compile(r"((?:^|/)boot/)[A-Za-z0-9_-]{20,128}(?=/|$)")


def without_token(path: str) -> str:
    """``path`` (of HTTP, or of TFTP without its leading slash) with TOKEN in the token's place."""
    return _SECRET_PART.sub(r"\1TOKEN", path)
