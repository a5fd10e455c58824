"""One tree of errors. Every message says what happened, to which host, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


class ProvisiondError(Exception):
    """Base of every error this project raises on purpose.

    ``str(error)`` is the sentence shown to the operator; it never holds a secret.
    """


# --- what a caller asked for cannot be done -------------------------------------------------------


@dataclass(frozen=True)
class FieldError:
    """One wrong field of a request: ``field`` is a dotted path such as ``interfaces.0.mac``."""

    field: str
    message: str


class Invalid(ProvisiondError):
    """The input is wrong; ``fields`` lists every wrong field at once and nothing was changed. HTTP 422."""

    def __init__(self, fields: list[FieldError]) -> None:
        self.fields = fields
        super().__init__("; ".join(f"{f.field}: {f.message}" for f in fields))


_LISTINGS = {  # the command that lists a noun, where it is not 'NOUN list'
    "shadow run": "release shadow list",
    "parameter": "parameters",
    "hardware": "host facts HOST",
    "log of the ramdisk": "host history HOST",
    "erasure": "host erasures HOST",
    "deployment": "deployment list HOST",
    "file": "deployment show HOST NUMBER",
}


class NotFound(ProvisiondError):
    """There is no such thing. HTTP 404."""

    def __init__(self, noun: str, name: str) -> None:
        self.noun, self.name = noun, name
        listing = _LISTINGS.get(noun, f"{noun} list")
        super().__init__(f"there is no {noun} {name!r}; 'provisionctl {listing}' shows those there are")


class Conflict(ProvisiondError):
    """The thing exists already, is in use, or is not in a state that allows this. HTTP 409."""


class Denied(ProvisiondError):
    """The token is missing, wrong or expired (``authenticated`` false, HTTP 401), or its role is too low (403)."""

    def __init__(self, message: str, *, authenticated: bool = False) -> None:
        self.authenticated = authenticated
        super().__init__(message)


class PoolExhausted(Conflict):
    """A subnet has no free address left. HTTP 409."""

    def __init__(self, subnet: str, size: int) -> None:
        super().__init__(
            f"subnet {subnet} has no free address: all {size} in its pools are taken; "
            f"widen its pools with 'provisionctl subnet update {subnet} --pool FIRST-LAST' or retire hosts"
        )


# --- the daemon itself ------------------------------------------------------------------------------


class ConfigError(ProvisiondError):
    """A setting is wrong, unknown or missing; the message names the key and the file."""


class StaleWrite(ProvisiondError):
    """A compare-and-set lost: the host's version moved on since it was read."""


class RenderError(ProvisiondError):
    """A template cannot be rendered: names the template, the line and the missing or wrong key."""

    def __init__(
        self, template: str, message: str, *, line: int | None = None, key: str | None = None
    ) -> None:
        self.template, self.line, self.key, self.reason = template, line, key, message
        at = f"{template}:{line}" if line else template
        super().__init__(f"template {at}: {message}")


# --- what a driver may raise, and nothing else --------------------------------------------------------


class DriverError(ProvisiondError):
    """Base of the three answers a driver may give instead of a result."""


class DriverUnavailable(DriverError):
    """The other side did not answer, is busy or broke off: trying again later may work."""


class DriverRejected(DriverError):
    """The other side answered and said no (wrong password, bad request): trying again will not help."""


class Unsupported(DriverError):
    """This driver, or the machine behind it, cannot do this at all."""
