"""As whom to log in to an IPMI controller, and the ways in which that fails."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Account:
    """Where and as whom to log in; ``privilege`` 0 asks for administrator, then for operator. ``timeout`` in seconds."""

    address: str
    port: int
    username: str
    password: str = field(repr=False)
    privilege: int = 0
    timeout: float = 5.0
    spacing: float = 0.0


class SessionError(Exception):
    """Base of what goes wrong with a session; the text never holds the password."""


class NoAnswer(SessionError):
    """Silence, a closed port or an unknown name. ``heard`` tells whether anything came back before."""

    def __init__(self, message: str, *, heard: bool = False) -> None:
        self.heard = heard
        super().__init__(message)


class Crowded(SessionError):
    """The controller has no session to give now."""


class Refused(SessionError):
    """The controller says no to this user, password, privilege or cipher suite; ``code`` is its RMCP+ status, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        self.code = code
        super().__init__(message)


class Restart(SessionError):
    """The key exchange lost a packet; begin again from another port, as controllers remember half a log-in by port."""
