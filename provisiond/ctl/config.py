"""Where the daemon is and who we are: PROVISIOND_URL, PROVISIOND_TOKEN, token files, ~/.config/provisionctl.toml.

A token is never taken from the command line: argv is readable by everybody on the machine.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

DEFAULT_URL = "http://127.0.0.1:8420"
LOCAL_TOKEN = Path("/var/lib/provisiond/admin.token")


class SettingsError(Exception):
    """A setting of provisionctl is missing or wrong; the message says which and what to do."""


@dataclass(frozen=True)
class Target:
    """The daemon's ``url`` (http, https, or unix:///path/of/socket) and the token to show it."""

    url: str
    token: str = field(repr=False)
    ca: str | None = None


def config_file() -> Path:
    """$PROVISIONCTL_CONFIG, or provisionctl.toml in the user's configuration directory."""
    if named := os.environ.get("PROVISIONCTL_CONFIG"):
        return Path(named)
    return Path(platformdirs.user_config_dir()) / "provisionctl.toml"


def load_target(url: str | None = None) -> Target:
    """Environment first, then the file, then a daemon on this machine. Raises SettingsError."""
    path = config_file()
    stored: dict[str, str] = {}
    if path.exists():
        try:
            stored = {key: str(value) for key, value in tomllib.loads(path.read_text()).items()}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"cannot read {path}: {error}") from None
        if unknown := set(stored) - {"url", "token", "token_file", "ca"}:
            raise SettingsError(
                f"{path}: unknown key {', '.join(sorted(unknown))}; known: url, token, token_file, ca"
            )
        if "token" in stored and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SettingsError(f"{path} holds a token and can be read by others: chmod 600 {path}")
    return Target(
        url=(url or os.environ.get("PROVISIOND_URL") or stored.get("url") or DEFAULT_URL).rstrip("/"),
        token=_token(stored),
        ca=os.environ.get("PROVISIOND_CA") or stored.get("ca"),
    )


def _token(stored: dict[str, str]) -> str:
    if token := os.environ.get("PROVISIOND_TOKEN", "").strip():
        return token
    named = os.environ.get("PROVISIOND_TOKEN_FILE") or (
        None if "token" in stored else stored.get("token_file")
    )
    if named is None and "token" in stored:
        return stored["token"].strip()
    path = Path(named).expanduser() if named else LOCAL_TOKEN
    try:
        return path.read_text().strip()
    except OSError as error:
        if named:
            raise SettingsError(f"cannot read the token file {path}: {error.strerror}") from None
        raise SettingsError(
            'no token: set PROVISIOND_TOKEN or PROVISIOND_TOKEN_FILE, or put token_file = "..." into '
            f"{config_file()}; the daemon's first start wrote an admin token to {LOCAL_TOKEN}"
        ) from None
